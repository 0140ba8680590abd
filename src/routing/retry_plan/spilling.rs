//! Why an attempt goes to a lower tier.

use std::time::Instant;

use super::{CandidateState, RetryPlan};
use crate::routing::health::availability::UnavailableReason;
use crate::routing::pool::BackendPool;
use crate::routing::routed_operation::RoutedOperation;
use crate::routing::spill::SpillReason;

impl RetryPlan {
    /// Why an attempt on the candidate at this index goes to no higher tier; `None` if there is none.
    pub fn spill_reason(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<SpillReason> {
        let tier = pool.candidate(index)?.tier;
        // They are sorted by tier.
        let candidates = pool.candidates().iter().enumerate();
        let higher = candidates.take_while(|(_, candidate)| candidate.tier < tier);
        higher.map(|(other, _)| self.why_not_chosen(pool, other, operation, now)).min()
    }

    fn why_not_chosen(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: RoutedOperation,
        now: Instant,
    ) -> SpillReason {
        let unavailable =
            pool.candidate(index).and_then(|candidate| candidate.unavailability(operation, now));
        let reason = unavailable.map(|unavailable| unavailable.reason);
        match self.candidate_states.get(index) {
            Some(CandidateState::NotHere | CandidateState::OtherResource) => SpillReason::Home,
            Some(CandidateState::Throttled(_)) => SpillReason::Throttled,
            Some(CandidateState::CannotServe) if reason == Some(UnavailableReason::DeploymentNotFound) => {
                SpillReason::Absent
            }
            Some(CandidateState::CannotServe | CandidateState::Failed) => SpillReason::Failed,
            Some(CandidateState::CredentialRejected(_)) => SpillReason::Unavailable,
            Some(CandidateState::Untried) | None => match reason {
                None => SpillReason::Shed,
                Some(UnavailableReason::CoolingDown) => SpillReason::Throttled,
                Some(UnavailableReason::DeploymentNotFound) => SpillReason::Absent,
                Some(UnavailableReason::Drained) => SpillReason::Drained,
                Some(
                    UnavailableReason::NoUsableCredential
                    | UnavailableReason::PermissionDenied
                    | UnavailableReason::BreakerOpen
                    | UnavailableReason::Stalled,
                ) => SpillReason::Unavailable,
            },
        }
    }
}
