//! The choice of the next step of a request.

use std::time::{Duration, Instant};

use super::{CandidateState, NextAttempt, NextStep, RetryLimits, RetryPlan, Wait, WaitPurpose};
use crate::routing::attempt_outcome::AttemptOutcome;
use crate::routing::health::availability::UnavailableReason;
use crate::routing::health::probe_permit::ProbePermit;
use crate::routing::pool::{BackendPool, PickBy, PoolTier};
use crate::routing::routed_operation::RoutedOperation;

/// The wait before backends that failed are tried again; it doubles each round.
const INITIAL_ROUND_BACKOFF: Duration = Duration::from_millis(100);
/// The shortest wait for a cooldown, which doubles with each such wait of a request: a `retry-after` of a
/// millisecond must not use up all attempts at once.
const MIN_COOLDOWN_WAIT: Duration = Duration::from_millis(10);

impl NextAttempt {
    /// An attempt on the candidate of a tier that is picked among the eligible ones, and that `try_enter` lets it enter.
    pub(super) fn in_tier(
        pool: &BackendPool,
        tier: &PoolTier,
        operation: RoutedOperation,
        by: PickBy,
        is_eligible: impl Fn(usize) -> bool,
        try_enter: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<Self> {
        // Between the pick and the permit another request may begin to probe the candidate, which then
        // is no longer eligible.
        for _ in 0..=tier.member_indexes.len() {
            let index = pool.pick(tier, by, &is_eligible, now)?;
            let permit =
                pool.candidate(index).and_then(|candidate| candidate.acquire_probe_permit(operation, now));
            if let Some(permit) = permit
                && try_enter(index)
            {
                return Some(Self::for_candidate(index, permit));
            }
        }
        None
    }
}

impl RetryPlan {
    pub(super) fn find_next_step(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        limits: &RetryLimits,
        now: Instant,
        jitter: f64,
    ) -> NextStep {
        // Resources that are asked for an object have a limit of their own.
        let uncounted = self.uncounted_attempts + self.denial_count() + self.queue_refusals;
        let counted_attempts = self.attempts_started - uncounted;
        let is_first = match &self.search {
            None => {
                self.attempts_started == self.uncounted_attempts
                    || self.last_outcome == Some(AttemptOutcome::Uncounted)
            }
            Some(_) => self.attempts_started == 0,
        };
        let outage_end = self.outage_began_at.map(|began_at| began_at + limits.max_outage);
        let latest_start =
            outage_end.map_or(limits.latest_retry_start, |end| end.min(limits.latest_retry_start));
        // A wait for a known resource may be long, and must end in time even before the first attempt.
        let is_in_time = |wait: Duration| {
            (is_first && (self.search.is_none() || wait.is_zero())) || now + wait <= latest_start
        };
        if counted_attempts > limits.max_retries || !is_in_time(Duration::ZERO) {
            return NextStep::Exhausted;
        }
        if let Some(until) = self.search.as_ref().and_then(|progress| progress.next_ask_at)
            && until > now
        {
            let duration = until - now;
            if !is_in_time(duration) {
                return NextStep::Exhausted;
            }
            return NextStep::Wait(Wait { duration, purpose: WaitPurpose::AskTurn });
        }
        // A request whose turn was refused goes back to its place in the queue.
        let max_cooldown_wait =
            if self.queue_refusals == 0 { limits.max_cooldown_wait } else { Duration::ZERO };
        // A short cooldown is waited for before the next tier is tried: the lower tier is preferred, often
        // because it is paid for already.
        for tier in pool.tiers() {
            if let Some(attempt) = self.next_in_tier(tier, pool, operation, now) {
                return self.attempt_within_budget(attempt, pool, limits, now);
            }
            let cooldowns = tier
                .member_indexes
                .clone()
                .filter_map(|index| Some((self.cooldown_end(pool, index, operation, now)?, index)));
            if let Some((until, index)) = cooldowns.min() {
                let min_wait = MIN_COOLDOWN_WAIT * 2_u32.saturating_pow(self.cooldown_waits.min(16));
                let duration = until.saturating_duration_since(now).max(min_wait);
                if self.total_cooldown_wait + duration <= max_cooldown_wait && is_in_time(duration) {
                    return NextStep::Wait(Wait { duration, purpose: WaitPurpose::Cooldown(index) });
                }
            }
        }
        if let Some(index) = self.candidate_awaiting_credential(pool, operation, now) {
            return NextStep::AwaitCredential(index);
        }
        if let Some(progress) = &self.search {
            if let Some(attempt) = self.attempt_despite_drain(pool, operation, now) {
                return self.attempt_within_budget(attempt, pool, limits, now);
            }
            if self.candidate_states.contains(&CandidateState::NotHere)
                && let Some(duration) = progress.wait_before_next_round(now)
                && is_in_time(duration)
            {
                return NextStep::Wait(Wait { duration, purpose: WaitPurpose::NextAskRound });
            }
        }
        // While a backend cools down, the client is told when to come back instead.
        if self.earliest_cooldown_end(pool, operation, now).is_none()
            && let Some(attempt) = self.last_resort_attempt(pool, operation, now)
        {
            return self.attempt_within_budget(attempt, pool, limits, now);
        }
        // The budget is checked before the wait: a client must not wait for an attempt that is not made.
        if self.candidate_states.contains(&CandidateState::Failed)
            && self.budget_allows_next(pool, limits, now)
        {
            let backoff = INITIAL_ROUND_BACKOFF * 2_u32.saturating_pow(self.extra_rounds.min(16));
            let duration = backoff.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
            let is_within_outage = self.outage_began_at.is_some() || duration <= limits.max_outage;
            if is_in_time(duration) && is_within_outage {
                let purpose = WaitPurpose::NextRound { decided_at: now };
                return NextStep::Wait(Wait { duration, purpose });
            }
        }
        NextStep::Exhausted
    }

    /// An attempt on the next eligible candidate of a tier.
    fn next_in_tier(
        &self,
        tier: &PoolTier,
        pool: &BackendPool,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<NextAttempt> {
        let is_eligible = |index| self.is_eligible(pool, index, operation, now);
        let try_enter = |index| self.try_enter(pool, index, operation, now);
        NextAttempt::in_tier(pool, tier, operation, self.pick_by(), is_eligible, try_enter, now)
    }

    fn pick_by(&self) -> PickBy {
        PickBy::new(self.prompt_route.map(|route| route.routed_key()), self.has_home())
    }

    /// An attempt on a drained candidate, whose resource may be the only one that has what the request refers to.
    fn attempt_despite_drain(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<NextAttempt> {
        let untried = self.candidate_states.iter().enumerate();
        untried.filter(|(_, state)| **state == CandidateState::Untried).find_map(|(index, _)| {
            let permit = pool.candidate(index)?.acquire_permit_despite_drain(operation, now)?;
            Some(NextAttempt::for_candidate(index, permit))
        })
    }

    /// An attempt on a candidate that is unavailable, since no other is left: one whose circuit is open,
    /// or else, once a second, one that only the operator can repair.
    fn last_resort_attempt(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<NextAttempt> {
        if let Some(index) = self.half_open_soonest(pool, operation, now) {
            let attempt = NextAttempt::for_candidate(index, ProbePermit::default());
            return Some(NextAttempt { is_last_resort: true, ..attempt });
        }
        let untried = self.candidate_states.iter().enumerate();
        untried.filter(|(_, state)| **state == CandidateState::Untried).find_map(|(index, _)| {
            let permit = pool.candidate(index)?.acquire_last_resort_permit(operation, now)?;
            Some(NextAttempt::for_candidate(index, permit))
        })
    }

    /// The candidate whose circuit is half-open soonest, of those that are unavailable only because
    /// their circuit is open. Each is tried once.
    fn half_open_soonest(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<usize> {
        let open_until = |index: usize| match self.candidate_states.get(index)? {
            CandidateState::Untried if !self.candidates_tried_as_last_resort.contains(&index) => {
                Some((pool.candidate(index)?.open_until_if_only_breaker(operation, now)?, index))
            }
            _ => None,
        };
        (0..pool.candidates().len()).filter_map(open_until).min().map(|(_, index)| index)
    }

    /// The attempt, unless it exceeds the budget for attempts that follow a failure. The first failover
    /// of a request to a backend that it has not tried is always free.
    fn attempt_within_budget(
        &self,
        attempt: NextAttempt,
        pool: &BackendPool,
        limits: &RetryLimits,
        now: Instant,
    ) -> NextStep {
        let is_first_failover =
            self.failed_attempts == 1 && self.extra_rounds == 0 && !attempt.is_last_resort;
        let uses_retry_budget = self.last_outcome == Some(AttemptOutcome::Failed) && !is_first_failover;
        if uses_retry_budget && !self.budget_allows_next(pool, limits, now) {
            return NextStep::Exhausted;
        }
        NextStep::Attempt(NextAttempt { uses_retry_budget, ..attempt })
    }

    /// Whether the budget has room for an attempt after the last outcome; only failures use it.
    fn budget_allows_next(&self, pool: &BackendPool, limits: &RetryLimits, now: Instant) -> bool {
        self.last_outcome != Some(AttemptOutcome::Failed)
            || pool.retry_budget.allows_retry(limits.retry_budget_percentage, now)
    }

    /// Whether this request may be sent to the candidate now, and does not leave it to more urgent ones.
    pub(super) fn is_eligible(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: RoutedOperation,
        now: Instant,
    ) -> bool {
        self.is_available(pool, index, operation, now) && !self.is_shed(pool, index, operation, now)
    }

    /// Whether this request may be sent to the candidate now.
    pub(super) fn is_available(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: RoutedOperation,
        now: Instant,
    ) -> bool {
        let (Some(state), Some(candidate)) = (self.candidate_states.get(index), pool.candidate(index)) else {
            return false;
        };
        let may_be_tried = match state {
            CandidateState::Untried => true,
            CandidateState::CredentialRejected(secret_id) => {
                !self.candidates_retried_with_new_secret.contains(&index)
                    && candidate.credential.secret().current_value_id() != *secret_id
            }
            _ => false,
        };
        may_be_tried && candidate.unavailability(operation, now).is_none()
    }

    /// A candidate that is unavailable only because its secret is being renewed. A request waits for that
    /// once.
    fn candidate_awaiting_credential(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<usize> {
        if self.has_waited_for_credential {
            return None;
        }
        let awaits_credential = |index: &usize| {
            let (Some(state), Some(candidate)) = (self.candidate_states.get(*index), pool.candidate(*index))
            else {
                return false;
            };
            let may_be_tried = match state {
                CandidateState::Untried => true,
                CandidateState::CredentialRejected(_) => {
                    !self.candidates_retried_with_new_secret.contains(index)
                }
                _ => false,
            };
            may_be_tried
                && candidate.credential.secret().is_fetch_pending()
                && candidate
                    .unavailability(operation, now)
                    .is_none_or(|unavailable| unavailable.reason == UnavailableReason::NoUsableCredential)
        };
        (0..pool.candidates().len()).find(awaits_credential)
    }

    /// When the cooldown of the candidate ends, if this request waits for that: it may be sent to it afterwards, and
    /// does not leave it to more urgent ones.
    pub(super) fn cooldown_end(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<Instant> {
        self.cooldown_end_of_candidate(pool, index, operation, now)
            .filter(|_| !self.is_shed(pool, index, operation, now))
    }

    /// When the cooldown of the candidate ends, if this request may be sent to it after that.
    pub(super) fn cooldown_end_of_candidate(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<Instant> {
        let unavailable = pool.candidate(index).and_then(|candidate| {
            // A drain does not keep away what only this resource can serve.
            if self.has_home() {
                candidate.unavailability_despite_drain(operation, now)
            } else {
                candidate.unavailability(operation, now)
            }
        });
        let cooldown_end = match unavailable {
            Some(unavailable) if unavailable.reason != UnavailableReason::CoolingDown => return None,
            unavailable => unavailable.map(|unavailable| unavailable.until),
        };
        match *self.candidate_states.get(index)? {
            CandidateState::Untried => cooldown_end,
            CandidateState::Throttled(until) => Some(cooldown_end.unwrap_or(until)),
            CandidateState::Failed
            | CandidateState::CredentialRejected(_)
            | CandidateState::CannotServe
            | CandidateState::NotHere
            | CandidateState::OtherResource => None,
        }
    }
}
