//! The time that a request spends in the balancer itself.

use std::time::{Duration, Instant};

/// A stop watch that runs while the balancer works on a request, and stands still while a client or
/// a backend is waited for.
pub(super) struct OverheadClock {
    total: Duration,
    running_since: Option<Instant>,
}

impl OverheadClock {
    pub(super) fn started(now: Instant) -> Self {
        Self { total: Duration::ZERO, running_since: Some(now) }
    }

    /// Goes on; nothing changes if it runs already.
    pub(super) fn resume(&mut self, now: Instant) {
        self.running_since.get_or_insert(now);
    }

    /// Stands still; nothing changes if it does already.
    pub(super) fn pause(&mut self, now: Instant) {
        if let Some(since) = self.running_since.take() {
            self.total += now.saturating_duration_since(since);
        }
    }

    /// What it measured until it was last paused.
    pub(super) fn total(&self) -> Duration {
        self.total
    }
}
