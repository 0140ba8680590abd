//! How long a sink waits before it sends again what its service has not accepted.

use std::time::Duration;

/// The delay after the first failure. It doubles with each further failure, up to [`MAX_BACKOFF`].
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is obeyed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);
/// The shortest delay after a response that names one, whatever it says.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(200);

/// The delays of one delivery.
#[derive(Debug, Default)]
pub(in crate::record) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after another failure; `hint` is what the service has asked for.
    pub(in crate::record) fn next_delay(&mut self, hint: Option<Duration>) -> Duration {
        let backoff = (INITIAL_BACKOFF * 2_u32.saturating_pow(self.failures)).min(MAX_BACKOFF);
        self.failures = (self.failures + 1).min(16);
        match hint {
            Some(hint) => hint.clamp(MIN_RETRY_DELAY, MAX_RETRY_AFTER),
            None => backoff.mul_f64(0.5 + fastrand::f64() / 2.0),
        }
    }

    /// How many failures there were.
    pub(in crate::record) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute_and_a_hint_is_obeyed_within_limits() {
        let mut backoff = Backoff::default();
        for longest in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let delay = backoff.next_delay(None);
            let longest = Duration::from_secs(longest);
            assert!((longest / 2..=longest).contains(&delay), "{delay:?} {longest:?}");
        }
        for (hint, expected) in [(0, 200), (200, 200), (3_000, 3_000), (9_000_000, 3_600_000)] {
            let delay = backoff.next_delay(Some(Duration::from_millis(hint)));
            assert_eq!(delay, Duration::from_millis(expected));
        }
        assert_eq!(backoff.failures(), 13);
    }
}
