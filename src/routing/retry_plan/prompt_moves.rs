//! Requests that are routed by their prompts: why an attempt does not go to the first backend of the prompt's key.

use std::time::Instant;

use super::{CandidateState, NextAttempt, RetryPlan};
use crate::routing::pool::BackendPool;
use crate::routing::prompt_cache::{MoveReason, PromptRoute};
use crate::routing::routed_operation::RoutedOperation;

impl RetryPlan {
    /// The same plan for a request that is routed by its prompt.
    #[must_use]
    pub fn with_prompt_route(self, route: Option<PromptRoute>) -> Self {
        Self { prompt_route: route, ..self }
    }

    /// Why the last attempt did not go to the first backend of the prompt's key; `None` if it did.
    pub fn move_reason(&self) -> Option<MoveReason> {
        self.move_reason
    }

    /// Notes why an attempt that is about to start does not go to the first backend of the prompt's key. `is_pinned` if no
    /// other backend could be chosen.
    pub fn note_move(
        &mut self,
        pool: &BackendPool,
        operation: RoutedOperation,
        attempt: &NextAttempt,
        is_pinned: bool,
        now: Instant,
    ) {
        let Some(route) = self.prompt_route else { return };
        let Some(first) = pool.first_of_key(route.key) else { return };
        let reason = || match self.candidate_states.get(first) {
            _ if is_pinned || self.has_home() => MoveReason::Home,
            Some(CandidateState::NotHere | CandidateState::OtherResource) => MoveReason::Home,
            _ if !self.is_available(pool, first, operation, now) => MoveReason::Rest,
            _ if self.is_shed(pool, first, operation, now) => MoveReason::Shed,
            _ if route.spread.is_some() && pool.first_of_route(route.routed_key()) != Some(first) => {
                MoveReason::Hot
            }
            // It has waited, and was sent to what was free: after a 429, a backend gets few requests at first.
            _ if attempt.undecided.is_some() => MoveReason::Rest,
            _ => MoveReason::Load,
        };
        self.move_reason = (attempt.candidate_index != first).then(reason);
    }
}
