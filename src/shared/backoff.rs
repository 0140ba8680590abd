//! How long to wait before the next attempt to connect.

use std::time::Duration;

const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A connection that was up for so long was a good one: the next attempt comes at once.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(2);
/// A wait is shortened by up to this part, so that instances do not all come at the same time.
const JITTER: f64 = 0.25;

/// Waits that double from 250 ms to 5 s.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait. `random` is from 0 to 1.
    pub(super) fn next_wait(&mut self, random: f64) -> Duration {
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(10)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(1.0 - JITTER * random.clamp(0.0, 1.0))
    }

    /// Begins again with the shortest wait.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_seconds_and_begin_again() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next_wait(0.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next_wait(1.0), Duration::from_micros(187_500));
        let mut long_away = Backoff { failures: u32::MAX };
        assert_eq!(long_away.next_wait(0.0), LONGEST_WAIT);
    }
}
