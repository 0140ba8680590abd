//! One request's way through its pool: who was asked, what came of it, who is next.
//!
//! The rules are the contract's "Choosing, exactly", steps 1 to 3. Waiting itself, and what
//! a reply means, are decided elsewhere; time is an argument.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::health::Reason;
use super::pool::{Candidate, Pool};
use crate::azure::Operation;

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
}

/// What came of a try, as far as choosing the next one goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It asked to wait until then: 429.
    Throttled(Instant),
    /// Connect error, reset, time-out, 5xx: may be asked again in a further round.
    Failed,
    /// It cannot serve this request at all: credential, missing deployment, unknown id.
    Unfit,
    /// Nobody has really said no: a pooled connection had died before the request reached
    /// anyone, or the request has to be put differently. May be asked again, once.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Untried,
    Throttled(Instant),
    Failed,
    Unfit,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Ask the candidate at this place.
    Try(usize),
    /// Wait, call [`Journey::waited`] with it, and choose again.
    Wait(Pause),
    /// There is no further try.
    Spent,
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
    tries: u32,
    rounds: u32,
    waited: Duration,
}

impl Journey {
    /// The beginning of a way through this pool.
    pub fn through(pool: &Pool) -> Self {
        Self {
            marks: SmallVec::from_elem(Mark::Untried, pool.candidates().len()),
            again: SmallVec::new(),
            tries: 0,
            rounds: 0,
            waited: Duration::ZERO,
        }
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
        let first = self.tries == 0;
        let in_time = |wait| first || now + wait <= allowance.latest_start;
        if self.tries > allowance.attempts || !in_time(Duration::ZERO) {
            return Choice::Spent;
        }
        for tier in pool.tiers() {
            let place = |member: usize| tier.members.start + member;
            let open = |member: usize| self.is_open(pool, place(member), operation, now);
            if let Some(member) = tier.wheel.next(open) {
                return Choice::Try(place(member));
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
        if self.marks.contains(&Mark::Failed) {
            let pause = ROUND_PAUSE * 2_u32.saturating_pow(self.rounds.min(16));
            let length = pause.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
            if in_time(length) {
                return Choice::Wait(Pause { length, purpose: Purpose::Round });
            }
        }
        Choice::Spent
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

    /// Takes note that a try begins.
    pub fn begin(&mut self) {
        self.tries += 1;
    }

    /// Takes note of what came of the try of the candidate at this place.
    pub fn end(&mut self, place: usize, outcome: Outcome) {
        let mark = match outcome {
            Outcome::Throttled(until) => Mark::Throttled(until),
            Outcome::Failed => Mark::Failed,
            Outcome::Unfit => Mark::Unfit,
            // A second time in one request it is the backend's failure.
            Outcome::Again if self.again.contains(&place) => Mark::Failed,
            Outcome::Again => {
                self.again.push(place);
                Mark::Untried
            }
        };
        self.mark(place, mark);
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
        self.marks.get(place) == Some(&Mark::Untried)
            && pool.candidate(place).is_some_and(|candidate| candidate.resting(operation, now).is_none())
    }

    /// Until when the candidate cools, if waiting for it can help.
    fn cools(&self, pool: &Pool, place: usize, operation: Operation, now: Instant) -> Option<Instant> {
        let rest = pool.candidate(place).and_then(|candidate: &Candidate| candidate.resting(operation, now));
        let shared = match rest {
            Some(rest) if rest.reason != Reason::Cooling => return None,
            rest => rest.map(|rest| rest.until),
        };
        match *self.marks.get(place)? {
            Mark::Untried => shared,
            Mark::Throttled(until) => Some(shared.unwrap_or(until)),
            Mark::Failed | Mark::Unfit => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::names::{BackendName, Tier, Weight};
    use crate::routing::health::{Memory, Rest};

    const MS: Duration = Duration::from_millis(1);
    const CHAT: Operation = Operation::Chat;

    struct World {
        now: Instant,
        memory: Memory,
        pool: Pool,
        allowance: Allowance,
    }

    /// Backends `0, 1, …`, each in the tier given.
    fn world(tiers: &[u16]) -> World {
        let now = Instant::now();
        let memory = Memory::new(now);
        let candidate = |(backend, tier): (usize, &u16)| {
            let memory = memory.backend(&BackendName::new(&backend.to_string()));
            let deployment = Some(memory.deployment(None));
            let tier = Tier::new(*tier).unwrap();
            Candidate {
                backend,
                tier,
                weight: Weight::ONE,
                upstream: None,
                memory: Arc::clone(&memory),
                deployment,
            }
        };
        let pool = Pool::new(tiers.iter().enumerate().map(candidate).collect());
        let allowance = Allowance { attempts: 12, wait: 250 * MS, latest_start: now + 120_000 * MS };
        World { now, memory, pool, allowance }
    }

    impl World {
        fn choose(&self, journey: &Journey) -> Choice {
            journey.choose(&self.pool, CHAT, &self.allowance, self.now, 0.0)
        }

        fn tries(&self, journey: &mut Journey) -> usize {
            match self.choose(journey) {
                Choice::Try(place) => {
                    journey.begin();
                    place
                }
                other => panic!("expected a try, got {other:?}"),
            }
        }

        fn rests(&self, backend: usize, reason: Reason, ms: u32) {
            let rest = Rest { reason, until: self.now + ms * MS };
            let name = BackendName::new(&backend.to_string());
            self.memory.backend(&name).deployment(None).cell.rest(rest, self.now);
        }
    }

    fn pause(choice: Choice) -> Pause {
        match choice {
            Choice::Wait(pause) => pause,
            other => panic!("expected a wait, got {other:?}"),
        }
    }

    #[test]
    fn each_backend_once_tier_by_tier_then_rounds_over_those_that_failed() {
        let mut world = world(&[1, 1, 2]);
        let mut journey = Journey::through(&world.pool);
        let mut seen = Vec::new();
        for _ in 0..3 {
            let place = world.tries(&mut journey);
            seen.push(place);
            let until = world.now + 10_000 * MS;
            journey.end(place, if place == 2 { Outcome::Throttled(until) } else { Outcome::Failed });
        }
        assert_eq!(seen, [0, 1, 2]);
        for expected in [100, 200, 400] {
            let pause = pause(world.choose(&journey));
            assert_eq!(pause.length, expected * MS);
            world.now += pause.length;
            journey.waited(pause);
            for _ in 0..2 {
                let place = world.tries(&mut journey);
                assert_ne!(place, 2, "it asked to wait");
                journey.end(place, Outcome::Failed);
            }
        }
        world.allowance.latest_start = world.now + 799 * MS;
        assert_eq!(world.choose(&journey), Choice::Spent, "the next round would begin too late");
    }

    #[test]
    fn attempts_are_bounded() {
        let mut world = world(&[1, 1]);
        world.allowance.attempts = 1;
        let mut journey = Journey::through(&world.pool);
        for _ in 0..2 {
            let place = world.tries(&mut journey);
            journey.end(place, Outcome::Failed);
        }
        assert_eq!(world.choose(&journey), Choice::Spent);
    }

    #[test]
    fn a_short_cooldown_is_waited_for_and_a_long_one_spills() {
        let mut world = world(&[1, 2]);
        world.rests(0, Reason::Cooling, 40);
        let mut journey = Journey::through(&world.pool);
        let wait = pause(world.choose(&journey));
        assert_eq!(wait.length, 40 * MS);
        world.now += wait.length;
        journey.waited(wait);
        assert_eq!(world.tries(&mut journey), 0);
        // It refuses again and asks for more than is left of the allowance.
        journey.end(0, Outcome::Throttled(world.now + 220 * MS));
        assert_eq!(world.tries(&mut journey), 1);
    }

    #[test]
    fn a_hint_of_zero_is_no_busy_loop() {
        let mut world = world(&[1, 2]);
        let mut journey = Journey::through(&world.pool);
        let mut asked = 0;
        while world.tries(&mut journey) == 0 {
            asked += 1;
            journey.end(0, Outcome::Throttled(world.now));
            if let Choice::Wait(wait) = world.choose(&journey) {
                world.now += wait.length;
                journey.waited(wait);
            }
            if asked > 12 {
                break;
            }
        }
        assert!(asked <= 13);
    }

    #[test]
    fn only_throttled_backends_end_at_once_and_tell_the_soonest() {
        let world = world(&[1, 2]);
        world.rests(1, Reason::Cooling, 3000);
        let mut journey = Journey::through(&world.pool);
        let place = world.tries(&mut journey);
        journey.end(place, Outcome::Throttled(world.now + 5000 * MS));
        assert_eq!(world.choose(&journey), Choice::Spent);
        assert_eq!(journey.soonest_cooldown(&world.pool, CHAT, world.now), Some(world.now + 3000 * MS));
    }

    #[test]
    fn what_lacks_the_deployment_is_neither_asked_nor_waited_for() {
        let world = world(&[1, 1]);
        world.rests(0, Reason::Absent, 50);
        let mut journey = Journey::through(&world.pool);
        assert_eq!(world.tries(&mut journey), 1);
        journey.end(1, Outcome::Unfit);
        assert_eq!(world.choose(&journey), Choice::Spent);
    }

    #[test]
    fn a_stale_connection_is_no_try_of_the_backend_once() {
        let world = world(&[1]);
        let mut journey = Journey::through(&world.pool);
        for outcome in [Outcome::Again, Outcome::Again] {
            assert_eq!(world.tries(&mut journey), 0);
            journey.end(0, outcome);
        }
        assert!(matches!(world.choose(&journey), Choice::Wait(_)));
    }
}
