//! Tables of what a journey asks next.

use std::sync::Arc;

use super::*;
use crate::config::Balance;
use crate::credentials::Credential;
use crate::names::{BackendName, Tier, Weight};
use crate::routing::health::{Memory, Rest};
use crate::routing::pool::Candidate;

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
    world_of(tiers, || Credential::for_test("key"))
}

fn world_of(tiers: &[u16], credential: fn() -> Credential) -> World {
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
            credential: Arc::new(credential()),
            memory: Arc::clone(&memory),
            deployment,
        }
    };
    let pool = Pool::new(tiers.iter().enumerate().map(candidate).collect(), Balance::RoundRobin, now);
    let budget = Ratio::new(20).unwrap();
    let allowance = Allowance { attempts: 12, wait: 250 * MS, latest_start: now + 120_000 * MS, budget };
    World { now, memory, pool, allowance }
}

impl World {
    fn choose(&self, journey: &Journey) -> Choice {
        journey.choose(&self.pool, CHAT, &self.allowance, self.now, 0.0)
    }

    fn tries(&self, journey: &mut Journey) -> usize {
        match self.choose(journey) {
            Choice::Try(chosen) => {
                journey.begin(&self.pool, &chosen, self.now);
                // Nobody waits for what it finds out.
                chosen.claim.open();
                chosen.place
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
    assert!(matches!(world.choose(&journey), Choice::Spent), "the next round would begin too late");
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
    assert!(matches!(world.choose(&journey), Choice::Spent));
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
    assert!(matches!(world.choose(&journey), Choice::Spent));
    assert_eq!(journey.soonest_cooldown(&world.pool, CHAT, world.now), Some(world.now + 3000 * MS));
}

#[test]
fn what_lacks_the_deployment_is_neither_asked_nor_waited_for() {
    let world = world(&[1, 1]);
    world.rests(0, Reason::Absent, 50);
    let mut journey = Journey::through(&world.pool);
    assert_eq!(world.tries(&mut journey), 1);
    journey.end(1, Outcome::Unfit);
    assert!(matches!(world.choose(&journey), Choice::Spent));
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

#[test]
fn after_a_cooldown_one_goes_first_and_the_others_wait_for_its_luck() {
    let mut world = world(&[1]);
    world.rests(0, Reason::Cooling, 10);
    world.now += 10 * MS;
    let (first, second) = (Journey::through(&world.pool), Journey::through(&world.pool));
    let Choice::Try(probe) = world.choose(&first) else { panic!("one goes first") };
    assert!(world.pool.candidate(0).is_some_and(|c| probe.claim.holds(&c.deployment.as_ref().unwrap().cell)));
    let wait = pause(world.choose(&second));
    assert_eq!(wait.length, 100 * MS, "at most as long as refusals take");
    probe.claim.open();
    assert!(matches!(world.choose(&second), Choice::Try(_)));
}

#[test]
fn with_only_open_breakers_left_each_is_asked_once_the_soonest_first() {
    let world = world(&[1, 1]);
    for (backend, ms) in [(0, 9000), (1, 5000)] {
        let memory = world.memory.backend(&BackendName::new(&backend.to_string()));
        memory.breaker.cell.rest(Rest { reason: Reason::BreakerOpen, until: world.now + ms * MS }, world.now);
    }
    let mut journey = Journey::through(&world.pool);
    for soonest in [1, 0] {
        assert_eq!(world.tries(&mut journey), soonest);
        journey.end(soonest, Outcome::Failed);
    }
    // A further round finds the breakers open, and hope is spent.
    let round = pause(world.choose(&journey));
    journey.waited(round);
    assert!(matches!(world.choose(&journey), Choice::Spent));
}

#[test]
fn the_budget_spares_the_first_failover_and_what_follows_no_failure() {
    let world = world(&[1, 1, 1]);
    let spend = || {
        while world.pool.budget.allows(world.allowance.budget, world.now) {
            world.pool.budget.spend(world.now);
        }
    };
    spend();
    let mut journey = Journey::through(&world.pool);
    let first = world.tries(&mut journey);
    spend();
    journey.end(first, Outcome::Failed);
    let second = world.tries(&mut journey);
    journey.end(second, Outcome::Failed);
    assert!(matches!(world.choose(&journey), Choice::Spent), "the second failover is the budget's");
    journey.end(second, Outcome::Throttled(world.now + 5000 * MS));
    assert!(matches!(world.choose(&journey), Choice::Try(_)), "after a 429 it is not");
}

#[test]
fn a_refused_secret_is_waited_for_when_nobody_else_is_left_and_asked_with_once() {
    let world = world_of(&[1, 2], || Credential::renewable_for_test("old"));
    let refuse = |journey: &mut Journey, place: usize| {
        let candidate = world.pool.candidate(place).unwrap();
        let number = candidate.credential.kept().number();
        candidate.credential.kept().refuse(number);
        let rest = Rest { reason: Reason::Credential, until: world.now + 60_000 * MS };
        candidate.memory.refuse(&candidate.credential, number, rest, world.now);
        journey.end(place, Outcome::Refused(number));
    };
    let renew = |place: usize, key| {
        let candidate = world.pool.candidate(place).unwrap();
        candidate.credential.kept().renew_for_test(key);
    };
    let mut journey = Journey::through(&world.pool);
    let first = world.tries(&mut journey);
    refuse(&mut journey, first);
    // Somebody else is asked first, while the secret is on its way.
    let second = world.tries(&mut journey);
    assert_ne!(first, second);
    refuse(&mut journey, second);
    assert!(matches!(world.choose(&journey), Choice::Renewal(_)));
    // Another request that comes meanwhile waits as well.
    let mut other = Journey::through(&world.pool);
    assert!(matches!(world.choose(&other), Choice::Renewal(_)));
    renew(first, "new");
    renew(second, "old");
    journey.renewed();
    other.renewed();
    assert_eq!(world.tries(&mut journey), first);
    refuse(&mut journey, first);
    // Once is enough, be there a third or not; and the second has nothing new.
    renew(first, "newer");
    assert!(matches!(world.choose(&journey), Choice::Spent), "{:?}", world.choose(&journey));
    assert_eq!(world.tries(&mut other), first, "for others it is as good as new");
}
