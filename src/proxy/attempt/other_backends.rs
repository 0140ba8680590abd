//! What is known of the backends that a request may still be sent to.

use std::time::Instant;

use super::retry_state::RetryState;
use crate::names::DeploymentName;
use crate::routing::health::availability::{Unavailable, UnavailableReason};
use crate::routing::pool::Candidate;

impl RetryState {
    /// The deployment of the request, if the configuration does not list it and every candidate has said
    /// that it does not have it, to this request or to one before: then the client has misspelt it.
    pub(super) fn unknown_deployment(&self, now: Instant) -> Option<&DeploymentName> {
        let deployment = self.admitted.deployment.as_ref()?;
        let mut candidates = self.admitted.pool.candidates().iter().enumerate();
        let is_missing = |(index, candidate): (usize, &Candidate)| {
            self.candidates_without_deployment.contains(&index)
                || candidate.deployment_health.as_ref().is_some_and(|health| {
                    health.availability.is_in_outage(UnavailableReason::DeploymentNotFound, now)
                })
        };
        (!self.gateway.is_listed_deployment(deployment) && candidates.all(is_missing)).then_some(deployment)
    }

    /// Whether a backend is available that this request has not tried.
    pub(super) fn has_untried_backend(&self, now: Instant) -> bool {
        self.plan.has_eligible_candidate(&self.admitted.pool, self.admitted.routed_operation(), now)
    }

    /// When the first cooldown of a backend in the pool ends; `None` if none is cooling down.
    pub(super) fn earliest_cooldown_end(&self, now: Instant) -> Option<Instant> {
        self.plan.earliest_cooldown_end(&self.admitted.pool, self.admitted.routed_operation(), now)
    }

    /// Whether the pool is empty: only the one of a disabled default backend is.
    pub(super) fn has_no_candidates(&self) -> bool {
        self.admitted.pool.candidates().is_empty()
    }

    /// The backends of the pool that the request may be sent to and that are unavailable: for each, why and until
    /// when.
    pub(super) fn backend_unavailabilities(&self, now: Instant) -> impl Iterator<Item = Unavailable> {
        let operation = self.admitted.routed_operation();
        self.admitted
            .pool
            .candidates()
            .iter()
            .enumerate()
            .filter(|(index, _)| !self.plan.is_excluded(*index))
            .filter_map(move |(_, candidate)| candidate.unavailability(operation, now))
    }
}
