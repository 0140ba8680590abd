//! Decides what the client gets of a backend's response and when: a response that may lead to another
//! attempt is held until it is complete, a stream until its first content, and everything else is relayed
//! as it arrives. What a complete response means is decided in `outcome.rs`.

use std::time::{Duration, Instant};

use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::{Error, Result};

use super::deadline::{AttemptDeadline, DeadlineAction};
use super::final_response::{
    adjust_common_headers, correct_retry_hints, prepare_best_response_or_refusal, prepare_held_response,
};
use super::held_response::HeldResponse;
use super::held_stream::{HeldStream, HeldStreamState};
use super::outcome::AfterResponse;
use super::redaction::{may_quote_credential, redact_header};
use super::relayed_response::{RelayedResponse, is_event_stream};
use super::response_state::ResponseState;
use crate::azure::Operation;
use crate::credentials::CredentialRedactor;
use crate::proxy::context::RequestContext;
use crate::proxy::error_types::{NOT_ON_PINNED_RESOURCE, RETRY_ELSEWHERE, UNSOLICITED_UPGRADE};

/// Largest error response that is held; Azure's errors have a few hundred bytes.
const MAX_HELD_RESPONSE_BYTES: usize = 64 * 1024;
/// Longest time from the head to the end of a response that is held.
const HELD_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream whose head has `retry-after` is held for at least this long, unless it has content earlier.
const MIN_HOLD_WITH_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Handles the parts of a response that have arrived together. A new one is made for each arrival.
pub(in crate::proxy) struct ResponseHandler<'c> {
    context: &'c mut RequestContext,
    now: Instant,
    /// What is written to the client now.
    output: Vec<HttpTask>,
}

impl<'c> ResponseHandler<'c> {
    pub(in crate::proxy) fn new(context: &'c mut RequestContext, now: Instant) -> Self {
        Self { context, now, output: Vec::new() }
    }

    /// Handles these parts of the response; returns what is to be written to the client now.
    ///
    /// # Errors
    /// [`RETRY_ELSEWHERE`] if another attempt is to be made, and the error of a response that failed
    /// before the client got any of it.
    pub(in crate::proxy) fn handle_tasks(mut self, tasks: Vec<HttpTask>) -> Result<Vec<HttpTask>> {
        self.output.reserve_exact(tasks.len());
        for task in tasks {
            match &mut self.context.response_state {
                ResponseState::Awaited => self.on_first_task(task)?,
                ResponseState::HeldResponse(_) => self.on_held_response_task(task)?,
                ResponseState::HeldStream(_) => self.on_held_stream_task(task)?,
                ResponseState::Relayed(_) => self.relay_task(task),
            }
        }
        Ok(self.output)
    }

    /// Ends the hold, because its deadline has passed; returns what is to be written to the client now.
    ///
    /// # Errors
    /// [`RETRY_ELSEWHERE`] if another attempt is to be made.
    pub(in crate::proxy) fn end_hold(mut self) -> Result<Vec<HttpTask>> {
        match self.context.response_state {
            ResponseState::HeldResponse(_) => self.act_on_incomplete_response()?,
            _ => self.release_stream(None)?,
        }
        Ok(self.output)
    }

    /// Handles the response head and decides what becomes of the response.
    fn on_first_task(&mut self, task: HttpTask) -> Result<()> {
        let (mut header, is_end) = match task {
            HttpTask::Header(header, is_end) => (header, is_end),
            HttpTask::Failed(error) => return Err(error),
            other => {
                self.output.push(other);
                return Ok(());
            }
        };
        let is_upgrade = header.status == StatusCode::SWITCHING_PROTOCOLS;
        // Interim responses are not relayed. A 100 concerns the connection to the backend only: `Expect` is
        // never forwarded, and the client has had a 100 of its own.
        if header.status.is_informational() && !is_upgrade {
            return Ok(());
        }
        if let Some(retry) = &mut self.context.retry_state {
            retry.on_response_head(self.now);
        }
        if is_upgrade {
            // Pingora's sessions do not check this. Without this test the runner would relay the 101 as a
            // final response, whose body ends with the connection.
            if !self.context.request.is_websocket_upgrade {
                let error =
                    Error::explain(UNSOLICITED_UPGRADE, "101 in response to a request that is no upgrade");
                return Err(error.into_up());
            }
            // Browsers fail a connection for which none of the subprotocols that they offered is selected.
            if let Some(offered) = &self.context.request.offered_subprotocol
                && !header.headers.contains_key(SEC_WEBSOCKET_PROTOCOL)
            {
                header.insert_header(SEC_WEBSOCKET_PROTOCOL, offered.as_str())?;
            }
            // The first-byte timeout ends; `tunnel.rs` has a deadline of its own.
            self.context.attempt_deadline = None;
        }
        if let Some(redactor) = self.redactor_for_status(header.status) {
            redact_header(&redactor, &mut header)?;
        }
        if !self.context.gateway().relays_without_reading_body(header.status.as_u16()) {
            return self.hold_response(header, is_end);
        }
        if !is_end && self.may_be_refused_after_head(&header) {
            self.hold_stream(header);
            return Ok(());
        }
        let redactor = self.redactor_for_status(header.status);
        self.begin_relay(&mut header, redactor)?;
        if !is_upgrade {
            self.context.restart_idle_deadline(self.now);
        }
        self.output.push(HttpTask::Header(header, is_end));
        if is_end && let ResponseState::Relayed(relayed) = &mut self.context.response_state {
            relayed.note_ended_with_head();
        }
        Ok(())
    }

    /// Begins to hold a response that may lead to another attempt.
    fn hold_response(&mut self, header: Box<ResponseHeader>, is_end: bool) -> Result<()> {
        self.context.response_state = ResponseState::HeldResponse(Box::new(HeldResponse::new(header)));
        // Error responses are short. One that arrives slowly must not delay the next attempt for as long as
        // an answer may take.
        self.set_hold_deadline(HELD_RESPONSE_TIMEOUT);
        if is_end { self.act_on_complete_response() } else { Ok(()) }
    }

    /// Handles the next part of a response that is held.
    fn on_held_response_task(&mut self, task: HttpTask) -> Result<()> {
        let ResponseState::HeldResponse(held) = &mut self.context.response_state else { return Ok(()) };
        match task {
            HttpTask::Body(data, is_end) => {
                if let Some(data) = data {
                    held.push(data);
                }
                match () {
                    () if is_end => self.act_on_complete_response(),
                    () if held.body_size > MAX_HELD_RESPONSE_BYTES => self.act_on_incomplete_response(),
                    () => Ok(()),
                }
            }
            HttpTask::Trailer(_) | HttpTask::Done => self.act_on_complete_response(),
            HttpTask::Failed(error) => {
                // The head is enough to know what the response means. If what has arrived of it goes to the
                // client, the failure has to follow, so that the response does not look complete.
                self.act_on_incomplete_response()?;
                if self.context.response_state.is_relaying() {
                    self.output.push(HttpTask::Failed(error));
                }
                Ok(())
            }
            HttpTask::Header(..) | HttpTask::UpgradedBody(..) => Ok(()),
        }
    }

    /// Acts on a held response that is complete.
    fn act_on_complete_response(&mut self) -> Result<()> {
        let ResponseState::HeldResponse(mut held) = self.context.response_state.take() else {
            return Ok(());
        };
        if let Some(redactor) = self.redactor_for_status(held.header.status) {
            held.redact_body(&redactor);
        }
        let is_body_consumed = self.context.body.is_no_longer_replayable;
        let Some(retry) = &mut self.context.retry_state else { return self.send_held_response(*held) };
        match retry.on_complete_response(*held, is_body_consumed, self.now) {
            AfterResponse::Relay(held) => self.send_held_response(held),
            AfterResponse::Exhausted => self.send_final_response(),
            AfterResponse::Retry => Err(Error::new(RETRY_ELSEWHERE)),
        }
    }

    /// Acts on a held response that is too large or too slow to hold, or failed: another attempt is made,
    /// or the client gets what has arrived and then the rest as it arrives.
    fn act_on_incomplete_response(&mut self) -> Result<()> {
        let ResponseState::HeldResponse(held) = self.context.response_state.take() else { return Ok(()) };
        // Cloned, because the response may come back without its body.
        let (mut header, pieces) = (held.header.clone(), held.body_pieces.clone());
        let is_body_consumed = self.context.body.is_no_longer_replayable;
        let after = match &mut self.context.retry_state {
            Some(retry) => retry.on_incomplete_response(*held, is_body_consumed, self.now),
            None => AfterResponse::Relay(*held),
        };
        match after {
            AfterResponse::Relay(_) => {
                correct_retry_hints(self.context, &mut header, self.now)?;
                let redactor = self.redactor_for_status(header.status);
                self.begin_relay(&mut header, redactor)?;
                self.context.restart_idle_deadline(self.now);
                self.output.push(HttpTask::Header(header, false));
                for piece in pieces {
                    self.relay_task(HttpTask::Body(Some(piece), false));
                }
                Ok(())
            }
            AfterResponse::Exhausted => self.send_final_response(),
            AfterResponse::Retry => Err(Error::new(RETRY_ELSEWHERE)),
        }
    }

    /// Whether this is the head of a stream in which Azure may still refuse the request: a throttled
    /// `POST /responses` often gets status 200 and then an error event. A GET replays the events of an
    /// earlier request; an error among them is that one's.
    fn may_be_refused_after_head(&self, header: &ResponseHeader) -> bool {
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
        // In recorded traffic only streams that Azure then refused had a `retry-after` on the 200. So the error
        // event is worth waiting for.
        let has_retry_after = header.headers.contains_key(http::header::RETRY_AFTER);
        self.set_hold_deadline(if has_retry_after {
            limits.max_time.max(MIN_HOLD_WITH_RETRY_AFTER)
        } else {
            limits.max_time
        });
        let held = HeldStream::new(header, limits.max_bytes, self.context.empty_memory_reservation());
        self.context.response_state = ResponseState::HeldStream(Box::new(held));
    }

    /// Handles the next part of a stream that is held.
    fn on_held_stream_task(&mut self, task: HttpTask) -> Result<()> {
        let Some(operation) = self.operation() else { return Ok(()) };
        let ResponseState::HeldStream(held) = &mut self.context.response_state else { return Ok(()) };
        match held.push(task, operation)? {
            HeldStreamState::Undecided => Ok(()),
            HeldStreamState::MustRelease => self.release_stream(None),
            HeldStreamState::ErrorBeforeContent(event) => self.act_on_error_event(&event),
        }
    }

    /// Acts on a stream of status 200 that begins with an error event: it counts as a response with the
    /// error's status.
    fn act_on_error_event(&mut self, event: &[u8]) -> Result<()> {
        let ResponseState::HeldStream(held) = &self.context.response_state else { return Ok(()) };
        let is_body_consumed = self.context.body.is_no_longer_replayable;
        let after = self
            .context
            .retry_state
            .as_mut()
            .and_then(|retry| retry.on_error_event(&held.header, event, is_body_consumed, self.now));
        match after {
            // Its error event may quote the credential.
            None => {
                let redactor = self.redactor();
                self.release_stream(redactor)
            }
            Some(AfterResponse::Retry) => Err(Error::new(RETRY_ELSEWHERE)),
            Some(AfterResponse::Exhausted | AfterResponse::Relay(_)) => {
                // Releases the memory of the held stream.
                self.context.response_state = ResponseState::Awaited;
                self.send_final_response()
            }
        }
    }

    /// Sends the held part of a stream to the client, and the rest as it arrives.
    fn release_stream(&mut self, redactor: Option<Box<CredentialRedactor>>) -> Result<()> {
        let ResponseState::HeldStream(held) = self.context.response_state.take() else { return Ok(()) };
        let HeldStream { mut header, tasks, .. } = *held;
        self.context.restart_idle_deadline(self.now);
        self.begin_relay(&mut header, redactor)?;
        self.output.push(HttpTask::Header(header, false));
        for task in tasks {
            self.relay_task(task);
        }
        Ok(())
    }

    /// Begins to relay a response: from here on no other attempt can follow.
    /// `redactor` removes the attempt's credential from the body.
    fn begin_relay(
        &mut self,
        header: &mut ResponseHeader,
        redactor: Option<Box<CredentialRedactor>>,
    ) -> Result<()> {
        if let Some(retry) = &mut self.context.retry_state {
            retry.on_relay_start(header, self.now);
        }
        self.context.ending.client_status = Some(header.status.as_u16());
        adjust_common_headers(self.context, header)?;
        let removes_usage =
            self.context.retry_state.as_ref().is_some_and(|retry| retry.balancer_asks_for_usage());
        let policy = self.context.gateway().capture_policy(self.context.request.client.as_deref());
        let learner = self
            .context
            .retry_state
            .as_ref()
            .filter(|_| header.status.is_success())
            .and_then(|retry| retry.object_learner(&self.context.request));
        let relayed =
            RelayedResponse::new(header, self.operation(), policy, removes_usage, redactor, learner);
        // Without the usage event the body is shorter than its length says.
        if relayed.removes_usage_event() && header.remove_header(&http::header::CONTENT_LENGTH).is_some() {
            header.insert_header(http::header::TRANSFER_ENCODING, "chunked")?;
        }
        // The body then ends with the client's connection.
        if !self.context.request.accepts_chunked_response {
            header.remove_header(&http::header::TRANSFER_ENCODING);
        }
        self.context.response_state = ResponseState::Relayed(Box::new(relayed));
        Ok(())
    }

    /// Relays one part of the response to the client.
    fn relay_task(&mut self, task: HttpTask) {
        let ResponseState::Relayed(relayed) = &mut self.context.response_state else { return };
        let already_counted = self.output.len();
        relayed.relay_task(task, &mut self.output, self.now);
        for task in self.output.iter().skip(already_counted) {
            if let HttpTask::Body(Some(data), _) | HttpTask::UpgradedBody(Some(data), _) = task {
                self.context
                    .ending
                    .note_response_body_bytes(data.len(), self.context.request.received_instant);
            }
        }
    }

    fn send_held_response(&mut self, held: HeldResponse) -> Result<()> {
        let tasks = prepare_held_response(self.context, held, self.now)?;
        self.output.extend(tasks);
        Ok(())
    }

    /// Sends the response that follows the last attempt.
    fn send_final_response(&mut self) -> Result<()> {
        let retry = self.context.retry_state.as_ref();
        if retry.is_some_and(|retry| retry.is_denied_by_pinned_backend) {
            return Err(Error::new(NOT_ON_PINNED_RESOURCE));
        }
        let tasks = prepare_best_response_or_refusal(self.context, self.now)?;
        self.output.extend(tasks);
        Ok(())
    }

    /// Removes the attempt's credential from a response of this status; `None` if such responses do not
    /// quote it.
    fn redactor_for_status(&self, status: StatusCode) -> Option<Box<CredentialRedactor>> {
        if may_quote_credential(status) { self.redactor() } else { None }
    }

    fn redactor(&self) -> Option<Box<CredentialRedactor>> {
        let secret = self.context.attempt_secret.as_ref()?;
        CredentialRedactor::new(&secret.secret).map(Box::new)
    }

    fn set_hold_deadline(&mut self, time: Duration) {
        let action = DeadlineAction::EndHold;
        self.context.attempt_deadline = Some(AttemptDeadline { at: self.now + time, action });
    }

    fn operation(&self) -> Option<Operation> {
        self.context.retry_state.as_ref().map(|retry| retry.admitted.target.operation)
    }
}
