//! Limits how many retries all requests of a pool may cause together while its backends fail: in an
//! outage, each request of a client must not become a dozen.

use std::time::{Duration, Instant};

use super::window::{EventCounts, SlidingWindow};
use crate::config::Percentage;

const BUDGET_WINDOW: Duration = Duration::from_secs(10);
/// Retries in a window that are always allowed: ten a second.
const FREE_RETRIES_PER_WINDOW: u64 = 100;

/// The retry budget of one pool.
#[derive(Debug)]
pub struct RetryBudget {
    /// All requests; retries are marked.
    window: SlidingWindow,
}

impl RetryBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self { window: SlidingWindow::new(now) }
    }

    /// Counts a new request.
    pub(super) fn record_request(&self, now: Instant) {
        self.window.record(EventCounts { total: 1, marked: 0 }, BUDGET_WINDOW, now);
    }

    /// Counts a retry.
    pub(super) fn record_retry(&self, now: Instant) {
        self.window.record(EventCounts { total: 0, marked: 1 }, BUDGET_WINDOW, now);
    }

    /// Counts a retry if one more is allowed; returns whether it is.
    pub fn try_retry(&self, ratio: Percentage, now: Instant) -> bool {
        let is_allowed = self.allows_retry(ratio, now);
        if is_allowed {
            self.record_retry(now);
        }
        is_allowed
    }

    /// Whether one more retry is allowed: `ratio` of the requests, and the free ones.
    pub(super) fn allows_retry(&self, ratio: Percentage, now: Instant) -> bool {
        let EventCounts { total, marked } = self.window.counts(BUDGET_WINDOW, now);
        marked < FREE_RETRIES_PER_WINDOW + total * u64::from(ratio.percent()) / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_requests_and_some_free_retries_are_allowed() {
        let now = Instant::now();
        let (budget, ratio) = (RetryBudget::new(now), Percentage::new(20).unwrap());
        let retries = |budget: &RetryBudget| {
            let mut count = 0;
            while budget.allows_retry(ratio, now) {
                budget.record_retry(now);
                count += 1;
            }
            count
        };
        assert_eq!(retries(&budget), FREE_RETRIES_PER_WINDOW);
        (0..1000).for_each(|_| budget.record_request(now));
        assert_eq!(retries(&budget), 200);
        assert!(budget.allows_retry(ratio, now + 11 * Duration::from_secs(1)));
    }
}
