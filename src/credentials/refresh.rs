//! The background task that keeps one secret fresh. It fetches the secret before it expires, at an
//! interval, and once when it is rejected. If a fetch fails, the old value stays in use and the reason
//! is logged once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, error, warn};
use tokio::time::sleep;

use super::fetched_secret::FetchError;
use super::fetchers::SecretFetcher;
use super::secret_state::SecretState;
use crate::outbound::OutboundClient;

/// Delay after the first failure; it doubles with each further one.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
/// Longest delay after failures, the same as in Azure's SDKs.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Longest delay between fetches of a rejected value that did not change.
const MAX_REJECTED_SECRET_BACKOFF: Duration = Duration::from_secs(60);
/// Longest wait that a source can ask for; a longer one counts as this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Fetches the secret again and again; runs until its task is aborted.
pub(super) async fn refresh_forever(
    state: Arc<SecretState>,
    fetcher: SecretFetcher,
    client: Arc<OutboundClient>,
) {
    let (mut failures, mut unchanged_after_rejection) = (0, 0);
    loop {
        // Read before the fetch: a rejection that arrives meanwhile asks for another fetch.
        let requested = state.requested_fetch_count();
        let result = fetcher.fetch(&client).await;
        state.set_proof_expiry(fetcher.proof_expiry().await);
        let delay = match result {
            Ok(fetched) => {
                let is_renewal = state.current_value().is_some();
                let is_changed = state.store_fetched(&fetched);
                match () {
                    () if failures > 0 => {
                        warn!("fetched the {} again", state.description());
                    }
                    () if is_renewal && is_changed => {
                        debug!("the {} has a new value", state.description());
                    }
                    () => {}
                }
                failures = 0;
                unchanged_after_rejection =
                    if state.is_current_value_rejected() { unchanged_after_rejection + 1 } else { 0 };
                if unchanged_after_rejection > 0 {
                    // The source does not have the new value yet. Fetch again soon, because the current
                    // one does not work.
                    jittered_backoff_delay(unchanged_after_rejection, MAX_REJECTED_SECRET_BACKOFF)
                        .min(fetched.renew_after)
                } else {
                    fetched.renew_after
                }
            }
            Err(FetchError { message, retry_after }) => {
                failures += 1;
                // Only the first failure and a new reason are logged, not every attempt.
                if state.record_failure(&message) || failures == 1 {
                    let description = state.description();
                    match state.has_unexpired_value(Instant::now()) {
                        true => warn!("cannot renew the {description}; the old one stays in use: {message}"),
                        false => {
                            error!("cannot fetch the {description}, and no valid one is left: {message}");
                        }
                    }
                }
                let backoff = jittered_backoff_delay(failures, MAX_BACKOFF);
                retry_after.map_or(backoff, |wait| wait.min(MAX_RETRY_AFTER).max(backoff))
            }
        };
        state.mark_fetches_ended_up_to(requested);
        // A request that arrived during the fetch is not lost: `Notify` keeps it until it is waited for.
        tokio::select! {
            () = sleep(delay) => {}
            () = state.wait_for_refresh_request() => {}
        }
    }
}

/// A delay that doubles with each failure up to `max_delay`, less up to a quarter of jitter.
fn jittered_backoff_delay(failures: u32, max_delay: Duration) -> Duration {
    let delay = INITIAL_BACKOFF * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    delay.min(max_delay).mul_f64(0.75 + fastrand::f64() / 4.0)
}
