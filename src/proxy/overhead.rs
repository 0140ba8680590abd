//! Measures how long the balancer itself works on a request.

use std::time::{Duration, Instant};

/// A stopwatch that runs while the balancer works on a request and is paused while the request waits for
/// its client or a backend.
pub(super) struct OverheadClock {
    /// The time measured before `running_since`.
    total_until_last_pause: Duration,
    /// `None` while paused.
    running_since: Option<Instant>,
}

impl OverheadClock {
    /// A clock that runs from this moment.
    pub(super) fn start_at(now: Instant) -> Self {
        Self { total_until_last_pause: Duration::ZERO, running_since: Some(now) }
    }

    /// Starts the clock again; does nothing if it is running.
    pub(super) fn resume(&mut self, now: Instant) {
        self.running_since.get_or_insert(now);
    }

    /// Pauses the clock; does nothing if it is paused.
    pub(super) fn pause(&mut self, now: Instant) {
        if let Some(since) = self.running_since.take() {
            self.total_until_last_pause += now.saturating_duration_since(since);
        }
    }

    /// The time measured until the last pause.
    pub(super) fn total_until_last_pause(&self) -> Duration {
        self.total_until_last_pause
    }
}
