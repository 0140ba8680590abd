//! How long a request has waited in the queue, and what its turn counts for.

use std::time::{Duration, Instant};

use crate::admission::queue::QueueCharge;

/// A request's waits in the queue.
#[derive(Debug, Default)]
pub(super) struct QueueWait {
    /// When it began to wait for the first time. It keeps this place if it has to wait again.
    first_began_at: Option<Instant>,
    /// When the wait has begun that goes on.
    waiting_since: Option<Instant>,
    /// The time of the waits that are over.
    finished: Duration,
    /// What its turn counts for.
    charge: Option<QueueCharge>,
    /// The backend has refused the request in that turn.
    is_turn_refused: bool,
    given_up: Option<GivenUp>,
}

/// Why a request no longer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// Too much waits.
    QueueIsFull,
    /// It has waited for too long.
    WaitedTooLong,
}

impl QueueWait {
    /// A wait begins. Returns when the first one did.
    pub(super) fn begin(&mut self, now: Instant) -> Instant {
        self.waiting_since = Some(now);
        *self.first_began_at.get_or_insert(now)
    }

    /// The wait is over, with a turn that counts for this, or without one.
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

    /// Takes what its turn counts for: nothing if it was refused.
    pub(super) fn take_charge(&mut self) -> Option<QueueCharge> {
        if let Some(refused) = self.take_refused_turn() {
            refused.settle(0);
        }
        self.charge.take()
    }

    /// The backend has refused the request in its turn: it has got nothing.
    pub(super) fn on_refused_turn(&mut self) {
        self.is_turn_refused = true;
    }

    /// Takes what a turn counted for that was refused.
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
