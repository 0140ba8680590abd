//! The reply on its way to the client: held back (`hold.rs`) until it is known to be the answer,
//! then passed on while tokens and text are read from it.
//!
//! Bytes pass unchanged, except for the usage event of a stream that only the balancer asked
//! for. What a complete reply means is `judge.rs`'s.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use openssl::sha::Sha256;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use super::final_response::Held;
use super::hold::Opened;
use super::retry_state::Due;
use super::upstream_error::Trouble;
use crate::azure::Operation;
use crate::azure::response::answer::Answer;
use crate::azure::response::body::ReplyBody;
use crate::azure::response::sse::{Scanner, UsageFilter};
use crate::names::Deployment;
use crate::proxy::context::RequestContext;
use crate::record::exchange::Answered;

/// Another backend is asked: the reply was held back and is no answer.
pub(in crate::proxy) const RETRY: pingora::ErrorType = pingora::ErrorType::Custom("RetryableReply");
/// No response head in time.
pub(in crate::proxy) const FIRST_BYTE: pingora::ErrorType = pingora::ErrorType::Custom("FirstByteTimeout");
/// Silence in the middle of a reply.
pub(in crate::proxy) const IDLE: pingora::ErrorType = pingora::ErrorType::Custom("IdleTimeout");
/// A reply that no client asked for.
const UNSOLICITED: pingora::ErrorType = pingora::ErrorType::Custom("UnsolicitedUpgrade");

/// Most bytes of a reply that are kept whole; of a longer one, such as a few thousand
/// embeddings, the end, which tells the usage.
const REPLY_MAX: usize = 1024 * 1024;
/// The same of one with pictures, whose size and digest are written down.
const PICTURES_MAX: usize = 16 * 1024 * 1024;
/// Most bytes of an event that is looked at; `response.created` repeats the whole request.
const EVENT_MAX: usize = 1024 * 1024;

/// Most bytes of a stream's text that are kept until it has told its tokens.
const ESTIMATED: usize = 1024 * 1024;

/// Most bytes of an event that is held back to see whether it is the usage event, which has
/// some hundred.
const USAGE_EVENT_MAX: usize = 64 * 1024;

/// The reply under way.
pub(in crate::proxy) enum Reply {
    /// None yet.
    None,
    /// A refusal, not yet complete.
    Holding(Box<Held>, usize),
    /// A stream before its first content, which may yet be a refusal.
    Opening(Box<Opened>),
    /// The answer.
    Passing(Box<Passing>),
}

/// An answer that is passed on.
pub(in crate::proxy) struct Passing {
    content: Content,
    filter: Option<UsageFilter>,
    seen: Facts,
    ended: bool,
    /// The client has got something else, whole.
    over: bool,
    /// Whether a stream of this kind has a last event that says so.
    terminates: bool,
}

enum Content {
    Opaque,
    /// Sound or pictures.
    Binary {
        sha256: Box<Sha256>,
        bytes: u64,
    },
    Reply {
        body: ReplyBody,
        is_json: bool,
    },
    Stream {
        scanner: Scanner,
        answer: Box<Answer>,
    },
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Ending {
    /// Its last event said so.
    Said,
    /// Its framing said so.
    Framed,
    /// It broke off, ended without its last event, or in an error.
    Broken,
}

/// What the record wants to know of an answer.
#[derive(Default)]
pub(in crate::proxy) struct Facts {
    pub(in crate::proxy) region: Option<String>,
    pub(in crate::proxy) apim_request_id: Option<String>,
    /// The deployment that answered in place of a provisioned one that was full.
    pub(in crate::proxy) spilled_to: Option<Deployment>,
    pub(in crate::proxy) answered: Answered,
}

static APIM_REQUEST_ID: HeaderName = HeaderName::from_static("apim-request-id");
static X_MS_DEPLOYMENT_NAME: HeaderName = HeaderName::from_static("x-ms-deployment-name");
static X_MS_REGION: HeaderName = HeaderName::from_static("x-ms-region");
static X_MS_SPILLOVER_FROM_DEPLOYMENT: HeaderName = HeaderName::from_static("x-ms-spillover-from-deployment");

impl Facts {
    fn of(headers: &HeaderMap) -> Self {
        let text =
            |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // Azure OpenAI, "Manage traffic with spillover": both headers come with such an answer.
        let is_spilled = headers.contains_key(&X_MS_SPILLOVER_FROM_DEPLOYMENT);
        let served = if is_spilled { text(&X_MS_DEPLOYMENT_NAME) } else { None };
        Self {
            spilled_to: served.and_then(|name| Deployment::parse(&name).ok()),
            region: text(&X_MS_REGION),
            apim_request_id: text(&APIM_REQUEST_ID),
            answered: Answered::Opaque,
        }
    }
}

impl Passing {
    /// Whether it has ended, or said that it is over: SDKs hang up on that.
    pub(in crate::proxy) fn is_told(&self) -> bool {
        self.ended || matches!(&self.content, Content::Stream { answer, .. } if answer.terminal)
    }

    /// What was seen, and how it ended; what follows is passed on and not looked at.
    pub(in crate::proxy) fn tell(&mut self) -> (Facts, Ending) {
        let mut seen = std::mem::take(&mut self.seen);
        let mut ending = if self.ended { Ending::Framed } else { Ending::Broken };
        seen.answered = match std::mem::replace(&mut self.content, Content::Opaque) {
            Content::Opaque => seen.answered,
            Content::Binary { sha256, bytes } => Answered::Binary { bytes, sha256: sha256.finish() },
            Content::Reply { body, is_json } => Answered::Reply { body, is_json },
            Content::Stream { mut scanner, mut answer } => {
                scanner.finish(&mut |event| answer.event(&event));
                if answer.terminal && answer.failed.is_none() {
                    ending = Ending::Said;
                } else if self.terminates || answer.terminal {
                    ending = Ending::Broken;
                }
                Answered::Stream(answer)
            }
        };
        (seen, ending)
    }

    /// Whether more of it is to come.
    pub(in crate::proxy) fn goes_on(&self) -> bool {
        !self.over
    }

    fn feed(&mut self, data: &Bytes) {
        match &mut self.content {
            Content::Opaque => {}
            Content::Binary { sha256, bytes } => {
                sha256.update(data);
                *bytes += data.len() as u64;
            }
            Content::Reply { body, .. } => body.feed(data),
            Content::Stream { scanner, answer } => scanner.feed(data, &mut |event| answer.event(&event)),
        }
    }
}

impl RequestContext {
    /// Takes in what came from upstream and gives what goes to the client now.
    ///
    /// # Errors
    /// [`RETRY`] when somebody else is to be asked, and what upstream failed with.
    pub(in crate::proxy) fn receive(
        &mut self,
        tasks: Vec<HttpTask>,
        now: Instant,
    ) -> pingora::Result<Vec<HttpTask>> {
        if self.deadline.is_some() && matches!(self.reply, Reply::Passing(_)) {
            self.wait_for_more(now);
        }
        let mut out = Vec::with_capacity(tasks.len());
        for task in tasks {
            match &mut self.reply {
                Reply::None => self.open(task, &mut out, now)?,
                Reply::Holding(..) => self.hold(task, &mut out, now)?,
                Reply::Opening(_) => self.read_opening(task, &mut out, now)?,
                Reply::Passing(_) => self.pass(task, &mut out),
            }
        }
        Ok(out)
    }

    /// The first task of a reply: its head.
    fn open(&mut self, task: HttpTask, out: &mut Vec<HttpTask>, now: Instant) -> pingora::Result<()> {
        let (mut header, end) = match task {
            HttpTask::Header(header, end) => (header, end),
            HttpTask::Failed(error) => return Err(error),
            other => {
                out.push(other);
                return Ok(());
            }
        };
        if header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        if header.status == StatusCode::SWITCHING_PROTOCOLS {
            if !self.upgrades {
                return Err(pingora::Error::explain(UNSOLICITED, "101 without a request for it").into_up());
            }
            self.deadline = None;
        }
        if !self.gateway().passes(header.status.as_u16()) {
            return self.begin_holding(header, end, out, now);
        }
        if !end && self.may_be_refused(&header) {
            return self.begin_opening(header, now);
        }
        self.begin_passing(&mut header, now)?;
        if header.status != StatusCode::SWITCHING_PROTOCOLS {
            self.wait_for_more(now);
        }
        out.push(HttpTask::Header(header, end));
        if end {
            self.ended();
        }
        Ok(())
    }

    pub(in crate::proxy) fn wait_for_more(&mut self, now: Instant) {
        self.deadline = Some((now + self.gateway().timeouts.idle, Due::GiveUp(Trouble::IdleTimeout)));
    }

    /// From here on bytes go out as they come in.
    pub(in crate::proxy) fn begin_passing(
        &mut self,
        header: &mut ResponseHeader,
        now: Instant,
    ) -> pingora::Result<()> {
        self.answered(header, now);
        self.end.status = Some(header.status.as_u16());
        self.sign(header)?;
        let filter = self
            .course
            .as_ref()
            .is_some_and(super::retry_state::RetryState::asks_usage)
            .then(|| UsageFilter::new(USAGE_EVENT_MAX));
        let filter = filter.filter(|_| is_stream(header));
        if filter.is_some() && header.remove_header(&http::header::CONTENT_LENGTH).is_some() {
            header.insert_header(http::header::TRANSFER_ENCODING, "chunked")?;
        }
        if !self.knows_chunks {
            header.remove_header(&http::header::TRANSFER_ENCODING);
        }
        let operation = self.course.as_ref().map(|course| course.admitted.target.operation);
        let passing = Passing {
            content: self.content(header),
            filter,
            seen: Facts::of(&header.headers),
            // A tunnel has no end but that one side hangs up.
            ended: header.status == StatusCode::SWITCHING_PROTOCOLS,
            over: false,
            terminates: matches!(
                operation,
                Some(Operation::Chat | Operation::Completions | Operation::Responses)
            ),
        };
        self.reply = Reply::Passing(Box::new(passing));
        Ok(())
    }

    /// How this answer is read for the record, if at all.
    fn content(&self, header: &ResponseHeader) -> Content {
        let Some(course) = &self.course else { return Content::Opaque };
        let keep = self.gateway().keep(self.client.as_deref());
        // The text of a stream is also what its tokens are estimated from if it breaks off.
        let limit = if keep.estimates { keep.gather.max(ESTIMATED) } else { 0 };
        let coded =
            header.headers.get(http::header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        match () {
            () if coded || !header.status.is_success() => Content::Opaque,
            () if is_stream(header) => Content::Stream {
                scanner: Scanner::new(EVENT_MAX),
                answer: Box::new(Answer::new(course.admitted.target.operation, limit)),
            },
            () if is_json(header) => {
                let is_pictures = course.admitted.target.operation == Operation::Images && keep.completion;
                let most = if is_pictures { PICTURES_MAX } else { REPLY_MAX };
                Content::Reply { body: ReplyBody::new(most), is_json: true }
            }
            () if keep.completion && is_binary(header) => {
                Content::Binary { sha256: Box::new(Sha256::new()), bytes: 0 }
            }
            () if is_text(header) => Content::Reply { body: ReplyBody::new(REPLY_MAX), is_json: false },
            () => Content::Opaque,
        }
    }

    pub(in crate::proxy) fn pass(&mut self, task: HttpTask, out: &mut Vec<HttpTask>) {
        let Reply::Passing(passing) = &mut self.reply else { return };
        if passing.over {
            // The rest of a reply that the client does not get.
            return;
        }
        let end = task.is_end() && !matches!(task, HttpTask::Failed(_));
        if let HttpTask::Body(Some(data), _) = &task {
            passing.feed(data);
        }
        passing.ended |= end;
        let start = out.len();
        match (&mut passing.filter, task) {
            (Some(filter), HttpTask::Body(data, _)) => {
                let mut send = |piece| out.push(HttpTask::Body(Some(piece), false));
                if let Some(data) = &data {
                    filter.feed(data, &mut send);
                }
                if end {
                    filter.finish(&mut send);
                    out.push(HttpTask::Body(None, true));
                }
            }
            (Some(filter), task @ (HttpTask::Trailer(_) | HttpTask::Done)) => {
                filter.finish(&mut |piece| out.push(HttpTask::Body(Some(piece), false)));
                out.push(task);
            }
            (_, task) => out.push(task),
        }
        for task in out.iter().skip(start) {
            if let HttpTask::Body(Some(data), _) | HttpTask::UpgradedBody(Some(data), _) = task {
                self.end.sent(data.len(), self.arrival);
            }
        }
    }

    fn ended(&mut self) {
        if let Reply::Passing(passing) = &mut self.reply {
            passing.ended = true;
        }
    }

    /// Takes note of what the record wants to know of a reply that is relayed from the hold.
    pub(in crate::proxy) fn keep_facts(&mut self, header: &ResponseHeader) {
        let seen = Facts::of(&header.headers);
        let passing = Passing {
            content: Content::Opaque,
            filter: None,
            seen,
            ended: true,
            over: true,
            terminates: false,
        };
        self.reply = Reply::Passing(Box::new(passing));
    }
}

/// Whether a reply is a stream of events.
pub(in crate::proxy) fn is_stream(header: &ResponseHeader) -> bool {
    content_type(header).starts_with(b"text/event-stream")
}

fn is_json(header: &ResponseHeader) -> bool {
    content_type(header).starts_with(b"application/json")
}

fn is_binary(header: &ResponseHeader) -> bool {
    let kinds: [&[u8]; 4] = [b"audio/", b"image/", b"video/", b"application/octet-stream"];
    kinds.iter().any(|kind| content_type(header).starts_with(kind))
}

fn is_text(header: &ResponseHeader) -> bool {
    content_type(header).starts_with(b"text/")
}

fn content_type(header: &ResponseHeader) -> &[u8] {
    header.headers.get(http::header::CONTENT_TYPE).map_or(b"", |value| value.as_bytes())
}
