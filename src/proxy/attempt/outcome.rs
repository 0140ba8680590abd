//! What came of an attempt: its response, or the lack of one, becomes what the gateway learns and what
//! happens next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pingora::http::ResponseHeader;

use super::held_response::HeldResponse;
use super::retry_state::{FinishedAttempt, NO_FAILURE, RetryState, whole_millis};
use super::upstream_error::UpstreamError;
use crate::azure::response::verdict::{self, Verdict};
use crate::gateway::{AttemptFailure, ResponseFacts};
use crate::routing::retry_plan::AttemptOutcome;

/// What happens after a response that was held back.
pub(super) enum AfterResponse {
    /// The client gets it.
    Relay(HeldResponse),
    /// Another attempt is made.
    Retry,
    /// No attempt is left; `final_response.rs` says what the client gets.
    Conclude,
}

impl RetryState {
    /// A response begins that the client gets as it comes.
    pub(super) fn on_relayed_response(&mut self, header: &ResponseHeader, now: Instant) {
        self.mark_all_available();
        let Some(current) = &mut self.current else { return };
        current.is_answered = true;
        let status = header.status.as_u16();
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.status = Some(status);
            attempt.duration_ms = whole_millis(now.saturating_duration_since(current.started));
        }
        let Some(candidate) = self.admitted.pool.candidate(current.candidate) else { return };
        // Sent without `stream_options` it is answered: they were what was refused.
        if self.refused_stream_options == Some(current.candidate)
            && header.status.is_success()
            && let Some(deployment) = &candidate.deployment_health
        {
            deployment.rejects_stream_options.store(true, Ordering::Relaxed);
        }
        let verdict = if status < 400 { Verdict::Success } else { Verdict::ClientError };
        self.gateway.learn_from_response(
            &self.admitted,
            verdict,
            ResponseFacts {
                candidate,
                send_ticket: current.send_ticket,
                headers: &header.headers,
                status,
                secret_id: current.secret_number,
                failure: NO_FAILURE,
                now,
            },
        );
    }

    /// A held response is complete. `is_body_consumed` says that the request cannot be sent again.
    pub(super) fn on_complete_response(
        &mut self,
        held: HeldResponse,
        is_body_consumed: bool,
        now: Instant,
    ) -> AfterResponse {
        self.judge(held, true, is_body_consumed, now)
    }

    /// A held response is too large or too slow to hold, or broke off: the verdict is that on its
    /// beginning. If it is relayed, its attempt goes on.
    pub(super) fn on_incomplete_response(
        &mut self,
        held: HeldResponse,
        is_body_consumed: bool,
        now: Instant,
    ) -> AfterResponse {
        let status = held.header.status.as_u16();
        let verdict = self.gateway.response_verdict(&self.admitted, status, &held.whole_body());
        if verdict == Verdict::ClientError {
            return AfterResponse::Relay(held);
        }
        let sent_by = self.last_target().cloned();
        let beginning = HeldResponse { sent_by, ..HeldResponse::new(held.header.clone()) };
        match self.judge(held, false, is_body_consumed, now) {
            // The client gets nothing better than this one, which still comes.
            AfterResponse::Conclude if !is_operators_fault(verdict) && !self.has_best_response() => {
                AfterResponse::Relay(beginning)
            }
            after => after,
        }
    }

    fn judge(
        &mut self,
        mut held: HeldResponse,
        is_complete: bool,
        is_body_consumed: bool,
        now: Instant,
    ) -> AfterResponse {
        let gateway = Arc::clone(&self.gateway);
        let status = held.header.status.as_u16();
        let body = held.whole_body();
        let verdict = gateway.response_verdict(&self.admitted, status, &body);
        // The client did not ask for usage, the balancer did: the request is sent again without it.
        let refuses_stream_options =
            status == 400 && self.asks_for_usage() && verdict::mentions_stream_options(&body);
        match verdict {
            Verdict::ClientError => self.mark_all_available(),
            Verdict::BackendFailure => {}
            _ => self.close_circuit(),
        }
        let failure = self.failure_for(verdict);
        let Some(finished) = self.finish_with_status(status, verdict, &held.header, now) else {
            return AfterResponse::Relay(held);
        };
        let outcome = if refuses_stream_options {
            self.refused_stream_options = Some(finished.candidate);
            Some(AttemptOutcome::Uncounted)
        } else {
            self.learn(&finished, verdict, status, &held.header, failure, now)
        };
        let Some(outcome) = outcome else { return AfterResponse::Relay(held) };
        let was_throttled = matches!(outcome, AttemptOutcome::Throttled(_));
        self.note_outcome(finished.candidate, outcome);
        held.sent_by = self.last_target().cloned();
        let is_ours = is_operators_fault(verdict) || outcome == AttemptOutcome::Uncounted;
        if !is_ours && is_complete {
            held.is_last_resort = verdict == Verdict::UnsupportedByBackend;
            self.keep_best_response(held);
        }
        if verdict == Verdict::RetryableStatus
            && status == 404
            && self.admitted.searches_by_id
            && !self.searches_other_resources
        {
            self.search_other_resources(gateway.other_resources());
        }
        // None of these has done anything that a second request would do again.
        let is_safe_to_repeat = self.admitted.is_repeatable
            || was_throttled
            || is_ours
            || verdict == Verdict::UnsupportedByBackend;
        if is_safe_to_repeat && !is_body_consumed && self.has_next_step(now) {
            AfterResponse::Retry
        } else {
            AfterResponse::Conclude
        }
    }

    /// A stream of status 200 begins with an error event: it is the refusal that the error stands for.
    /// `None` when the client gets the stream as it is.
    pub(super) fn on_error_event(
        &mut self,
        header: &ResponseHeader,
        event: &[u8],
        is_body_consumed: bool,
        now: Instant,
    ) -> Option<AfterResponse> {
        let verdict = verdict::judge_error_event(event);
        let status = match verdict {
            Verdict::Success | Verdict::ClientError => return None,
            Verdict::Throttled => 429,
            // The backend may have begun to create something: the client sees how that ended.
            _ if !self.admitted.is_repeatable => return None,
            Verdict::CredentialRejected => 401,
            Verdict::PermissionDenied => 403,
            Verdict::DeploymentNotFound | Verdict::UnsupportedByBackend => 404,
            Verdict::BackendFailure | Verdict::RetryableStatus => 500,
        };
        if verdict != Verdict::BackendFailure {
            self.close_circuit();
        }
        let failure = self.failure_for(verdict);
        let finished = self.finish_with_status(status, verdict, header, now)?;
        let outcome = self.learn(&finished, verdict, status, header, failure, now)?;
        self.note_outcome(finished.candidate, outcome);
        Some(match self.has_next_step(now) {
            true if !is_body_consumed => AfterResponse::Retry,
            _ => AfterResponse::Conclude,
        })
    }

    /// The current attempt ended without a response; returns whether another follows. `is_stale` says
    /// that its pooled connection had ended before the request arrived, `can_replay` that the request
    /// can be sent again and the client has seen nothing of a response.
    pub(in crate::proxy) fn on_attempt_failed(
        &mut self,
        error: UpstreamError,
        is_stale: bool,
        can_replay: bool,
        now: Instant,
    ) -> bool {
        let can_retry = self.can_repeat() && can_replay;
        // A second time within one request it is the backend's failure.
        let candidate = self.current.as_ref().map(|current| current.candidate);
        let is_stale =
            is_stale && !candidate.is_some_and(|candidate| self.plan.had_uncounted_attempt(candidate));
        let failure = if is_stale { NO_FAILURE } else { self.current_failure() };
        let Some(finished) = self.finish_attempt(now, |attempt| attempt.error = Some(error.as_str())) else {
            return false;
        };
        if let Some(candidate) = self.admitted.pool.candidate(finished.candidate)
            && !is_stale
        {
            self.gateway.record_attempt_failure(candidate, failure, error.as_str(), now);
        }
        let outcome = if is_stale { AttemptOutcome::Uncounted } else { AttemptOutcome::Failed };
        self.note_outcome(finished.candidate, outcome);
        can_retry && self.has_next_step(now)
    }

    /// The backend of the current attempt has no credential yet; returns whether another attempt
    /// follows.
    pub(in crate::proxy) fn on_missing_credential(&mut self, now: Instant) -> bool {
        let Some(finished) = self.finish_attempt(now, |attempt| attempt.error = Some("credential")) else {
            return false;
        };
        let candidate = self.admitted.pool.candidate(finished.candidate);
        let backend = candidate.and_then(|candidate| self.gateway.backends.get(candidate.backend_index));
        if let Some(backend) = backend {
            backend.mark_unavailable_without_secret(now);
        }
        self.note_outcome(finished.candidate, AttemptOutcome::CredentialRejected(0));
        self.has_next_step(now)
    }

    /// Logs why no TLS connection could be made for the current attempt.
    pub(in crate::proxy) fn report_tls_error(&self, why: &str, now: Instant) {
        if let Some(target) = self.last_target() {
            self.gateway.log_tls_failure(target.backend, why, now);
        }
    }

    fn failure_for(&mut self, verdict: Verdict) -> AttemptFailure {
        if verdict == Verdict::BackendFailure { self.current_failure() } else { NO_FAILURE }
    }

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
            attempt.retry_after_ms = retry_after.map(whole_millis);
        })
    }

    /// Has the gateway learn from a response; `None` when the client gets it.
    fn learn(
        &self,
        finished: &FinishedAttempt,
        verdict: Verdict,
        status: u16,
        header: &ResponseHeader,
        failure: AttemptFailure,
        now: Instant,
    ) -> Option<AttemptOutcome> {
        let facts = ResponseFacts {
            candidate: self.admitted.pool.candidate(finished.candidate)?,
            send_ticket: finished.send_ticket,
            headers: &header.headers,
            status,
            secret_id: finished.secret_number,
            failure,
            now,
        };
        self.gateway.learn_from_response(&self.admitted, verdict, facts)
    }
}

/// Whether a verdict is about the balancer's own credential or configuration, which the client is never
/// shown.
fn is_operators_fault(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::CredentialRejected | Verdict::PermissionDenied | Verdict::DeploymentNotFound)
}
