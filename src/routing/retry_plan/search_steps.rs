//! Where a request is sent that refers to what was made on a resource: only to that resource if it is known,
//! and otherwise to one resource after the other, until one has it.

use std::time::Instant;

use super::resource_search::{ResourceSearch, SearchProgress};
use super::{CandidateState, RetryPlan, Wait, WaitPurpose};
use crate::routing::pool::BackendPool;

impl RetryPlan {
    /// The plan of a request that has not been sent to any backend of this pool, and which only the resource can
    /// answer that has what it refers to.
    pub fn for_search(pool: &BackendPool, search: ResourceSearch) -> Self {
        let mut plan = Self::new(pool);
        if let ResourceSearch::Home { resource_index, .. } = search {
            plan.exclude(pool, |resource| resource != resource_index);
        }
        plan.search = Some(Box::new(SearchProgress::new(search)));
        plan
    }

    /// Records that the resource of the candidate at this index does not have what the request refers to.
    pub(super) fn on_denial(&mut self, pool: &BackendPool, index: usize) {
        let Some(candidate) = pool.candidate(index) else { return };
        for (other, state) in pool.candidates().iter().zip(&mut self.candidate_states) {
            if other.resource_index == candidate.resource_index {
                *state = CandidateState::NotHere;
            }
        }
        let Some(progress) = &mut self.search else { return };
        progress.denials += 1;
        progress.denials_in_round += 1;
        if progress.has_asked_enough() {
            for state in &mut self.candidate_states {
                if *state != CandidateState::NotHere {
                    *state = CandidateState::OtherResource;
                }
            }
        }
    }

    /// Records that the wait before another round of asking is over.
    pub(super) fn on_round_wait_over(&mut self) {
        if let Some(progress) = &mut self.search {
            progress.on_round_wait_over();
        }
        for state in &mut self.candidate_states {
            if *state == CandidateState::NotHere {
                *state = CandidateState::Untried;
            }
        }
    }

    /// No further resource is asked before then.
    pub fn delay_next_ask(&mut self, until: Instant) {
        if let Some(progress) = &mut self.search {
            progress.next_ask_at = Some(until);
        }
    }

    /// Whether this wait is for the resource that has what the request refers to.
    pub fn is_wait_for_home(&self, wait: Wait) -> bool {
        match wait.purpose {
            WaitPurpose::NextAskRound | WaitPurpose::AskTurn => true,
            WaitPurpose::Cooldown(_) => self.has_home(),
            WaitPurpose::NextRound { .. } => false,
        }
    }

    /// How many attempts have ended with the response that the resource does not have what the request refers to.
    pub fn denial_count(&self) -> u32 {
        self.search.as_ref().map_or(0, |progress| progress.denials)
    }

    /// Whether a resource that may have what the request refers to could not be asked.
    pub fn has_unasked_resource(&self) -> bool {
        let is_open = |state: &CandidateState| {
            !matches!(state, CandidateState::NotHere | CandidateState::OtherResource)
        };
        self.candidate_states.iter().any(is_open)
    }

    /// Whether the candidate at this index is on a resource that the request must not be sent to.
    pub fn is_excluded(&self, index: usize) -> bool {
        self.candidate_states.get(index) == Some(&CandidateState::OtherResource)
    }

    fn exclude(&mut self, pool: &BackendPool, is_other: impl Fn(usize) -> bool) {
        for (candidate, state) in pool.candidates().iter().zip(&mut self.candidate_states) {
            if is_other(candidate.resource_index) {
                *state = CandidateState::OtherResource;
            }
        }
    }
}
