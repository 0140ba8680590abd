//! The outcome of an attempt: tells the gateway what the response, or the lack of one, means, and decides
//! what happens next.

use std::sync::atomic::Ordering;
use std::time::Instant;

use pingora::http::ResponseHeader;

use super::held_response::HeldResponse;
use super::retry_state::{FinishedAttempt, NO_FAILURE, RetryState, whole_millis};
use super::upstream_error::UpstreamError;
use crate::azure::response::verdict::{self, Verdict};
use crate::gateway::{FailureFlags, ResponseFacts};
use crate::routing::attempt_outcome::AttemptOutcome;

/// What happens after a response that was held.
pub(super) enum AfterResponse {
    /// The client gets this response.
    Relay(HeldResponse),
    /// Another attempt is made, perhaps after a wait.
    Retry,
    /// No further attempt is made; `final_response.rs` decides what the client gets.
    Exhausted,
}

/// A response that ends an attempt, or the error event that a stream begins with.
#[derive(Clone, Copy)]
struct JudgedResponse<'r> {
    verdict: Verdict,
    /// That of the response, or of the error in the event.
    status: u16,
    header: &'r ResponseHeader,
    /// What has arrived of the body, or the event.
    body: &'r [u8],
}

impl RetryState {
    /// Records the head of a response that is relayed as it arrives, which ends the choice of backends.
    pub(super) fn on_relay_start(&mut self, header: &ResponseHeader, now: Instant) {
        self.mark_probed_available();
        let Some(current) = &mut self.current_attempt else { return };
        current.is_response_relayed = true;
        let status = header.status.as_u16();
        let verdict = if status < 400 { Verdict::Success } else { Verdict::ClientError };
        if let Some(attempt) = self.attempt_records.last_mut() {
            attempt.status = Some(status);
            attempt.verdict = Some(verdict);
            attempt.duration_ms = whole_millis(now.saturating_duration_since(current.started_at));
        }
        let Some(candidate) = self.admitted.pool.candidate(current.candidate_index) else { return };
        // This attempt was sent without `stream_options` after the same backend had answered 400. Its success
        // proves that they were the reason.
        if self.stream_options_refused_by == Some(current.candidate_index)
            && header.status.is_success()
            && let Some(deployment) = &candidate.deployment_health
        {
            deployment.rejects_stream_options.store(true, Ordering::Relaxed);
        }
        if header.status.is_success()
            && let Some(deployment) = &candidate.deployment_health
        {
            deployment.answer_times.record(now.saturating_duration_since(current.started_at));
        }
        self.gateway.learn_and_decide_outcome(
            &self.admitted,
            verdict,
            ResponseFacts {
                candidate,
                send_ticket: current.send_ticket,
                headers: &header.headers,
                status,
                secret_id: current.secret_id,
                body: &[],
                failure_flags: NO_FAILURE,
                now,
            },
        );
        let candidate_index = current.candidate_index;
        // After what the response reports was recorded.
        self.gateway.wake_queue();
        if header.status.is_success() {
            self.on_accepted(candidate_index, now);
        }
    }

    /// Decides about a held response that is complete. `is_body_consumed` says that the request cannot be
    /// sent again.
    pub(super) fn on_complete_response(
        &mut self,
        held: HeldResponse,
        is_body_consumed: bool,
        now: Instant,
    ) -> AfterResponse {
        self.end_attempt_with_response(held, true, is_body_consumed, now)
    }

    /// Decides about a held response that is too large or too slow to hold, or failed. The verdict is based
    /// on what has arrived. If the response is relayed, its body may be missing from the returned value.
    pub(super) fn on_incomplete_response(
        &mut self,
        held: HeldResponse,
        is_body_consumed: bool,
        now: Instant,
    ) -> AfterResponse {
        let status = held.header.status.as_u16();
        let verdict = self.judge(status, &held.body_received_so_far());
        // Without ending the attempt: `on_relay_start` records it.
        if verdict == Verdict::ClientError {
            return AfterResponse::Relay(held);
        }
        let sent_by = self.current_or_last_target().cloned();
        let without_body = HeldResponse { sent_by, ..HeldResponse::new(held.header.clone()) };
        match self.end_attempt_with_response(held, false, is_body_consumed, now) {
            // No other response is available to the client, and the rest of this one may still arrive.
            AfterResponse::Exhausted if !is_operators_fault(verdict, status) && !self.has_best_response() => {
                AfterResponse::Relay(without_body)
            }
            after => after,
        }
    }

    /// The verdict on a complete response.
    fn judge(&self, status: u16, body: &[u8]) -> Verdict {
        let verdict = self.gateway.judge_complete_response(&self.admitted, status, body);
        let is_of_handshake =
            self.current_attempt.as_ref().is_some_and(|current| current.is_handshake_refused);
        // A handshake says nothing of the turn. A backend that does not understand it has no Responses sockets.
        match verdict {
            Verdict::ClientError if is_of_handshake && matches!(status, 400 | 404 | 405 | 426) => {
                Verdict::UnsupportedByBackend
            }
            verdict => verdict,
        }
    }

    /// Ends the current attempt with this response: tells the gateway what the response means, keeps it if
    /// it may be the best to relay in the end, and decides whether another attempt is made.
    fn end_attempt_with_response(
        &mut self,
        mut held: HeldResponse,
        is_complete: bool,
        is_body_consumed: bool,
        now: Instant,
    ) -> AfterResponse {
        let status = held.header.status.as_u16();
        let body = held.body_received_so_far();
        let verdict = self.judge(status, &body);
        // The client did not ask for usage. The balancer did, so it sends the request again without that.
        let refuses_stream_options = (400..500).contains(&status)
            && self.balancer_asks_for_usage()
            && verdict::mentions_stream_options(&body);
        // Before the attempt ends and with it its probe permit. A client error shows that the backend serves
        // requests. Any other response but a failure shows only that it can be reached.
        match verdict {
            Verdict::ClientError | Verdict::NotOnThisResource => self.mark_probed_available(),
            Verdict::BackendFailure => {}
            _ => self.close_probed_circuit(),
        }
        let failure = self.record_failure_for_verdict(verdict);
        let Some(finished) = self.finish_with_status(status, verdict, &held.header, now) else {
            return AfterResponse::Relay(held);
        };
        let outcome = if refuses_stream_options {
            self.stream_options_refused_by = Some(finished.candidate_index);
            Some(AttemptOutcome::Uncounted)
        } else {
            let response = JudgedResponse { verdict, status, header: &held.header, body: &body };
            self.learn_from_response(&finished, response, failure, now)
        };
        let Some(outcome) = outcome else { return AfterResponse::Relay(held) };
        let was_throttled = matches!(outcome, AttemptOutcome::Throttled(_));
        if verdict == Verdict::DeploymentNotFound {
            self.note_missing_deployment(finished.candidate_index);
        }
        if verdict == Verdict::NotOnThisResource {
            self.on_denied(finished.candidate_index, now);
        }
        self.note_outcome(finished.candidate_index, outcome);
        held.sent_by = self.current_or_last_target().cloned();
        // The client must not see an error that it did not cause. (`Uncounted` is a refusal of the
        // `stream_options` that the balancer added.)
        let is_ours = is_operators_fault(verdict, status) || outcome == AttemptOutcome::Uncounted;
        if !is_ours && is_complete && !(was_throttled && self.needs_known_home()) {
            held.says_request_is_unsupported =
                matches!(verdict, Verdict::UnsupportedByBackend | Verdict::DeploymentNotFound);
            self.keep_best_response(held);
        }
        // A request that must not be executed twice is sent again only if this response shows that it was
        // not executed.
        let is_safe_to_repeat = self.admitted.is_repeatable
            || was_throttled
            || is_ours
            || matches!(
                verdict,
                Verdict::UnsupportedByBackend
                    | Verdict::DeploymentNotFound
                    | Verdict::TooLargeForBackend
                    | Verdict::NotOnThisResource
            );
        if is_safe_to_repeat && !is_body_consumed && self.can_make_another_attempt(now) {
            AfterResponse::Retry
        } else {
            AfterResponse::Exhausted
        }
    }

    /// Decides about a stream of status 200 that begins with this error event: it counts as a response with
    /// the error's status. `None` if the client gets the stream as it is.
    pub(super) fn on_error_event(
        &mut self,
        header: &ResponseHeader,
        event: &[u8],
        is_body_consumed: bool,
        now: Instant,
    ) -> Option<AfterResponse> {
        let verdict = match verdict::judge_error_event(event) {
            Verdict::NotOnThisResource if self.admitted.search().is_none() => Verdict::ClientError,
            verdict => verdict,
        };
        let status = match verdict {
            Verdict::Success | Verdict::ClientError => return None,
            Verdict::Throttled | Verdict::TooLargeForBackend => 429,
            // The resource has made nothing.
            Verdict::NotOnThisResource => 400,
            // The backend may have created something, such as a background response, before it failed. The
            // client sees its events.
            _ if !self.admitted.is_repeatable => return None,
            Verdict::CredentialRejected => 401,
            Verdict::PermissionDenied => 403,
            Verdict::DeploymentNotFound | Verdict::UnsupportedByBackend => 404,
            Verdict::PromptTooLong => 400,
            Verdict::BackendFailure | Verdict::RetryElsewhere => 500,
        };
        if verdict != Verdict::BackendFailure {
            self.close_probed_circuit();
        }
        let failure = self.record_failure_for_verdict(verdict);
        let finished = self.finish_with_status(status, verdict, header, now)?;
        let response = JudgedResponse { verdict, status, header, body: event };
        let outcome = self.learn_from_response(&finished, response, failure, now)?;
        if verdict == Verdict::DeploymentNotFound {
            self.note_missing_deployment(finished.candidate_index);
        }
        if verdict == Verdict::NotOnThisResource {
            self.on_denied(finished.candidate_index, now);
        }
        self.note_outcome(finished.candidate_index, outcome);
        match self.can_make_another_attempt(now) && !is_body_consumed {
            true => Some(AfterResponse::Retry),
            // The client gets the error that its own prompt has caused.
            false if verdict == Verdict::PromptTooLong => None,
            // Every resource that may have the object has denied it. The events of this one say so.
            false if verdict == Verdict::NotOnThisResource && !self.must_not_deny() => None,
            false => Some(AfterResponse::Exhausted),
        }
    }

    /// Ends the current attempt, which failed without a complete response; returns whether another follows.
    /// `is_stale` says that its pooled connection had ended before the request arrived, `can_replay` that
    /// the request's body is still in memory and the client has seen nothing of a response.
    pub(in crate::proxy) fn on_attempt_failed(
        &mut self,
        error: UpstreamError,
        is_stale: bool,
        can_replay: bool,
        now: Instant,
    ) -> bool {
        // Before the attempt ends: whether it may be repeated depends on how much of it was sent.
        let can_retry = self.can_repeat_request() && can_replay;
        // A second stale connection within one request counts as the backend's failure; otherwise a backend
        // that closes every connection would never count as failing.
        let candidate = self.current_attempt.as_ref().map(|current| current.candidate_index);
        let is_stale =
            is_stale && !candidate.is_some_and(|candidate| self.plan.had_uncounted_attempt(candidate));
        let counts = !is_stale && error != UpstreamError::LocalShortage;
        let failure = if counts { self.record_current_failure() } else { NO_FAILURE };
        let Some(finished) = self.finish_attempt(now, |attempt| attempt.error_code = Some(error.as_str()))
        else {
            return false;
        };
        if let Some(candidate) = self.admitted.pool.candidate(finished.candidate_index)
            && counts
        {
            self.gateway.record_connection_failure(candidate, failure, error.as_str(), now);
        }
        let outcome = if is_stale { AttemptOutcome::Uncounted } else { AttemptOutcome::Failed };
        self.note_outcome(finished.candidate_index, outcome);
        can_retry && self.can_make_another_attempt(now)
    }

    /// Ends the current attempt, whose backend has no credential yet; returns whether another follows.
    pub(in crate::proxy) fn on_missing_credential(&mut self, now: Instant) -> bool {
        let Some(finished) = self.finish_attempt(now, |attempt| attempt.error_code = Some("credential"))
        else {
            return false;
        };
        let candidate = self.admitted.pool.candidate(finished.candidate_index);
        let backend = candidate.and_then(|candidate| self.gateway.backends.get(candidate.backend_index));
        if let Some(backend) = backend {
            backend.mark_unavailable_if_no_secret(now);
        }
        // 0 is the id of no secret.
        self.note_outcome(finished.candidate_index, AttemptOutcome::CredentialRejected(0));
        self.can_make_another_attempt(now)
    }

    /// Logs the TLS error that the current attempt's connection failed with.
    pub(in crate::proxy) fn log_tls_error(&self, error: &str, now: Instant) {
        if let Some(target) = self.current_or_last_target() {
            self.gateway.log_tls_failure(target.backend_index, error, now);
        }
    }

    /// Records a failure if this verdict is one of the backend. Returns how the response counts for the
    /// circuit breaker.
    fn record_failure_for_verdict(&mut self, verdict: Verdict) -> FailureFlags {
        if verdict == Verdict::BackendFailure { self.record_current_failure() } else { NO_FAILURE }
    }

    /// Ends the current attempt with the status of its response.
    fn finish_with_status(
        &mut self,
        status: u16,
        verdict: Verdict,
        header: &ResponseHeader,
        now: Instant,
    ) -> Option<FinishedAttempt> {
        let retry_after = self.gateway.requested_wait(verdict, &header.headers);
        self.finish_attempt(now, |attempt| {
            attempt.status = Some(status);
            attempt.verdict = Some(verdict);
            attempt.retry_after_ms = retry_after.map(whole_millis);
        })
    }

    /// Passes a response to the gateway to learn from it. Returns the outcome of the attempt; `None` if the
    /// client gets the response.
    fn learn_from_response(
        &self,
        finished: &FinishedAttempt,
        response: JudgedResponse<'_>,
        failure: FailureFlags,
        now: Instant,
    ) -> Option<AttemptOutcome> {
        let facts = ResponseFacts {
            candidate: self.admitted.pool.candidate(finished.candidate_index)?,
            send_ticket: finished.send_ticket,
            headers: &response.header.headers,
            status: response.status,
            secret_id: finished.secret_id,
            body: response.body,
            failure_flags: failure,
            now,
        };
        self.gateway.learn_and_decide_outcome(&self.admitted, response.verdict, facts)
    }
}

/// Whether a response with this verdict is caused by the balancer's own credential or configuration. Such
/// a response is never relayed. A 400 is: it may be about a model that the body names in another place.
fn is_operators_fault(verdict: Verdict, status: u16) -> bool {
    match verdict {
        Verdict::CredentialRejected | Verdict::PermissionDenied => true,
        Verdict::DeploymentNotFound => status != 400,
        Verdict::UnsupportedByBackend => status == 403,
        _ => false,
    }
}
