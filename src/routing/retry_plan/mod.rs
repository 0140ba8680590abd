//! The retry plan of one request: which backend of its pool is tried next, after what became of the
//! attempts so far.
//!
//! Waiting itself, and what a response means, are decided elsewhere; time is an argument. The choice of the
//! next step is in `next_step.rs`, the search for the resource that has an object in `resource_search.rs`, and which
//! candidates it leaves to more urgent requests in `shedding.rs`.

mod backend_choice;
mod next_step;
mod prompt_moves;
mod resource_search;
mod search_steps;
mod shedding;
mod spilling;

use std::time::{Duration, Instant};

use smallvec::SmallVec;

pub use self::backend_choice::BackendChoice;
pub use self::resource_search::ResourceSearch;
use self::resource_search::SearchProgress;
pub use self::shedding::ShedRule;
use super::attempt_outcome::AttemptOutcome;
use super::health::probe_permit::ProbePermit;
use super::health::slow_start::UndecidedRequest;
use super::pool::BackendPool;
use super::prompt_cache::{MoveReason, PromptRoute};
use super::routed_operation::RoutedOperation;
use crate::config::Percentage;

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
    /// How long it may wait in the queue; `None` if it does not.
    pub max_queue_wait: Option<Duration>,
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
    /// Wait in the queue for a backend of [`RetryPlan::backend_choice`]. Call [`RetryPlan::on_queue_given_up`] if that ends
    /// without an attempt.
    Queue,
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
    /// Its place among the requests that have waited in the queue; `None` for one that has not.
    pub undecided: Option<UndecidedRequest>,
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
    /// Another round of asking the resources for what the request refers to.
    NextAskRound,
    /// The client asks too often.
    AskTurn,
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
    /// The attempt comes from the queue.
    is_queued_attempt: bool,
    /// Attempts from the queue that were throttled: the request goes back to its place.
    queue_refusals: u32,
    has_left_queue: bool,
    /// `None` if any backend of the pool will do.
    search: Option<Box<SearchProgress>>,
    /// `None` if it leaves no candidate to more urgent requests.
    shed_rule: Option<ShedRule>,
    /// `None` if it is not routed by its prompt.
    prompt_route: Option<PromptRoute>,
    /// Why the last attempt did not go to the first backend of the prompt's key.
    move_reason: Option<MoveReason>,
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
            is_queued_attempt: false,
            queue_refusals: 0,
            has_left_queue: false,
            search: None,
            shed_rule: None,
            prompt_route: None,
            move_reason: None,
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
        operation: RoutedOperation,
        limits: &RetryLimits,
        now: Instant,
        jitter: f64,
    ) -> NextStep {
        // Whatever is free is for those that still wait.
        if self.has_left_queue {
            return NextStep::Exhausted;
        }
        match self.find_next_step(pool, operation, limits, now, jitter) {
            // A new secret may have come during the search: its candidate was still unavailable when an
            // eligible one was looked for, and its fetch had ended when one to wait for was.
            NextStep::Exhausted if self.has_eligible_candidate(pool, operation, now) => {
                self.find_next_step(pool, operation, limits, now, jitter)
            }
            NextStep::Exhausted if self.may_begin_to_queue(pool, operation, limits, now) => NextStep::Queue,
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
            WaitPurpose::NextAskRound => self.on_round_wait_over(),
            WaitPurpose::AskTurn => {
                if let Some(progress) = &mut self.search {
                    progress.next_ask_at = None;
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
        self.is_queued_attempt = attempt.undecided.is_some();
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
            AttemptOutcome::NotOnThisResource => {
                self.on_denial(pool, index);
                CandidateState::NotHere
            }
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
        let was_throttled = matches!(outcome, AttemptOutcome::Throttled(_));
        self.queue_refusals += u32::from(was_throttled && self.is_queued_attempt);
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
    pub fn has_eligible_candidate(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        now: Instant,
    ) -> bool {
        (0..pool.candidates().len()).any(|index| self.is_eligible(pool, index, operation, now))
    }

    /// When the first of the cooldowns in the pool ends, whichever request caused it.
    pub fn earliest_cooldown_end(
        &self,
        pool: &BackendPool,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<Instant> {
        let indexes = 0..pool.candidates().len();
        indexes.filter_map(|index| self.cooldown_end(pool, index, operation, now)).min()
    }

    fn set_candidate_state(&mut self, index: usize, state: CandidateState) {
        if let Some(slot) = self.candidate_states.get_mut(index) {
            *slot = state;
        }
    }
}

impl NextAttempt {
    /// The attempt on a candidate that alone can serve the request.
    pub fn pinned(candidate_index: usize) -> Self {
        Self::for_candidate(candidate_index, ProbePermit::default())
    }

    fn for_candidate(candidate_index: usize, probe_permit: ProbePermit) -> Self {
        Self {
            candidate_index,
            probe_permit,
            is_last_resort: false,
            undecided: None,
            uses_retry_budget: false,
        }
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
    /// Its resource does not have what the request refers to.
    NotHere,
    /// Its resource must not be asked.
    OtherResource,
}

#[cfg(test)]
mod prompt_moves_tests;
#[cfg(test)]
mod search_tests;
#[cfg(test)]
mod shedding_tests;
#[cfg(test)]
mod spilling_tests;
#[cfg(test)]
mod tests;
