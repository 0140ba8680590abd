//! Replies that are not yet known to be the answer: a refusal until it is complete, a stream
//! until its first content. They are kept from the client, at most so many bytes and so long.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use super::final_response::Held;
use super::outcome::Next;
use super::relay::{RETRY, Reply, is_stream};
use super::retry_state::Due;
use crate::azure::response::sse::Scanner;
use crate::azure::{Opening, Operation, opening};
use crate::proxy::client::request_body::{Budget, Share};
use crate::proxy::context::RequestContext;

/// Most bytes of an error reply that are held; error bodies of Azure have a few hundred.
const HELD_MAX: usize = 64 * 1024;
/// How long an error reply may take from its head to its end.
const HOLDING: Duration = Duration::from_secs(5);
/// How long a stream is held that was announced with `retry-after`.
const HOLD_WARNED: Duration = Duration::from_secs(5);

/// What is held of a stream before its first content.
pub(in crate::proxy) struct Opened {
    header: Box<ResponseHeader>,
    tasks: Vec<HttpTask>,
    size: u64,
    scanner: Scanner,
    share: Share,
}

impl RequestContext {
    /// A refusal has begun.
    pub(in crate::proxy) fn begin_holding(
        &mut self,
        header: Box<ResponseHeader>,
        end: bool,
        out: &mut Vec<HttpTask>,
        now: Instant,
    ) -> pingora::Result<()> {
        self.reply = Reply::Holding(Box::new(Held::new(header)), 0);
        // Error replies are short; one that trickles is not waited for as an answer is.
        self.deadline = Some((now + HOLDING, Due::Release));
        if end { self.held(out, now) } else { Ok(()) }
    }

    /// A task of a refusal.
    pub(in crate::proxy) fn hold(
        &mut self,
        task: HttpTask,
        out: &mut Vec<HttpTask>,
        now: Instant,
    ) -> pingora::Result<()> {
        let Reply::Holding(held, size) = &mut self.reply else { return Ok(()) };
        match task {
            HttpTask::Body(data, end) => {
                if let Some(data) = data {
                    *size += data.len();
                    held.body.push(data);
                }
                match () {
                    () if end => self.held(out, now),
                    () if *size > HELD_MAX => self.overflow(out, now),
                    () => Ok(()),
                }
            }
            HttpTask::Trailer(_) | HttpTask::Done => self.held(out, now),
            HttpTask::Failed(error) => self.cut(error, out, now),
            HttpTask::Header(..) | HttpTask::UpgradedBody(..) => Ok(()),
        }
    }

    /// The held reply is complete.
    fn held(&mut self, out: &mut Vec<HttpTask>, now: Instant) -> pingora::Result<()> {
        let Reply::Holding(held, _) = std::mem::replace(&mut self.reply, Reply::None) else { return Ok(()) };
        match self.judge(*held, now) {
            Next::Relay(held) => out.extend(self.relay(held, now)?),
            Next::Conclude => out.extend(self.conclude(now)?),
            Next::Retry => return Err(pingora::Error::new(RETRY)),
        }
        Ok(())
    }

    /// The held reply broke off: its head says what it means, and its beginning is shown only
    /// with its break.
    fn cut(
        &mut self,
        error: Box<pingora::Error>,
        out: &mut Vec<HttpTask>,
        now: Instant,
    ) -> pingora::Result<()> {
        self.overflow(out, now)?;
        if matches!(&self.reply, Reply::Passing(passing) if passing.goes_on()) {
            out.push(HttpTask::Failed(error));
        }
        Ok(())
    }

    /// The held reply is too large or too slow to hold: it goes elsewhere or out now, without its end.
    fn overflow(&mut self, out: &mut Vec<HttpTask>, now: Instant) -> pingora::Result<()> {
        let Reply::Holding(held, _) = std::mem::replace(&mut self.reply, Reply::None) else { return Ok(()) };
        let (mut header, pieces) = (held.header.clone(), held.body.clone());
        match self.judge_unfinished(*held, now) {
            Next::Relay(_) => {
                self.correct_hints(&mut header, now)?;
                self.begin_passing(&mut header, now)?;
                self.wait_for_more(now);
                out.push(HttpTask::Header(header, false));
                for piece in pieces {
                    self.pass(HttpTask::Body(Some(piece), false), out);
                }
                Ok(())
            }
            Next::Conclude => {
                out.extend(self.conclude(now)?);
                Ok(())
            }
            Next::Retry => Err(pingora::Error::new(RETRY)),
        }
    }

    /// Whether this is a stream that Azure may refuse after its head. One that is fetched again
    /// is the story of another call, whatever became of that.
    pub(in crate::proxy) fn may_be_refused(&self, header: &ResponseHeader) -> bool {
        let operation = self.course.as_ref().map(|course| course.admitted.target.operation);
        header.status == StatusCode::OK
            && self.method == Method::POST
            && is_stream(header)
            && !self.gateway().hold().time.is_zero()
            && matches!(operation, Some(Operation::Chat | Operation::Completions | Operation::Responses))
    }

    pub(in crate::proxy) fn begin_opening(
        &mut self,
        header: Box<ResponseHeader>,
        now: Instant,
    ) -> pingora::Result<()> {
        let hold = self.gateway().hold();
        // A `retry-after` on a 200 has only been seen on streams that were then refused.
        let warned = header.headers.contains_key(http::header::RETRY_AFTER);
        let time = if warned { hold.time.max(HOLD_WARNED) } else { hold.time };
        self.deadline = Some((now + time, Due::Release));
        self.reply = Reply::Opening(Box::new(Opened {
            header,
            tasks: Vec::new(),
            size: 0,
            scanner: Scanner::new(usize::try_from(hold.size).unwrap_or(usize::MAX)),
            share: Budget::share(&self.budget, self.gateway().requests.body_memory),
        }));
        Ok(())
    }

    /// A task of a stream that has not yet said anything.
    pub(in crate::proxy) fn read_opening(
        &mut self,
        task: HttpTask,
        out: &mut Vec<HttpTask>,
        now: Instant,
    ) -> pingora::Result<()> {
        let most = self.gateway().hold().size;
        let Some(operation) = self.course.as_ref().map(|course| course.admitted.target.operation) else {
            return Ok(());
        };
        let Reply::Opening(opened) = &mut self.reply else { return Ok(()) };
        let mut refused = None;
        let mut over = task.is_end();
        match &task {
            HttpTask::Body(Some(data), _) => {
                let mut content = false;
                opened.scanner.feed(data, &mut |event| match opening(operation, &event) {
                    Opening::Content => content |= refused.is_none(),
                    Opening::Error if !content && refused.is_none() => refused = Some(event.data.to_vec()),
                    Opening::Error | Opening::Quiet => {}
                });
                opened.size += data.len() as u64;
                over |= content || opened.size > most || opened.share.grow_to(opened.size).is_err();
            }
            HttpTask::Failed(_) => {
                // Nothing has been shown to the client: it is as if there had been no reply.
                let HttpTask::Failed(error) = task else { return Ok(()) };
                return Err(error);
            }
            _ => {}
        }
        opened.tasks.push(task);
        if let Some(event) = refused {
            let header = opened.header.clone();
            match self.judge_opening(&header, &event, now) {
                None => over = true,
                Some(Next::Retry) => return Err(pingora::Error::new(RETRY)),
                Some(Next::Conclude | Next::Relay(_)) => {
                    self.reply = Reply::None;
                    out.extend(self.conclude(now)?);
                    return Ok(());
                }
            }
        }
        if over { self.release(out, now) } else { Ok(()) }
    }

    /// The held part of a stream goes out, and what follows as it comes.
    fn release(&mut self, out: &mut Vec<HttpTask>, now: Instant) -> pingora::Result<()> {
        let Reply::Opening(opened) = std::mem::replace(&mut self.reply, Reply::None) else { return Ok(()) };
        let Opened { mut header, tasks, .. } = *opened;
        self.wait_for_more(now);
        self.begin_passing(&mut header, now)?;
        out.push(HttpTask::Header(header, false));
        for task in tasks {
            self.pass(task, out);
        }
        Ok(())
    }

    /// What goes out because the time of the hold is over.
    ///
    /// # Errors
    /// [`RETRY`] when somebody else is to be asked.
    pub(in crate::proxy) fn overdue(&mut self, now: Instant) -> pingora::Result<Vec<HttpTask>> {
        let mut out = Vec::new();
        match self.reply {
            Reply::Holding(..) => self.overflow(&mut out, now)?,
            _ => self.release(&mut out, now)?,
        }
        Ok(out)
    }
}
