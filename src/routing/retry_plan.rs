//! One request's way through its pool: who was asked, what came of it, who is next.
//!
//! The rules are the contract's "Choosing, exactly". Waiting itself, and what
//! a reply means, are decided elsewhere; time is an argument.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::health::{Claim, Reason};
use super::pool::{Pool, TierOfPool};
use crate::azure::Operation;
use crate::config::Ratio;

/// The first pause before backends that failed are asked again; it doubles each round.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// The shortest wait for a cooldown: a hint of zero must not become a busy loop.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// What one request may spend.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Tries after the first.
    pub attempts: u32,
    /// All waits for cooldowns together.
    pub wait: Duration,
    /// No try after the first starts later.
    pub latest_start: Instant,
    /// The pool's budget for tries that follow a failure.
    pub budget: Ratio,
}

/// What came of a try, as far as choosing the next one goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It asked to wait until then: 429.
    Throttled(Instant),
    /// Connect error, reset, time-out, 5xx: may be asked again in a further round, as far as
    /// the budget goes.
    Failed,
    /// The secret of this number was refused: it may be asked with another, once.
    Refused(u64),
    /// It cannot serve this request: permission, missing deployment, unknown id, or a refusal
    /// that the operator wants tried elsewhere. It would say the same again.
    Unfit,
    /// Nobody has really said no: a pooled connection had died before the request reached
    /// anyone, or the request has to be put differently. May be asked again, once, and the try
    /// counts as none.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Untried,
    Throttled(Instant),
    Failed,
    Refused(u64),
    Unfit,
}

/// What to do next.
#[derive(Debug)]
pub enum Choice {
    /// Ask a candidate.
    Try(Try),
    /// Wait, call [`Journey::waited`] with it, and choose again.
    Wait(Pause),
    /// Wait until the secret of the candidate at this place is a new one or will not be, call
    /// [`Journey::renewed`], and choose again.
    Renewal(usize),
    /// There is no further try.
    Spent,
}

/// A try that has been chosen.
#[derive(Debug)]
pub struct Try {
    /// The candidate's place in the pool.
    pub place: usize,
    /// What it finds out for others.
    pub claim: Claim,
    /// It is asked although its breaker is open, since nobody else is left.
    pub is_last_hope: bool,
    /// It is taken from the pool's budget.
    is_counted: bool,
}

/// A wait and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// How long.
    pub length: Duration,
    purpose: Purpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Cooldown(usize),
    Round,
}

/// The state of the way.
#[derive(Debug)]
pub struct Journey {
    marks: SmallVec<[Mark; 8]>,
    again: SmallVec<[usize; 2]>,
    failed: SmallVec<[usize; 2]>,
    tries: u32,
    rounds: u32,
    waited: Duration,
    /// Tries that count as none.
    uncounted: u32,
    /// Tries that ended in a failure.
    failures: u32,
    last: Option<Outcome>,
    hoped: SmallVec<[usize; 2]>,
    /// Who was asked again with a new secret.
    renewed: SmallVec<[usize; 2]>,
    has_waited_for_secret: bool,
}

impl Journey {
    /// The beginning of a way through this pool.
    pub fn through(pool: &Pool) -> Self {
        Self {
            marks: SmallVec::from_elem(Mark::Untried, pool.candidates().len()),
            again: SmallVec::new(),
            failed: SmallVec::new(),
            tries: 0,
            rounds: 0,
            waited: Duration::ZERO,
            uncounted: 0,
            failures: 0,
            last: None,
            hoped: SmallVec::new(),
            renewed: SmallVec::new(),
            has_waited_for_secret: false,
        }
    }

    /// The same way, going on through another pool.
    #[must_use]
    pub fn onwards(&self, pool: &Pool) -> Self {
        Self { tries: self.tries, waited: self.waited, ..Self::through(pool) }
    }

    /// Tries begun so far.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Whose turn it is. `jitter`, 0 to 1, shortens the pause before a further round by up to
    /// half.
    pub fn choose(
        &self,
        pool: &Pool,
        operation: Operation,
        allowance: &Allowance,
        now: Instant,
        jitter: f64,
    ) -> Choice {
        match self.look(pool, operation, allowance, now, jitter) {
            // A new secret may have come between two looks at the same candidate: the first found
            // it resting, the second nothing to wait for.
            Choice::Spent if self.has_untried(pool, operation, now) => {
                self.look(pool, operation, allowance, now, jitter)
            }
            choice => choice,
        }
    }

    fn look(
        &self,
        pool: &Pool,
        operation: Operation,
        allowance: &Allowance,
        now: Instant,
        jitter: f64,
    ) -> Choice {
        let counted = self.tries - self.uncounted;
        let first = counted == 0 || self.last == Some(Outcome::Again);
        let in_time = |wait| first || now + wait <= allowance.latest_start;
        if counted > allowance.attempts || !in_time(Duration::ZERO) {
            return Choice::Spent;
        }
        for tier in pool.tiers() {
            if let Some((place, claim)) = self.next_of(tier, pool, operation, now) {
                return self.within_budget(Try::of(place, claim), pool, allowance, now);
            }
            let soonest =
                tier.members.clone().filter_map(|at| Some((self.cools(pool, at, operation, now)?, at)));
            if let Some((until, at)) = soonest.min() {
                let length = until.saturating_duration_since(now).max(SHORTEST_WAIT);
                if self.waited + length <= allowance.wait && in_time(length) {
                    return Choice::Wait(Pause { length, purpose: Purpose::Cooldown(at) });
                }
            }
        }
        if let Some(place) = self.awaits_secret(pool, operation, now).filter(|_| in_time(Duration::ZERO)) {
            return Choice::Renewal(place);
        }
        // Where somebody merely cools, the client is told when.
        let cools = || self.soonest_cooldown(pool, operation, now).is_some();
        if let Some(place) = self.last_hope(pool, operation, now).filter(|_| !cools()) {
            let hope = Try { is_last_hope: true, ..Try::of(place, Claim::default()) };
            return self.within_budget(hope, pool, allowance, now);
        }
        // Nobody waits for a round that the budget does not allow.
        if self.marks.contains(&Mark::Failed) && self.may_follow(pool, allowance, now) {
            let pause = ROUND_PAUSE * 2_u32.saturating_pow(self.rounds.min(16));
            let length = pause.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
            if in_time(length) {
                return Choice::Wait(Pause { length, purpose: Purpose::Round });
            }
        }
        Choice::Spent
    }

    /// The next open candidate of a tier, and the right to ask it.
    fn next_of(
        &self,
        tier: &TierOfPool,
        pool: &Pool,
        operation: Operation,
        now: Instant,
    ) -> Option<(usize, Claim)> {
        // Another request may be faster to claim one that was open a moment ago.
        for _ in 0..=tier.members.len() {
            let place = pool.next_of(tier, |place| self.is_open(pool, place, operation, now), now)?;
            if let Some(claim) = pool.candidate(place).and_then(|candidate| candidate.claim(operation, now)) {
                return Some((place, claim));
            }
        }
        None
    }

    /// Where only open breakers stand in the way: the one that closes soonest, each once.
    fn last_hope(&self, pool: &Pool, operation: Operation, now: Instant) -> Option<usize> {
        let closes = |place: usize| match self.marks.get(place)? {
            Mark::Untried if !self.hoped.contains(&place) => {
                Some((pool.candidate(place)?.only_breaker(operation, now)?, place))
            }
            _ => None,
        };
        (0..pool.candidates().len()).filter_map(closes).min().map(|(_, place)| place)
    }

    /// The budget limits tries that follow a failure; the first failover of a request to a
    /// backend that it has not tried is always free.
    fn within_budget(&self, chosen: Try, pool: &Pool, allowance: &Allowance, now: Instant) -> Choice {
        let is_first_failover = self.failures == 1 && self.rounds == 0 && !chosen.is_last_hope;
        let is_counted = self.last == Some(Outcome::Failed) && !is_first_failover;
        if is_counted && !self.may_follow(pool, allowance, now) {
            return Choice::Spent;
        }
        Choice::Try(Try { is_counted, ..chosen })
    }

    /// Whether the budget has room for a try that follows what came of the last.
    fn may_follow(&self, pool: &Pool, allowance: &Allowance, now: Instant) -> bool {
        self.last != Some(Outcome::Failed) || pool.budget.allows(allowance.budget, now)
    }

    /// Takes note that the pause is over.
    pub fn waited(&mut self, pause: Pause) {
        match pause.purpose {
            Purpose::Cooldown(place) => {
                self.waited += pause.length;
                self.mark(place, Mark::Untried);
            }
            Purpose::Round => {
                self.rounds += 1;
                for mark in self.marks.iter_mut().filter(|mark| **mark == Mark::Failed) {
                    *mark = Mark::Untried;
                }
            }
        }
    }

    /// Takes note that there is a new secret, or will not be one soon.
    pub fn renewed(&mut self) {
        self.has_waited_for_secret = true;
    }

    /// Takes note that a try begins.
    pub fn begin(&mut self, pool: &Pool, chosen: &Try, now: Instant) {
        if self.tries == 0 {
            pool.budget.request(now);
        }
        if chosen.is_counted {
            pool.budget.spend(now);
        }
        if chosen.is_last_hope {
            self.hoped.push(chosen.place);
        }
        if matches!(self.marks.get(chosen.place), Some(Mark::Refused(_))) {
            self.renewed.push(chosen.place);
        }
        self.tries += 1;
    }

    /// Whether the candidate at this place fails this request for the first time: later
    /// failures say nothing new about it.
    pub fn fails_first(&mut self, place: usize) -> bool {
        let first = !self.failed.contains(&place);
        if first {
            self.failed.push(place);
        }
        first
    }

    /// Whether a try of the candidate at this place has counted as none.
    pub fn was_again(&self, place: usize) -> bool {
        self.again.contains(&place)
    }

    /// Takes note of what came of the try of the candidate at this place.
    pub fn end(&mut self, place: usize, outcome: Outcome) {
        // A second time in one request it is the backend's failure.
        let is_second = outcome == Outcome::Again && self.again.contains(&place);
        let outcome = if is_second { Outcome::Failed } else { outcome };
        let mark = match outcome {
            Outcome::Throttled(until) => Mark::Throttled(until),
            Outcome::Failed => Mark::Failed,
            Outcome::Refused(secret) => Mark::Refused(secret),
            Outcome::Unfit => Mark::Unfit,
            Outcome::Again => {
                self.again.push(place);
                self.uncounted += 1;
                Mark::Untried
            }
        };
        self.failures += u32::from(outcome == Outcome::Failed);
        self.last = Some(outcome);
        self.mark(place, mark);
    }

    /// Whether some candidate could be asked now that this request has not tried.
    pub fn has_untried(&self, pool: &Pool, operation: Operation, now: Instant) -> bool {
        (0..pool.candidates().len()).any(|place| self.is_open(pool, place, operation, now))
    }

    /// The soonest moment at which some candidate that asked to wait, of this or another
    /// request, is over it.
    pub fn soonest_cooldown(&self, pool: &Pool, operation: Operation, now: Instant) -> Option<Instant> {
        let all = 0..pool.candidates().len();
        all.filter_map(|place| self.cools(pool, place, operation, now)).min()
    }

    fn mark(&mut self, place: usize, mark: Mark) {
        if let Some(slot) = self.marks.get_mut(place) {
            *slot = mark;
        }
    }

    fn is_open(&self, pool: &Pool, place: usize, operation: Operation, now: Instant) -> bool {
        let (Some(mark), Some(candidate)) = (self.marks.get(place), pool.candidate(place)) else {
            return false;
        };
        let may_be_asked = match mark {
            Mark::Untried => true,
            Mark::Refused(secret) => {
                !self.renewed.contains(&place) && candidate.credential.kept().number() != *secret
            }
            _ => false,
        };
        may_be_asked && candidate.resting(operation, now).is_none()
    }

    /// Whom nothing keeps from being asked but a secret that is being renewed. A request waits for
    /// that once.
    fn awaits_secret(&self, pool: &Pool, operation: Operation, now: Instant) -> Option<usize> {
        if self.has_waited_for_secret {
            return None;
        }
        let awaits = |place: &usize| {
            let (Some(mark), Some(candidate)) = (self.marks.get(*place), pool.candidate(*place)) else {
                return false;
            };
            let may_be_asked = match mark {
                Mark::Untried => true,
                Mark::Refused(_) => !self.renewed.contains(place),
                _ => false,
            };
            may_be_asked
                && candidate.credential.kept().is_awaited()
                && candidate.resting(operation, now).is_none_or(|rest| rest.reason == Reason::Credential)
        };
        (0..pool.candidates().len()).find(awaits)
    }

    /// Until when the candidate cools, if waiting for it can help.
    fn cools(&self, pool: &Pool, place: usize, operation: Operation, now: Instant) -> Option<Instant> {
        let rest = pool.candidate(place).and_then(|candidate| candidate.resting(operation, now));
        let shared = match rest {
            Some(rest) if rest.reason != Reason::Cooling => return None,
            rest => rest.map(|rest| rest.until),
        };
        match *self.marks.get(place)? {
            Mark::Untried => shared,
            Mark::Throttled(until) => Some(shared.unwrap_or(until)),
            Mark::Failed | Mark::Refused(_) | Mark::Unfit => None,
        }
    }
}

impl Try {
    fn of(place: usize, claim: Claim) -> Self {
        Self { place, claim, is_last_hope: false, is_counted: false }
    }
}

#[cfg(test)]
#[path = "retry_plan_tests.rs"]
mod tests;
