//! The refusal for a request for which no further attempt is possible, and when to retry.

use std::time::{Duration, Instant};

use super::queue_wait::GivenUp;
use super::retry_state::RetryState;
use super::upstream_error::UpstreamError;
use crate::proxy::client::refusal_response::MAX_RETRY_AFTER_MS;
use crate::record::attempt_errors::last_error_by_backend;
use crate::record::exchange::AttemptRecord;
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::health::availability::UnavailableReason;

/// The shortest `retry-after` of a request that has waited in vain.
const MIN_WAIT_AFTER_QUEUE: Duration = Duration::from_secs(1);

/// The refusal of a request for which no further attempt is possible. `default_cooldown` is its
/// `retry-after` if no better time is known.
pub(super) fn exhaustion_refusal(retry: &RetryState, default_cooldown: Duration, now: Instant) -> Refusal {
    if let Some(deployment) = retry.unknown_deployment(now) {
        return Refusal::deployment_not_found(deployment);
    }
    if let Some(refusal) = retry.home_refusal(default_cooldown, now) {
        return refusal;
    }
    if let Some(reason) = retry.gave_up_queueing() {
        let wait = time_until_available(retry, now).unwrap_or(default_cooldown);
        return queue_refusal(reason, retry.queued(now), wait);
    }
    let was_throttled = |attempt: &AttemptRecord| attempt.status == Some(429);
    if retry.earliest_cooldown_end(now).is_some() || retry.attempt_records.iter().any(was_throttled) {
        return throttled_refusal(time_until_available(retry, now).unwrap_or(default_cooldown));
    }
    // A complete response with such a status is relayed and not replaced by a refusal. But the status also
    // stands for an error event in a stream, or for an incomplete response.
    let has_failed = |attempt: &&AttemptRecord| {
        attempt.error_code.is_some() || attempt.status.is_some_and(|status| matches!(status, 408 | 500..))
    };
    if let Some(last) = retry.attempt_records.iter().rfind(has_failed) {
        return failed_refusal(last, &retry.attempt_records);
    }
    unavailable_refusal(retry, now)
}

/// How long until a backend is available that this request has not tried, or until the first cooldown
/// ends; `None` if neither is known.
pub(super) fn time_until_available(retry: &RetryState, now: Instant) -> Option<Duration> {
    let soonest = if retry.has_untried_backend(now) { Some(now) } else { retry.earliest_cooldown_end(now) };
    soonest.map(|until| until.saturating_duration_since(now))
}

fn throttled_refusal(wait: Duration) -> Refusal {
    let seconds = wait.as_millis().clamp(1, MAX_RETRY_AFTER_MS).div_ceil(1000);
    let message = format!(
        "The backends of this deployment are at their rate limit or cannot be reached. \
         Please retry after {seconds} seconds."
    );
    Refusal::new(RefusalReason::AllThrottled, message).with_retry_after(wait)
}

/// The refusal of a request that has waited in the queue in vain, or was not let in.
fn queue_refusal(reason: GivenUp, queued: Duration, wait: Duration) -> Refusal {
    // Although something may be free at this moment, others wait for it.
    let wait = wait.max(MIN_WAIT_AFTER_QUEUE);
    let seconds = wait.as_millis().clamp(1, MAX_RETRY_AFTER_MS).div_ceil(1000);
    let what_happened = match reason {
        GivenUp::QueueIsFull => "and too many requests wait for them".to_owned(),
        GivenUp::WaitedTooLong => {
            format!(
                "and none was free within the {:.1} seconds that the request has waited",
                queued.as_secs_f64()
            )
        }
    };
    let message = format!(
        "The backends of this deployment are at their rate limit or cannot be reached, {what_happened}. \
         Please retry after {seconds} seconds."
    );
    Refusal::new(RefusalReason::AllThrottled, message).with_retry_after(wait)
}

fn failed_refusal(last: &AttemptRecord, attempts: &[AttemptRecord]) -> Refusal {
    if last.error_code.is_some_and(UpstreamError::is_local_shortage_code) {
        let message =
            "the balancer has too many open files, or no memory for a connection; try again shortly";
        return Refusal::new(RefusalReason::Overloaded, message).with_retry_after(Duration::from_secs(1));
    }
    let causes = last_error_by_backend(attempts);
    if last.error_code.is_some_and(UpstreamError::is_timeout_code) {
        return Refusal::new(
            RefusalReason::UpstreamTimeout,
            format!("no backend answered in time ({causes})"),
        );
    }
    Refusal::new(RefusalReason::UpstreamFailed, format!("no backend answered ({causes})"))
}

/// The refusal if no attempt failed: the backends were unavailable from the start, or turned out to be
/// misconfigured.
fn unavailable_refusal(retry: &RetryState, now: Instant) -> Refusal {
    let is_misconfigured = |reason| {
        !matches!(
            reason,
            UnavailableReason::CoolingDown
                | UnavailableReason::BreakerOpen
                | UnavailableReason::Stalled
                | UnavailableReason::Drained
        )
    };
    // Attempts that neither failed nor were throttled ended with an error that only the operator can
    // correct.
    if retry.backend_unavailabilities(now).any(|unavailable| is_misconfigured(unavailable.reason))
        || !retry.attempt_records.is_empty()
    {
        let message = "every backend of this deployment refuses the balancer's own credential or lacks the \
                       deployment; the balancer's operator has to correct that";
        return Refusal::new(RefusalReason::BackendMisconfigured, message);
    }
    // A drained backend has no time at which it becomes available.
    let is_drained = |reason| reason == UnavailableReason::Drained;
    let available_at = retry
        .backend_unavailabilities(now)
        .filter(|unavailable| !is_drained(unavailable.reason))
        .map(|unavailable| unavailable.until);
    match available_at.min() {
        Some(until) => {
            let message = "no backend of this deployment is available now: each has failed too often or is \
                           cooling down";
            Refusal::new(RefusalReason::NoBackend, message)
                .with_retry_after(until.saturating_duration_since(now))
        }
        None if retry.has_no_candidates() => {
            let message = "calls that name no deployment go to the default backend, which is disabled in the \
                           balancer's configuration (requests.home)";
            Refusal::new(RefusalReason::NoBackend, message)
        }
        None => {
            let message = "every backend of this deployment is drained by the balancer's operator";
            Refusal::new(RefusalReason::NoBackend, message)
        }
    }
}
