//! Paces from counters, and what they are worth: an hour of three unequal resources.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::*;
use crate::azure::Operation;
use crate::config::{Balance, Ratio};
use crate::credentials::Credential;
use crate::names::{BackendName, Tier, Weight};
use crate::routing::health::{Memory, Reason, Rest};
use crate::routing::pool::{Candidate, Pool};
use crate::routing::retry_plan::{Allowance, Choice, Journey, Outcome};

const MS: Duration = Duration::from_millis(1);

const TOKENS: u64 = 100_000;

fn tokens(remaining: i64, reset: Option<u64>) -> Capacity {
    let limit = NonZeroU64::new(TOKENS).unwrap();
    let reset = reset.map(Duration::from_secs);
    Capacity { tokens: Some(Limit { limit, remaining, reset }), ..Capacity::default() }
}

fn load(utilization: f64) -> Capacity {
    Capacity { utilization: Some(utilization), ..Capacity::default() }
}

/// What an attempt at such a second told, and the pace at a later second.
fn pace_after(told: &[(u64, Capacity)], second: u64) -> f64 {
    let start = Instant::now();
    let at = |second| start + Duration::from_secs(second);
    let headroom = Headroom::default();
    for (second, capacity) in told {
        headroom.pace(at(*second));
        headroom.told(headroom.sent(at(*second)), capacity);
    }
    (headroom.pace(at(second)) * 100.0).round() / 100.0
}

#[test]
fn a_pace_follows_what_is_left_of_the_minute() {
    for (what, told, second, expected) in [
        ("nothing is known", vec![], 0, 1.0),
        ("nothing is told", vec![(0, Capacity::default())], 1, 1.0),
        ("plenty", vec![(0, tokens(90_000, None))], 1, 1.0),
        ("little, and who knows for how long", vec![(0, tokens(10_000, None))], 1, 0.4),
        ("what is old says nothing", vec![(0, tokens(10_000, None))], 60, 1.0),
        ("half of it for half a minute", vec![(0, tokens(50_000, Some(30)))], 0, 1.0),
        ("half of it for all of it", vec![(0, tokens(49_000, Some(60)))], 0, 0.54),
        ("which passes", vec![(0, tokens(49_000, Some(60)))], 30, 1.0),
        ("below zero, also on calls that succeed", vec![(0, tokens(-27_689, Some(64)))], 63, 0.0),
        ("until it is whole again", vec![(0, tokens(-27_689, Some(64)))], 64, 1.0),
        ("the same each minute", vec![(0, tokens(0, Some(10))), (20, tokens(96_000, None))], 40, 1.0),
        ("a rise is a new minute", vec![(0, tokens(5_000, None)), (1, tokens(99_000, None))], 60, 1.0),
        ("a provisioned one", vec![(0, load(0.5))], 0, 1.0),
        ("nearly full", vec![(0, load(0.9))], 0, 0.4),
        ("more than full", vec![(0, load(1.3))], 12, 0.0),
        ("works it off", vec![(0, load(1.3))], 24, 0.4),
        ("to nothing", vec![(0, load(1.3))], 40, 1.0),
    ] {
        assert!(
            (pace_after(&told, second) - expected).abs() < 0.011,
            "{what}: {}",
            pace_after(&told, second)
        );
    }
}

#[test]
fn what_was_sent_since_counts_with_what_it_usually_takes() {
    let now = Instant::now();
    let headroom = Headroom::default();
    // Ten thousand each, told in time.
    for left in [90_000, 80_000, 70_000, 60_000, 50_000] {
        headroom.told(headroom.sent(now), &tokens(left, Some(60)));
    }
    assert!(headroom.pace(now) > 0.4, "{}", headroom.pace(now));
    let late: Vec<Sent> = (0..4).map(|_| headroom.sent(now)).collect();
    assert!(headroom.pace(now) <= 0.0, "four under way may use it up: {}", headroom.pace(now));
    // Two of them were smaller; the reply to the earlier one, which comes later, says nothing new.
    headroom.told(late[3], &tokens(30_000, Some(60)));
    headroom.told(late[0], &tokens(40_000, Some(60)));
    let pace = headroom.pace(now);
    assert!((0.2..0.35).contains(&pace), "{pace}");
    // A new minute.
    assert!(headroom.pace(now + MINUTE) > 0.9);
}

/// A standard deployment: a charge on arrival against a minute that begins anew; the request
/// that crosses the limit is still served; the reset is told only when nothing is left.
struct Resource {
    limit: u64,
    opened: Instant,
    minute: u128,
    used: u64,
}

impl Resource {
    /// Whether it serves a request of so many tokens, and what it tells.
    fn asks(&mut self, tokens: u64, now: Instant) -> (Result<(), Duration>, Capacity) {
        let open = (now - self.opened).as_millis();
        if open / 60_000 != self.minute {
            (self.minute, self.used) = (open / 60_000, 0);
        }
        let reset = Duration::from_millis(u64::try_from(60_000 - open % 60_000).unwrap());
        let full = self.used >= self.limit;
        self.used += tokens;
        let left = self.limit as i64 - self.used as i64;
        let capacity = Capacity {
            tokens: Some(Limit {
                limit: NonZeroU64::new(self.limit).unwrap(),
                remaining: left,
                reset: (left <= 0).then_some(Duration::from_secs(reset.as_millis().div_ceil(1000) as u64)),
            }),
            ..Capacity::default()
        };
        (if full { Err(reset) } else { Ok(()) }, capacity)
    }
}

#[derive(Debug, Default, PartialEq)]
struct Tally {
    requests: u64,
    refusals: u64,
    failures: u64,
    served: Vec<u64>,
}

/// An hour of requests at this part of the sum of the limits, answered after this time on
/// average.
fn an_hour(balance: Balance, limits: &[u64], load: f64, latency: Duration) -> Tally {
    const MEAN_TOKENS: u64 = 500;
    let start = Instant::now() + 3_600_000 * MS;
    let mut random = fastrand::Rng::with_seed(7);
    let memory = Memory::new(start);
    let candidate = |backend: usize| {
        let memory = memory.backend(&BackendName::new(&backend.to_string()));
        let deployment = Some(memory.deployment(None));
        let credential = Arc::new(Credential::for_test("key"));
        Candidate {
            backend,
            tier: Tier::FIRST,
            weight: Weight::ONE,
            upstream: None,
            credential,
            memory,
            deployment,
        }
    };
    let pool = Pool::new((0..limits.len()).map(candidate).collect(), balance, start);
    let opened = |n: usize| start - MS * (17_000 * u32::try_from(n).unwrap());
    let mut resources: Vec<Resource> = limits
        .iter()
        .enumerate()
        .map(|(n, &limit)| Resource { limit, opened: opened(n), minute: 0, used: 0 })
        .collect();
    let rate = limits.iter().sum::<u64>() as f64 * load / 60_000.0 / MEAN_TOKENS as f64; // per ms
    let mut tally = Tally { served: vec![0; limits.len()], ..Tally::default() };
    let mut replies = BinaryHeap::new();
    let mut told = Vec::new();
    let mut now = start;
    while now < start + Duration::from_secs(3600) {
        now += MS.mul_f64(-(1.0 - random.f64()).ln() / rate);
        while replies.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, n))) = replies.pop() else { break };
            let (place, sent, capacity): &(usize, Sent, Capacity) = &told[n];
            pool.candidate(*place).unwrap().deployment.as_ref().unwrap().headroom.told(*sent, capacity);
        }
        tally.requests += 1;
        // Between a fifth and nearly twice of the mean.
        let tokens = random.u64(MEAN_TOKENS / 5..MEAN_TOKENS * 9 / 5);
        let mut journey = Journey::through(&pool);
        let allowance = Allowance {
            attempts: 12,
            wait: Duration::ZERO,
            latest_start: now,
            budget: Ratio::new(20).unwrap(),
        };
        loop {
            let Choice::Try(chosen) = journey.choose(&pool, Operation::Chat, &allowance, now, 0.0) else {
                tally.failures += 1;
                break;
            };
            journey.begin(&pool, &chosen, now);
            let candidate = pool.candidate(chosen.place).unwrap();
            let deployment = candidate.deployment.as_ref().unwrap();
            let sent = candidate.sent(now).unwrap();
            let (answer, capacity) = resources[chosen.place].asks(tokens, now);
            match answer {
                Ok(()) => {
                    chosen.claim.open();
                    tally.served[chosen.place] += 1;
                    told.push((chosen.place, sent, capacity));
                    replies.push(Reverse((now + latency.mul_f64(0.2 + 1.6 * random.f64()), told.len() - 1)));
                    break;
                }
                Err(wait) => {
                    tally.refusals += 1;
                    deployment.headroom.told(sent, &capacity);
                    let until = now + wait;
                    deployment.cell.rest(Rest { reason: Reason::Cooling, until }, now);
                    journey.end(chosen.place, Outcome::Throttled(until));
                }
            }
        }
    }
    tally
}

#[test]
fn an_hour_at_95_percent_of_three_unequal_resources() {
    let latency = Duration::from_secs(3);
    let run = |balance, load| an_hour(balance, &[120_000, 60_000, 20_000], load, latency);
    let (plain, with) = (run(Balance::RoundRobin, 0.95), run(Balance::Headroom, 0.95));
    assert_eq!(with.failures, 0, "{with:?}");
    assert!(plain.refusals > 100 && with.refusals * 20 < plain.refusals, "{plain:?} {with:?}");
    // With more than there is, it loses nothing that round robin would have got.
    let (plain, with) = (run(Balance::RoundRobin, 1.2), run(Balance::Headroom, 1.2));
    let served = |tally: &Tally| (tally.requests - tally.failures) as f64;
    assert!((served(&with) / served(&plain) - 1.0).abs() < 0.02, "{plain:?} {with:?}");
}

#[test]
fn equals_take_exact_turns() {
    let served = an_hour(Balance::Headroom, &[60_000; 3], 0.5, Duration::from_secs(3)).served;
    let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
    assert!(most - least <= 1, "{served:?}");
}
