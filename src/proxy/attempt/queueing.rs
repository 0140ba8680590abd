//! Queues a request until a backend is free.

use std::time::{Duration, Instant};

use super::queue_wait::GivenUp;
use super::retry_state::RetryState;
use crate::admission::queue::{QueueCharge, QueueEnd};
use crate::gateway::{BackendQueuePlace, WaitingRequest};
use crate::names::Caller;
use crate::proxy::context::RequestContext;
use crate::routing::retry_plan::{NextAttempt, NextStep};

impl RequestContext {
    /// Queues the request. `None` if its wait has ended already; the next step is chosen anew then.
    pub(super) fn begin_queue_wait(&mut self, now: Instant) -> Option<BackendQueuePlace> {
        let caller = Caller::of(
            self.request.client.as_ref().and_then(|client| client.name.as_ref()),
            self.request.client_ip,
        );
        let retry = self.retry_state.as_mut()?;
        let since = retry.queue_wait.begin(now);
        let request = WaitingRequest {
            class: self.request.class.unwrap_or_default(),
            caller,
            since,
            deadline: retry.queue_deadline(since),
            reserved_tokens: self.reservation.as_ref().map(|reservation| reservation.tokens()),
            body_bytes: self.body.held_bytes.len() as u64,
            refused_turn: retry.queue_wait.take_refused_turn(),
        };
        let choice = retry.plan.backend_choice(&retry.admitted.pool, retry.admitted.routed_operation());
        let place =
            self.config.gateway.join_queue(&retry.admitted, &self.request.method, choice, request, now);
        let end = match place {
            Some(mut place) => {
                if !place.try_end() {
                    return Some(place);
                }
                place.take_end()
            }
            None => QueueEnd::Full,
        };
        retry.on_queue_wait_over(end, now);
        None
    }
}

impl RetryState {
    /// Records that the wait in the queue is over.
    pub(super) fn on_queue_wait_over(&mut self, end: QueueEnd<NextAttempt>, now: Instant) {
        let (end, step) = match end {
            QueueEnd::Turn(attempt, charge) => (Ok(charge), Some(NextStep::Attempt(attempt))),
            QueueEnd::Full => (Err(GivenUp::QueueIsFull), None),
            QueueEnd::TooLate => (Err(GivenUp::WaitedTooLong), None),
        };
        if end.is_err() {
            self.plan.on_queue_given_up();
        }
        self.queue_wait.end(end, now);
        self.choose_step(step);
    }

    /// Why the request no longer waits in the queue; `None` if it has not given up.
    pub(super) fn gave_up_queueing(&self) -> Option<GivenUp> {
        self.queue_wait.given_up()
    }

    /// How long the request has waited in the queue.
    pub(in crate::proxy) fn queued(&self, now: Instant) -> Duration {
        self.queue_wait.total(now)
    }

    /// Takes what the client was charged for the request's turn in the queue.
    pub(in crate::proxy) fn take_queue_charge(&mut self) -> Option<QueueCharge> {
        self.queue_wait.take_charge()
    }
}
