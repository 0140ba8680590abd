//! Queues requests for which no backend is free.

use std::time::Instant;

use http::Method;

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::backend_queue::BackendQueuePlace;
use super::limits::demand_of;
use crate::admission::queue::{QueueBounds, QueueCharge, QueueLimits, QueuedRequest};
use crate::config::{QueueConfig, RequestClass};
use crate::names::Caller;
use crate::routing::retry_plan::BackendChoice;

/// A request that is to wait, as its connection knows it.
#[derive(Debug)]
pub struct WaitingRequest {
    /// How urgent it is.
    pub class: RequestClass,
    /// Whose request it is.
    pub caller: Caller,
    /// When it began to wait for the first time.
    pub since: Instant,
    /// When it stops waiting.
    pub deadline: Instant,
    /// The tokens that it has reserved of its client's limits, if it has any.
    pub reserved_tokens: Option<u64>,
    /// The length of its body in memory.
    pub body_bytes: u64,
    /// The charge of its last turn, if the backend answered that with a 429.
    pub refused_turn: Option<QueueCharge>,
}

impl Gateway {
    /// How long and how much may wait; `None` if requests do not wait.
    pub fn queue_config(&self) -> Option<QueueConfig> {
        self.queue_config
    }

    /// Queues a request until a backend of this choice is free; `None` if requests do not wait.
    pub fn join_queue(
        &self,
        admitted: &AdmittedRequest,
        method: &Method,
        choice: BackendChoice,
        request: WaitingRequest,
        now: Instant,
    ) -> Option<BackendQueuePlace> {
        let (config, line) = (self.queue_config.as_ref()?, admitted.queue_line.as_ref()?);
        let WaitingRequest { class, caller, since, deadline, reserved_tokens, body_bytes, refused_turn } =
            request;
        let tokens = reserved_tokens
            .unwrap_or_else(|| demand_of(admitted, method, body_bytes).tokens_of_unknown_client());
        let holds_up_others = choice.holds_up_others();
        let key = admitted.prompt_route.map(|route| route.routed_key());
        let request = QueuedRequest { class, caller, since, tokens, bytes: body_bytes, holds_up_others, key };
        let bounds = QueueBounds { max_requests: config.max_requests, max_bytes: config.max_body_bytes };
        let limits = QueueLimits { bounds, deadline };
        Some(self.process_state.queue.join(line, &request, choice, refused_turn, limits, now))
    }

    /// Whether a request that could be sent now has to wait, because others wait for the same backends.
    /// `has_home` if only one resource can serve it.
    pub fn is_queue_before(&self, admitted: &AdmittedRequest, has_home: bool) -> bool {
        admitted.queue_line.as_ref().is_some_and(|line| {
            match has_home || admitted.routed_operation().is_flex {
                true => line.waiting() > 0,
                false => line.holds_up_others(),
            }
        })
    }

    /// A backend may have become free for a waiting request. Does nothing without a `queue` block: requests that a
    /// reload has left in the queue are served by its clock.
    pub fn wake_queue(&self) {
        if self.queue_config.is_some() {
            self.process_state.queue.wake();
        }
    }
}
