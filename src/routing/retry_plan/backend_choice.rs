//! When a request waits in the queue, and which backends it waits for.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::resource_search::ResourceSearch;
use super::{CandidateState, NextAttempt, RetryLimits, RetryPlan, ShedRule};
use crate::names::RoutedKey;
use crate::routing::attempt_outcome::AttemptOutcome;
use crate::routing::health::availability::UnavailableReason;
use crate::routing::pool::{BackendPool, Candidate, PickBy};
use crate::routing::routed_operation::RoutedOperation;

/// What a request in the queue waits for: that one of these candidates can take it.
#[derive(Clone)]
pub struct BackendChoice {
    pool: Arc<BackendPool>,
    operation: RoutedOperation,
    /// Only one resource can serve it.
    has_home: bool,
    /// For each candidate of the pool, whether it is one of them.
    usable: SmallVec<[bool; 16]>,
    /// Which of them may be closed to the class of the requests.
    shed_rule: Option<ShedRule>,
}

impl PartialEq for BackendChoice {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool)
            && self.operation == other.operation
            && self.has_home == other.has_home
            && self.usable == other.usable
            && self.shed_rule == other.shed_rule
    }
}

impl BackendChoice {
    /// Whether only one resource can serve requests with this choice.
    pub fn has_home(&self) -> bool {
        self.has_home
    }

    /// Whether other requests must not overtake requests with this choice. They may where a backend can be free for them
    /// alone: requests that only one resource can serve, and flex requests.
    pub fn holds_up_others(&self) -> bool {
        !self.has_home && !self.operation.is_flex
    }

    /// An attempt on the candidate whose turn it is among those that are free, or which is the first of them in the order
    /// of the key, for a request that is routed by its prompt.
    pub fn next_attempt(&self, key: Option<RoutedKey>, now: Instant) -> Option<NextAttempt> {
        let by = PickBy::new(key, self.has_home);
        for tier in self.pool.tiers() {
            let is_free = |index| self.is_free(index, now);
            let try_enter = |index| {
                let entered = self.shed_rule.as_ref().map(|rule| rule.try_enter(&self.pool, index, now));
                entered.unwrap_or(true) || !self.is_shed(index, now)
            };
            let (pool, operation) = (&self.pool, self.operation);
            let attempt = NextAttempt::in_tier(pool, tier, operation, by, is_free, try_enter, now);
            let Some(attempt) = attempt else { continue };
            let deployment = self.pool.candidate(attempt.candidate_index)?.deployment_health.as_ref()?;
            if let Some(undecided) = deployment.slow_start.enter(now) {
                return Some(NextAttempt { undecided: Some(undecided), ..attempt });
            }
        }
        if self.has_home { self.attempt_despite_drain(now) } else { None }
    }

    /// An attempt on a drained candidate: no other resource can serve the request.
    fn attempt_despite_drain(&self, now: Instant) -> Option<NextAttempt> {
        let mut usable =
            self.pool.candidates().iter().enumerate().filter(|(index, _)| self.is_usable(*index));
        usable.find_map(|(index, candidate)| {
            let permit = candidate.acquire_permit_despite_drain(self.operation, now)?;
            let undecided = candidate.deployment_health.as_ref()?.slow_start.enter(now)?;
            Some(NextAttempt { undecided: Some(undecided), ..NextAttempt::for_candidate(index, permit) })
        })
    }

    /// When one of the candidates may become free, without a further event.
    pub fn next_chance(&self, now: Instant) -> Option<Instant> {
        let candidates = self.pool.candidates().iter().enumerate();
        let chances =
            candidates.filter(|(index, _)| self.is_usable(*index)).filter_map(|(index, candidate)| {
                if let Some(rule) = self.shed_rule.as_ref().filter(|_| self.is_shed(index, now)) {
                    return candidate.deployment_health.as_ref()?.utilization.next_change(rule.class, now);
                }
                let unavailable = if self.has_home {
                    candidate.unavailability_despite_drain(self.operation, now)
                } else {
                    candidate.unavailability(self.operation, now)
                };
                let available_at = unavailable.map(|unavailable| unavailable.until);
                available_at.or_else(|| candidate.deployment_health.as_ref()?.slow_start.next_room(now))
            });
        chances.min()
    }

    fn is_free(&self, index: usize, now: Instant) -> bool {
        self.is_usable(index)
            && !self.is_shed(index, now)
            && self.pool.candidate(index).is_some_and(|candidate| {
                candidate.unavailability(self.operation, now).is_none()
                    && candidate
                        .deployment_health
                        .as_ref()
                        .is_some_and(|health| health.slow_start.has_room(now))
            })
    }

    fn is_usable(&self, index: usize) -> bool {
        self.usable.get(index) == Some(&true)
    }

    /// Whether requests with this choice must not use this candidate because of their class.
    fn is_shed(&self, index: usize, now: Instant) -> bool {
        let Some(rule) = &self.shed_rule else { return false };
        let is_possible = |other: usize| {
            let unavailable =
                self.pool.candidate(other).and_then(|other| other.unavailability(self.operation, now));
            self.is_usable(other)
                && unavailable.is_none_or(|unavailable| unavailable.reason == UnavailableReason::CoolingDown)
        };
        rule.is_shed(&self.pool, index, is_possible, now)
    }
}

impl RetryPlan {
    /// What the request waits for in the queue.
    pub fn backend_choice(&self, pool: &Arc<BackendPool>, operation: RoutedOperation) -> BackendChoice {
        let usable =
            (0..pool.candidates().len()).map(|index| self.is_usable_from_queue(pool, index)).collect();
        let shed_rule = self.applicable_shed_rule().copied();
        BackendChoice { pool: Arc::clone(pool), operation, has_home: self.has_home(), usable, shed_rule }
    }

    /// Records that a wait in the queue has ended without an attempt.
    pub fn on_queue_given_up(&mut self) {
        self.has_left_queue = true;
    }

    /// Whether a request that could be sent now has to queue behind others. Not after a failed attempt: then it has had
    /// its turn.
    pub fn waits_behind_others(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        limits: &RetryLimits,
        now: Instant,
    ) -> bool {
        let is_new_or_throttled = matches!(self.last_outcome, None | Some(AttemptOutcome::Throttled(_)));
        let is_possible = |index| {
            self.is_usable_from_queue(pool, index)
                && (self.is_eligible(pool, index, operation, now)
                    || self.cooldown_end(pool, index, operation, now).is_some())
        };
        is_new_or_throttled && self.may_queue(limits, now) && (0..pool.candidates().len()).any(is_possible)
    }

    /// Whether a request for which no attempt is possible now waits in the queue, because a backend is only cooling
    /// down.
    pub(super) fn may_begin_to_queue(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        limits: &RetryLimits,
        now: Instant,
    ) -> bool {
        let cools_down = |index| {
            let end = self.cooldown_end(pool, index, operation, now);
            // The one resource that can serve it is waited for only if that is of use.
            self.is_usable_from_queue(pool, index)
                && end.is_some_and(|end| !self.has_home() || end < limits.latest_retry_start)
        };
        self.may_queue(limits, now) && (0..pool.candidates().len()).any(cools_down)
    }

    /// Whether the request waits for the one resource that can serve it.
    pub fn has_home(&self) -> bool {
        let search = self.search.as_ref().map(|progress| &progress.search);
        matches!(search, Some(ResourceSearch::Home { .. }))
    }

    fn may_queue(&self, limits: &RetryLimits, now: Instant) -> bool {
        limits.max_queue_wait.is_some()
            && !self.has_left_queue
            && (self.search.is_none() || self.has_home())
            && now < limits.latest_retry_start
    }

    fn is_usable_from_queue(&self, pool: &BackendPool, index: usize) -> bool {
        let state = self.candidate_states.get(index);
        matches!(state, Some(CandidateState::Untried | CandidateState::Throttled(_)))
            // Without its health it is not known whether it cools down.
            && pool.candidate(index).is_some_and(Candidate::has_deployment_health)
    }
}
