//! Why no backend is left to try, as a refusal for the client.

use std::time::{Duration, Instant};

use super::retry_state::RetryState;
use super::upstream_error::UpstreamError;
use crate::proxy::client::refusal_response::MAX_RETRY_AFTER_MS;
use crate::record::exchange::AttemptRecord;
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::availability::UnavailableReason;

/// The refusal of a request for which no backend is left. `default_cooldown` is told where no better
/// time is known.
pub(super) fn refusal(retry: &RetryState, default_cooldown: Duration, now: Instant) -> Refusal {
    let was_throttled = |attempt: &AttemptRecord| attempt.status == Some(429);
    if retry.soonest_cooldown(now).is_some() || retry.attempts.iter().any(was_throttled) {
        return all_throttled(soonest_retry(retry, default_cooldown, now));
    }
    // A failed status normally leaves its response to be relayed; not so an event in a stream, or a
    // response that broke off.
    let has_failed = |attempt: &&AttemptRecord| {
        attempt.error.is_some() || attempt.status.is_some_and(|status| matches!(status, 408 | 500..))
    };
    if let Some(last) = retry.attempts.iter().rfind(has_failed) {
        return no_answer(last, retry.attempts.len());
    }
    unavailable(retry, now)
}

/// How long until some backend can be tried, those that are cooling down included.
pub(super) fn soonest_retry(retry: &RetryState, default_cooldown: Duration, now: Instant) -> Duration {
    let soonest = if retry.has_untried_backend(now) { Some(now) } else { retry.soonest_cooldown(now) };
    soonest.map_or(default_cooldown, |until| until.saturating_duration_since(now))
}

fn all_throttled(wait: Duration) -> Refusal {
    let seconds = wait.as_millis().clamp(1, MAX_RETRY_AFTER_MS).div_ceil(1000);
    let message = format!(
        "The backends of this deployment are at their rate limit or cannot be reached. \
         Please retry after {seconds} seconds."
    );
    Refusal::new(RefusalReason::AllThrottled, message).with_retry_after(wait)
}

fn no_answer(last: &AttemptRecord, attempts: usize) -> Refusal {
    if last.error.is_some_and(UpstreamError::is_timeout) {
        let message = format!("no backend answered in time (attempts: {attempts})");
        return Refusal::new(RefusalReason::UpstreamTimeout, message);
    }
    Refusal::new(RefusalReason::UpstreamFailed, format!("no backend answered (attempts: {attempts})"))
}

/// No attempt failed: the backends were unavailable to begin with, or turned out to be misconfigured.
fn unavailable(retry: &RetryState, now: Instant) -> Refusal {
    let is_misconfigured = |reason| {
        !matches!(
            reason,
            UnavailableReason::CoolingDown | UnavailableReason::BreakerOpen | UnavailableReason::Drained
        )
    };
    if retry.unavailable_backends(now).any(|found| is_misconfigured(found.reason))
        || !retry.attempts.is_empty()
    {
        let message = "every backend of this deployment refuses the balancer's own credential or lacks the \
                       deployment; the balancer's operator has to correct that";
        return Refusal::new(RefusalReason::BackendMisconfigured, message);
    }
    let is_drained = |reason| reason == UnavailableReason::Drained;
    let until =
        retry.unavailable_backends(now).filter(|found| !is_drained(found.reason)).map(|found| found.until);
    match until.min() {
        Some(until) => {
            let message = "no backend of this deployment is available now: each has failed too often or is \
                           cooling down";
            Refusal::new(RefusalReason::NoBackend, message)
                .with_retry_after(until.saturating_duration_since(now))
        }
        None => {
            let message = "every backend of this deployment is drained by the balancer's operator";
            Refusal::new(RefusalReason::NoBackend, message)
        }
    }
}
