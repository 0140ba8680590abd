//! Takes what a backend sends and decides what the client gets of it now: a response that may lead to
//! another attempt is held until it is complete, a stream until its first content, and everything else
//! is passed on as it comes. What a complete response means is `outcome.rs`'s.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::{Error, Result};

use super::deadline::{AttemptDeadline, DeadlineAction};
use super::final_response::{conclude, correct_retry_hints, relay_held, set_common_headers};
use super::held_response::HeldResponse;
use super::held_stream::{HeldStream, HeldStreamState};
use super::outcome::AfterResponse;
use super::relayed_response::{RelayedResponse, is_event_stream};
use super::response_state::ResponseState;
use crate::azure::Operation;
use crate::proxy::client::body_memory::BodyMemory;
use crate::proxy::context::RequestContext;
use crate::proxy::error_types::{RETRY_ELSEWHERE, UNSOLICITED_UPGRADE};

/// Most bytes of an error response that are held; error bodies of Azure have some hundred.
const MAX_HELD_BYTES: usize = 64 * 1024;
/// How long an error response may take from its head to its end.
const HELD_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stream is held whose head has `retry-after`.
const WARNED_HOLD_TIME: Duration = Duration::from_secs(5);

/// Handles what came of a response at one moment.
pub(super) struct ResponseHandler<'c> {
    context: &'c mut RequestContext,
    now: Instant,
    /// What the client gets now.
    out: Vec<HttpTask>,
}

impl<'c> ResponseHandler<'c> {
    pub(in crate::proxy) fn new(context: &'c mut RequestContext, now: Instant) -> Self {
        Self { context, now, out: Vec::new() }
    }

    /// Takes parts of the response and returns what the client gets now.
    ///
    /// # Errors
    /// [`RETRY_ELSEWHERE`] when another backend is to be tried, and what upstream failed with.
    pub(super) fn receive(mut self, tasks: Vec<HttpTask>) -> Result<Vec<HttpTask>> {
        if self.context.deadline.is_some() && matches!(self.context.response, ResponseState::Relayed(_)) {
            self.context.restart_idle_deadline(self.now);
        }
        self.out.reserve_exact(tasks.len());
        for task in tasks {
            match &mut self.context.response {
                ResponseState::Awaited => self.on_first_task(task)?,
                ResponseState::HeldResponse(_) => self.on_held_task(task)?,
                ResponseState::HeldStream(_) => self.on_stream_task(task)?,
                ResponseState::Relayed(_) => self.relay(task),
            }
        }
        Ok(self.out)
    }

    /// Returns what the client gets because the time of the hold is over.
    ///
    /// # Errors
    /// [`RETRY_ELSEWHERE`] when another backend is to be tried.
    pub(super) fn release_held(mut self) -> Result<Vec<HttpTask>> {
        match self.context.response {
            ResponseState::HeldResponse(_) => self.judge_incomplete()?,
            _ => self.release_stream()?,
        }
        Ok(self.out)
    }

    /// The first task of a response is its head.
    fn on_first_task(&mut self, task: HttpTask) -> Result<()> {
        let (mut header, is_end) = match task {
            HttpTask::Header(header, is_end) => (header, is_end),
            HttpTask::Failed(error) => return Err(error),
            other => {
                self.out.push(other);
                return Ok(());
            }
        };
        let is_upgrade = header.status == StatusCode::SWITCHING_PROTOCOLS;
        // 100 and 103 are the backend's word to the balancer, which has sent the body anyway.
        if header.status.is_informational() && !is_upgrade {
            return Ok(());
        }
        if is_upgrade {
            // The engine passes a 101 on although neither side asked for it.
            if !self.context.request.is_upgrade {
                let error = Error::explain(UNSOLICITED_UPGRADE, "101 without a request for an upgrade");
                return Err(error.into_up());
            }
            self.context.deadline = None;
        }
        if !self.context.gateway().relays_without_reading_body(header.status.as_u16()) {
            return self.hold_response(header, is_end);
        }
        if !is_end && self.may_be_refused_later(&header) {
            self.hold_stream(header);
            return Ok(());
        }
        self.begin_relay(&mut header)?;
        if !is_upgrade {
            self.context.restart_idle_deadline(self.now);
        }
        self.out.push(HttpTask::Header(header, is_end));
        if is_end && let ResponseState::Relayed(relayed) = &mut self.context.response {
            relayed.note_end();
        }
        Ok(())
    }

    /// Begins to hold a response that may lead to another attempt.
    fn hold_response(&mut self, header: Box<ResponseHeader>, is_end: bool) -> Result<()> {
        self.context.response = ResponseState::HeldResponse(Box::new(HeldResponse::new(header)));
        // Error responses are short; one that trickles does not get the time of an answer.
        self.set_release_deadline(HELD_RESPONSE_TIMEOUT);
        if is_end { self.judge_complete() } else { Ok(()) }
    }

    fn on_held_task(&mut self, task: HttpTask) -> Result<()> {
        let ResponseState::HeldResponse(held) = &mut self.context.response else { return Ok(()) };
        match task {
            HttpTask::Body(data, is_end) => {
                if let Some(data) = data {
                    held.push(data);
                }
                match () {
                    () if is_end => self.judge_complete(),
                    () if held.size > MAX_HELD_BYTES => self.judge_incomplete(),
                    () => Ok(()),
                }
            }
            HttpTask::Trailer(_) | HttpTask::Done => self.judge_complete(),
            HttpTask::Failed(error) => {
                // The head says what the response means; if its beginning goes to the client, so
                // does its break.
                self.judge_incomplete()?;
                if self.context.response.is_passed_on() {
                    self.out.push(HttpTask::Failed(error));
                }
                Ok(())
            }
            HttpTask::Header(..) | HttpTask::UpgradedBody(..) => Ok(()),
        }
    }

    /// The held response is complete.
    fn judge_complete(&mut self) -> Result<()> {
        let ResponseState::HeldResponse(held) = self.context.response.take() else { return Ok(()) };
        let is_body_consumed = self.context.body.is_consumed;
        let Some(retry) = &mut self.context.retry else { return self.send_held(*held) };
        match retry.on_complete_response(*held, is_body_consumed, self.now) {
            AfterResponse::Relay(held) => self.send_held(held),
            AfterResponse::Conclude => self.conclude(),
            AfterResponse::Retry => Err(Error::new(RETRY_ELSEWHERE)),
        }
    }

    /// The held response is too large or too slow to hold, or broke off: another backend is tried, or
    /// the client gets its beginning now.
    fn judge_incomplete(&mut self) -> Result<()> {
        let ResponseState::HeldResponse(held) = self.context.response.take() else { return Ok(()) };
        let (mut header, pieces) = (held.header.clone(), held.body.clone());
        let is_body_consumed = self.context.body.is_consumed;
        let after = match &mut self.context.retry {
            Some(retry) => retry.on_incomplete_response(*held, is_body_consumed, self.now),
            None => AfterResponse::Relay(*held),
        };
        match after {
            AfterResponse::Relay(_) => {
                correct_retry_hints(self.context, &mut header, self.now)?;
                self.begin_relay(&mut header)?;
                self.context.restart_idle_deadline(self.now);
                self.out.push(HttpTask::Header(header, false));
                for piece in pieces {
                    self.relay(HttpTask::Body(Some(piece), false));
                }
                Ok(())
            }
            AfterResponse::Conclude => self.conclude(),
            AfterResponse::Retry => Err(Error::new(RETRY_ELSEWHERE)),
        }
    }

    /// Whether this is a stream that Azure may refuse after its head. A response that is fetched again
    /// (GET) tells the story of another request, whatever became of that one.
    fn may_be_refused_later(&self, header: &ResponseHeader) -> bool {
        header.status == StatusCode::OK
            && self.context.request.method == Method::POST
            && is_event_stream(header)
            && !self.context.gateway().stream_hold_limits().max_time.is_zero()
            && matches!(
                self.operation(),
                Some(Operation::Chat | Operation::Completions | Operation::Responses)
            )
    }

    /// Begins to hold a stream until its first content.
    fn hold_stream(&mut self, header: Box<ResponseHeader>) {
        let limits = self.context.gateway().stream_hold_limits();
        // A `retry-after` on a 200 has only been seen on streams that were then refused.
        let is_warned = header.headers.contains_key(http::header::RETRY_AFTER);
        self.set_release_deadline(if is_warned {
            limits.max_time.max(WARNED_HOLD_TIME)
        } else {
            limits.max_time
        });
        let memory_limit = self.context.gateway().request_config.max_total_buffered_bytes;
        let reservation = BodyMemory::reservation(&self.context.memory, memory_limit);
        let held = HeldStream::new(header, limits.max_bytes, reservation);
        self.context.response = ResponseState::HeldStream(Box::new(held));
    }

    fn on_stream_task(&mut self, task: HttpTask) -> Result<()> {
        let Some(operation) = self.operation() else { return Ok(()) };
        let ResponseState::HeldStream(held) = &mut self.context.response else { return Ok(()) };
        match held.push(task, operation)? {
            HeldStreamState::Undecided => Ok(()),
            HeldStreamState::Ready => self.release_stream(),
            HeldStreamState::Refused(event) => self.judge_error_event(&event),
        }
    }

    /// A stream of status 200 begins with an error: it is the refusal that the error stands for.
    fn judge_error_event(&mut self, event: &[u8]) -> Result<()> {
        let ResponseState::HeldStream(held) = &self.context.response else { return Ok(()) };
        let is_body_consumed = self.context.body.is_consumed;
        let after = self
            .context
            .retry
            .as_mut()
            .and_then(|retry| retry.on_error_event(&held.header, event, is_body_consumed, self.now));
        match after {
            None => self.release_stream(),
            Some(AfterResponse::Retry) => Err(Error::new(RETRY_ELSEWHERE)),
            Some(AfterResponse::Conclude | AfterResponse::Relay(_)) => {
                self.context.response = ResponseState::Awaited;
                self.conclude()
            }
        }
    }

    /// The held part of a stream goes to the client, and what follows as it comes.
    fn release_stream(&mut self) -> Result<()> {
        let ResponseState::HeldStream(held) = self.context.response.take() else { return Ok(()) };
        let HeldStream { mut header, tasks, .. } = *held;
        self.context.restart_idle_deadline(self.now);
        self.begin_relay(&mut header)?;
        self.out.push(HttpTask::Header(header, false));
        for task in tasks {
            self.relay(task);
        }
        Ok(())
    }

    /// From here on the response goes to the client as it comes.
    fn begin_relay(&mut self, header: &mut ResponseHeader) -> Result<()> {
        if let Some(retry) = &mut self.context.retry {
            retry.on_relayed_response(header, self.now);
        }
        self.context.ending.status = Some(header.status.as_u16());
        set_common_headers(self.context, header)?;
        let removes_usage = self.context.retry.as_ref().is_some_and(|retry| retry.asks_for_usage());
        let policy = self.context.gateway().capture_policy(self.context.request.client.as_deref());
        let relayed = RelayedResponse::new(header, self.operation(), policy, removes_usage);
        // The body becomes shorter by the usage event.
        if relayed.removes_usage_event() && header.remove_header(&http::header::CONTENT_LENGTH).is_some() {
            header.insert_header(http::header::TRANSFER_ENCODING, "chunked")?;
        }
        if !self.context.request.supports_chunked {
            header.remove_header(&http::header::TRANSFER_ENCODING);
        }
        self.context.response = ResponseState::Relayed(Box::new(relayed));
        Ok(())
    }

    fn relay(&mut self, task: HttpTask) {
        let ResponseState::Relayed(relayed) = &mut self.context.response else { return };
        let start = self.out.len();
        relayed.pass(task, &mut self.out);
        for task in self.out.iter().skip(start) {
            if let HttpTask::Body(Some(data), _) | HttpTask::UpgradedBody(Some(data), _) = task {
                self.context.ending.note_body_bytes(data.len(), self.context.request.arrival);
            }
        }
    }

    fn send_held(&mut self, held: HeldResponse) -> Result<()> {
        let tasks = relay_held(self.context, held, self.now)?;
        self.out.extend(tasks);
        Ok(())
    }

    fn conclude(&mut self) -> Result<()> {
        let tasks = conclude(self.context, self.now)?;
        self.out.extend(tasks);
        Ok(())
    }

    fn set_release_deadline(&mut self, time: Duration) {
        let action = DeadlineAction::ReleaseHeld;
        self.context.deadline = Some(AttemptDeadline { at: self.now + time, action });
    }

    fn operation(&self) -> Option<Operation> {
        self.context.retry.as_ref().map(|retry| retry.admitted.target.operation)
    }
}
