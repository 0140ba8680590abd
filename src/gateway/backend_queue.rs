//! The queue of requests for which no backend is free.

use std::time::Instant;

use crate::admission::queue::{Choice, QueuePlace, RequestQueue};
use crate::names::RoutedKey;
use crate::routing::retry_plan::{BackendChoice, NextAttempt};

/// The requests of a process that wait for backends.
pub type BackendQueue = RequestQueue<BackendChoice>;

/// The place of a request that waits for a backend.
pub type BackendQueuePlace = QueuePlace<BackendChoice>;

impl Choice for BackendChoice {
    type Turn = NextAttempt;

    fn try_take(&self, key: Option<RoutedKey>, now: Instant) -> Option<NextAttempt> {
        self.next_attempt(key, now)
    }

    fn next_chance(&self, now: Instant) -> Option<Instant> {
        self.next_chance(now)
    }
}
