//! The retry plan of one request: which backend of its pool is tried next, after what became of the
//! attempts so far.
//!
//! Waiting itself, and what a response means, are decided elsewhere; time is an argument.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::attempt_outcome::AttemptOutcome;
use super::health::availability::{ProbePermit, UnavailableReason};
use super::pool::{BackendPool, PoolTier};
use crate::azure::Operation;
use crate::config::Percentage;

/// The wait before backends that failed are tried again; it doubles each round.
const INITIAL_ROUND_BACKOFF: Duration = Duration::from_millis(100);
/// The shortest wait for a cooldown, which doubles with each such wait of a request: a `retry-after` of a
/// millisecond must not use up all attempts at once.
const MIN_COOLDOWN_WAIT: Duration = Duration::from_millis(10);

/// What one request may spend on retries.
#[derive(Clone, Copy, Debug)]
pub struct RetryLimits {
    /// Attempts after the first.
    pub max_retries: u32,
    /// All waits for cooldowns together.
    pub max_cooldown_wait: Duration,
    /// No attempt after the first starts later than this.
    pub latest_retry_start: Instant,
    /// After every candidate has failed, no further attempt starts later than this.
    pub max_outage: Duration,
    /// The share of a pool's requests that may be retried after a failure.
    pub retry_budget_percentage: Percentage,
}

/// What to do next.
#[derive(Debug)]
pub enum NextStep {
    /// Send the request to a candidate.
    Attempt(NextAttempt),
    /// Wait, call [`RetryPlan::on_wait_over`] with it, and ask for the next step again.
    Wait(Wait),
    /// Wait until the secret of the candidate at this index has been renewed or that has failed, call
    /// [`RetryPlan::on_credential_wait_over`], and ask for the next step again.
    AwaitCredential(usize),
    /// No further attempt is possible.
    Exhausted,
}

/// The attempt to make next.
#[derive(Debug)]
pub struct NextAttempt {
    /// The index of the candidate in the pool.
    pub candidate_index: usize,
    /// What the attempt probes for other requests.
    pub probe_permit: ProbePermit,
    /// The circuit of the backend is open; it is tried because no other one is left.
    pub is_last_resort: bool,
    /// It is taken from the retry budget of the pool.
    uses_retry_budget: bool,
}

/// A wait before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// How long.
    pub duration: Duration,
    purpose: WaitPurpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitPurpose {
    /// The cooldown of the candidate at this index.
    Cooldown(usize),
    /// A further round over those that failed. Every candidate had been tried at `decided_at`.
    NextRound { decided_at: Instant },
}

/// The retry plan of one request: what it has tried so far. Candidates are named by their index in the
/// pool.
#[derive(Debug)]
pub struct RetryPlan {
    candidate_states: SmallVec<[CandidateState; 8]>,
    /// Those that have had an attempt which does not count.
    candidates_with_uncounted_attempt: SmallVec<[usize; 2]>,
    /// Those that have failed this request, each once.
    failed_candidates: SmallVec<[usize; 2]>,
    attempts_started: u32,
    extra_rounds: u32,
    /// When every candidate had failed once or could not be used.
    outage_began_at: Option<Instant>,
    cooldown_waits: u32,
    total_cooldown_wait: Duration,
    uncounted_attempts: u32,
    failed_attempts: u32,
    last_outcome: Option<AttemptOutcome>,
    /// Those that were tried while their circuit was open.
    candidates_tried_as_last_resort: SmallVec<[usize; 2]>,
    candidates_retried_with_new_secret: SmallVec<[usize; 2]>,
    has_waited_for_credential: bool,
}

impl RetryPlan {
    /// The plan of a request that has not been sent to any backend of this pool.
    pub fn new(pool: &BackendPool) -> Self {
        Self {
            candidate_states: SmallVec::from_elem(CandidateState::Untried, pool.candidates().len()),
            candidates_with_uncounted_attempt: SmallVec::new(),
            failed_candidates: SmallVec::new(),
            attempts_started: 0,
            extra_rounds: 0,
            outage_began_at: None,
            cooldown_waits: 0,
            total_cooldown_wait: Duration::ZERO,
            uncounted_attempts: 0,
            failed_attempts: 0,
            last_outcome: None,
            candidates_tried_as_last_resort: SmallVec::new(),
            candidates_retried_with_new_secret: SmallVec::new(),
            has_waited_for_credential: false,
        }
    }

    /// The plan of the same request for another pool; attempts and waits so far count.
    #[must_use]
    pub fn continue_in_pool(&self, pool: &BackendPool) -> Self {
        Self {
            attempts_started: self.attempts_started,
            total_cooldown_wait: self.total_cooldown_wait,
            ..Self::new(pool)
        }
    }

    /// How many attempts have been started.
    pub fn attempts_started(&self) -> u32 {
        self.attempts_started
    }

    /// What to do next. `jitter`, from 0 to 1, shortens the wait before a further round by up to half.
    pub fn next_step(
        &self,
        pool: &BackendPool,
        operation: Operation,
        limits: &RetryLimits,
        now: Instant,
        jitter: f64,
    ) -> NextStep {
        match self.find_next_step(pool, operation, limits, now, jitter) {
            // A new secret may have come during the search: its candidate was still unavailable when an
            // eligible one was looked for, and its fetch had ended when one to wait for was.
            NextStep::Exhausted if self.has_eligible_candidate(pool, operation, now) => {
                self.find_next_step(pool, operation, limits, now, jitter)
            }
            step => step,
        }
    }

    /// Records that a wait is over.
    pub fn on_wait_over(&mut self, wait: Wait) {
        match wait.purpose {
            WaitPurpose::Cooldown(index) => {
                self.total_cooldown_wait += wait.duration;
                self.cooldown_waits += 1;
                self.set_candidate_state(index, CandidateState::Untried);
            }
            WaitPurpose::NextRound { decided_at } => {
                self.extra_rounds += 1;
                self.outage_began_at.get_or_insert(decided_at);
                for state in &mut self.candidate_states {
                    if *state == CandidateState::Failed {
                        *state = CandidateState::Untried;
                    }
                }
            }
        }
    }

    /// Records that the wait for a secret is over, whether there is a new one or not.
    pub fn on_credential_wait_over(&mut self) {
        self.has_waited_for_credential = true;
    }

    /// Records that an attempt starts.
    pub fn on_attempt_start(&mut self, pool: &BackendPool, attempt: &NextAttempt, now: Instant) {
        let index = attempt.candidate_index;
        if self.attempts_started == 0 {
            pool.retry_budget.record_request(now);
        }
        if attempt.uses_retry_budget {
            pool.retry_budget.record_retry(now);
        }
        if attempt.is_last_resort {
            self.candidates_tried_as_last_resort.push(index);
        }
        if matches!(self.candidate_states.get(index), Some(CandidateState::CredentialRejected(_))) {
            self.candidates_retried_with_new_secret.push(index);
        }
        self.attempts_started += 1;
    }

    /// Records what became of the attempt on the candidate at this index.
    pub fn on_attempt_end(&mut self, pool: &BackendPool, index: usize, outcome: AttemptOutcome) {
        // A stale connection twice in one request is a failure of the backend.
        let is_second =
            outcome == AttemptOutcome::Uncounted && self.candidates_with_uncounted_attempt.contains(&index);
        let outcome = if is_second { AttemptOutcome::Failed } else { outcome };
        let state = match outcome {
            AttemptOutcome::Throttled(until) => CandidateState::Throttled(until),
            AttemptOutcome::Failed => CandidateState::Failed,
            AttemptOutcome::CredentialRejected(secret_id) => CandidateState::CredentialRejected(secret_id),
            AttemptOutcome::CannotServe => CandidateState::CannotServe,
            AttemptOutcome::TierCannotServe => {
                let tier = pool.tiers().iter().find(|tier| tier.member_indexes.contains(&index));
                for member in tier.into_iter().flat_map(|tier| tier.member_indexes.clone()) {
                    self.set_candidate_state(member, CandidateState::CannotServe);
                }
                CandidateState::CannotServe
            }
            AttemptOutcome::Uncounted => {
                self.candidates_with_uncounted_attempt.push(index);
                self.uncounted_attempts += 1;
                CandidateState::Untried
            }
        };
        self.failed_attempts += u32::from(outcome == AttemptOutcome::Failed);
        self.last_outcome = Some(outcome);
        self.set_candidate_state(index, state);
    }

    /// Records a failure of the candidate at this index. Returns whether it is its first in this request,
    /// the only one that counts for its circuit breaker.
    pub fn record_failure(&mut self, index: usize) -> bool {
        let is_first = !self.failed_candidates.contains(&index);
        if is_first {
            self.failed_candidates.push(index);
        }
        is_first
    }

    /// Whether the candidate at this index has had an attempt that does not count.
    pub fn had_uncounted_attempt(&self, index: usize) -> bool {
        self.candidates_with_uncounted_attempt.contains(&index)
    }

    /// Whether some candidate is available now that this request has not tried.
    pub fn has_eligible_candidate(&self, pool: &BackendPool, operation: Operation, now: Instant) -> bool {
        (0..pool.candidates().len()).any(|index| self.is_eligible(pool, index, operation, now))
    }

    /// When the first of the cooldowns in the pool ends, whichever request caused it.
    pub fn earliest_cooldown_end(
        &self,
        pool: &BackendPool,
        operation: Operation,
        now: Instant,
    ) -> Option<Instant> {
        let indexes = 0..pool.candidates().len();
        indexes.filter_map(|index| self.cooldown_end(pool, index, operation, now)).min()
    }

    fn find_next_step(
        &self,
        pool: &BackendPool,
        operation: Operation,
        limits: &RetryLimits,
        now: Instant,
        jitter: f64,
    ) -> NextStep {
        let counted_attempts = self.attempts_started - self.uncounted_attempts;
        let is_first = counted_attempts == 0 || self.last_outcome == Some(AttemptOutcome::Uncounted);
        let outage_end = self.outage_began_at.map(|began_at| began_at + limits.max_outage);
        let latest_start =
            outage_end.map_or(limits.latest_retry_start, |end| end.min(limits.latest_retry_start));
        let is_in_time = |wait| is_first || now + wait <= latest_start;
        if counted_attempts > limits.max_retries || !is_in_time(Duration::ZERO) {
            return NextStep::Exhausted;
        }
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
                if self.total_cooldown_wait + duration <= limits.max_cooldown_wait && is_in_time(duration) {
                    return NextStep::Wait(Wait { duration, purpose: WaitPurpose::Cooldown(index) });
                }
            }
        }
        if let Some(index) = self.candidate_awaiting_credential(pool, operation, now) {
            return NextStep::AwaitCredential(index);
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
        operation: Operation,
        now: Instant,
    ) -> Option<NextAttempt> {
        // Between the pick and the permit another request may begin to probe the candidate, which then
        // is no longer eligible.
        for _ in 0..=tier.member_indexes.len() {
            let index =
                pool.pick_in_tier(tier, |index| self.is_eligible(pool, index, operation, now), now)?;
            let permit =
                pool.candidate(index).and_then(|candidate| candidate.acquire_probe_permit(operation, now));
            if let Some(permit) = permit {
                return Some(NextAttempt::for_candidate(index, permit));
            }
        }
        None
    }

    /// An attempt on a candidate that is unavailable, since no other is left: one whose circuit is open,
    /// or else, once a second, one that only the operator can repair.
    fn last_resort_attempt(
        &self,
        pool: &BackendPool,
        operation: Operation,
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
    fn half_open_soonest(&self, pool: &BackendPool, operation: Operation, now: Instant) -> Option<usize> {
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

    fn set_candidate_state(&mut self, index: usize, state: CandidateState) {
        if let Some(slot) = self.candidate_states.get_mut(index) {
            *slot = state;
        }
    }

    /// Whether this request may be sent to the candidate now.
    fn is_eligible(&self, pool: &BackendPool, index: usize, operation: Operation, now: Instant) -> bool {
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
        operation: Operation,
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

    /// When the cooldown of the candidate ends, if this request may be sent to it after that.
    fn cooldown_end(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: Operation,
        now: Instant,
    ) -> Option<Instant> {
        let unavailable =
            pool.candidate(index).and_then(|candidate| candidate.unavailability(operation, now));
        let cooldown_end = match unavailable {
            Some(unavailable) if unavailable.reason != UnavailableReason::CoolingDown => return None,
            unavailable => unavailable.map(|unavailable| unavailable.until),
        };
        match *self.candidate_states.get(index)? {
            CandidateState::Untried => cooldown_end,
            CandidateState::Throttled(until) => Some(cooldown_end.unwrap_or(until)),
            CandidateState::Failed | CandidateState::CredentialRejected(_) | CandidateState::CannotServe => {
                None
            }
        }
    }
}

impl NextAttempt {
    fn for_candidate(candidate_index: usize, probe_permit: ProbePermit) -> Self {
        Self { candidate_index, probe_permit, is_last_resort: false, uses_retry_budget: false }
    }
}

/// What a request knows of a candidate from its own attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CandidateState {
    Untried,
    /// Asked to wait until then.
    Throttled(Instant),
    Failed,
    /// Rejected the secret of this id.
    CredentialRejected(u64),
    CannotServe,
}

#[cfg(test)]
#[path = "retry_plan_tests.rs"]
mod tests;
