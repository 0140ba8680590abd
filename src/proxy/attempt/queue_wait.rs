//! How long a request has waited in the queue, and what its turn was charged.

use std::time::{Duration, Instant};

use crate::admission::queue::QueueCharge;

/// A request's waits in the queue.
#[derive(Debug, Default)]
pub(super) struct QueueWait {
    /// The start of its first wait. It keeps this place if it has to wait again.
    first_began_at: Option<Instant>,
    /// The start of the current wait.
    waiting_since: Option<Instant>,
    /// The time spent in earlier waits.
    finished: Duration,
    /// What its client was charged for its turn.
    charge: Option<QueueCharge>,
    /// The backend answered that turn with a 429.
    is_turn_refused: bool,
    given_up: Option<GivenUp>,
}

/// Why a request no longer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// The queue is full.
    QueueIsFull,
    /// No backend became free before its deadline.
    WaitedTooLong,
}

impl QueueWait {
    /// Begins a wait. Returns the start of the first one.
    pub(super) fn begin(&mut self, now: Instant) -> Instant {
        self.waiting_since = Some(now);
        *self.first_began_at.get_or_insert(now)
    }

    /// Ends a wait: with the charge of the request's turn, or without a turn.
    pub(super) fn end(&mut self, end: Result<QueueCharge, GivenUp>, now: Instant) {
        self.finished = self.total(now);
        self.waiting_since = None;
        self.is_turn_refused = false;
        match end {
            Ok(charge) => {
                // Its last turn has failed for another reason.
                if let Some(last) = self.charge.replace(charge) {
                    last.settle(0);
                }
            }
            Err(reason) => self.given_up = Some(reason),
        }
    }

    /// Takes the charge of its turn. That of a turn that ended with a 429 is refunded instead.
    pub(super) fn take_charge(&mut self) -> Option<QueueCharge> {
        if let Some(refused) = self.take_refused_turn() {
            refused.settle(0);
        }
        self.charge.take()
    }

    /// Records that the backend answered the turn with a 429.
    pub(super) fn on_refused_turn(&mut self) {
        self.is_turn_refused = true;
    }

    /// Takes the charge of a turn that ended with a 429.
    pub(super) fn take_refused_turn(&mut self) -> Option<QueueCharge> {
        self.charge.take_if(|_| self.is_turn_refused)
    }

    /// Why the request no longer waits; `None` if it has not given up.
    pub(super) fn given_up(&self) -> Option<GivenUp> {
        self.given_up
    }

    /// How long it has waited, until now if it still does.
    pub(super) fn total(&self, now: Instant) -> Duration {
        let current = self.waiting_since.map(|since| now.saturating_duration_since(since));
        self.finished + current.unwrap_or_default()
    }
}
