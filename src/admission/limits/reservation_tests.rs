use std::time::Duration;

use proptest::prelude::*;

use super::super::limiter::ClientLimiter;
use super::super::testing::{TestClient, TestLimiter, TestReservation, demand, name, time, used};
use super::*;
use crate::config::LimitMode;

const GPT: Option<&str> = Some("gpt-4o");
const ALL_KINDS: &[(&str, u64)] = &[
    ("requests_per_minute", 100),
    ("tokens_per_minute", 1000),
    ("tokens_per_day", 1000),
    ("in_flight", 100),
    ("deployments.gpt-4o.requests_per_minute", 100),
    ("deployments.gpt-4o.tokens_per_minute", 1000),
    ("deployments.gpt-4o.tokens_per_day", 1000),
    ("deployments.gpt-4o.in_flight", 100),
];

/// What counts, in the order of the limits; of a deployment after the total.
fn counted(limiter: &TestLimiter, millis: u64) -> Vec<u64> {
    limiter.uses(millis).into_iter().map(|(_, used)| used).collect()
}

fn both(scope: [u64; 4]) -> Vec<u64> {
    [scope, scope].concat()
}

#[test]
fn what_was_used_takes_the_place_of_what_was_reserved() {
    let cached = Settlement::Used(UsedTokens { input: 60, cached: 40, output: 5 });
    // 61 s after the reservation what exceeded it still counts, from its end.
    for (settlement, expected, after_a_minute) in [
        (used(30), 30, 0),
        (used(100), 100, 0),
        (used(250), 250, 150),
        (used(0), 0, 0),
        (cached, 45, 0),
        (Settlement::Unknown, 100, 0),
        (Settlement::Nothing, 0, 0),
    ] {
        let limiter = TestClient::new().limiter_with(ALL_KINDS, LimitMode::Enforce, 500);
        let mut reservation = limiter.reserve(GPT, 100, 0).unwrap();
        assert_eq!(counted(&limiter, 10_000), both([1, 100, 100, 1]), "{settlement:?}");
        reservation.settle(settlement, 10_000);
        assert_eq!(counted(&limiter, 10_000), both([1, expected, expected, 0]), "{settlement:?}");
        // Once, whatever it is said to be later, and when it is dropped.
        reservation.settle(used(500), 10_000);
        reservation.settle(Settlement::Nothing, 10_000);
        drop(reservation);
        assert_eq!(counted(&limiter, 10_000), both([1, expected, expected, 0]), "{settlement:?}");
        assert_eq!(counted(&limiter, 61_000), both([0, after_a_minute, expected, 0]), "{settlement:?}");
        assert_eq!(counted(&limiter, 71_000), both([0, 0, expected, 0]), "{settlement:?}");
    }
}

#[test]
fn what_a_request_costs_takes_the_place_of_what_was_estimated() {
    let estimated = Settlement::Estimated(UsedTokens { input: 9, cached: 0, output: 9 });
    for (settlement, known, expected) in [
        (used(30), Some(50), 50),
        (used(30), Some(500), 500),
        (used(30), Some(0), 0),
        (estimated, Some(40), 40),
        // There is no price.
        (used(30), None, 0),
        (estimated, None, 0),
        (Settlement::Unknown, None, 100),
        // A provisioned backend has answered.
        (Settlement::Unknown, Some(0), 0),
        (Settlement::Nothing, None, 0),
    ] {
        let keys =
            [("cost_per_day", 1000), ("cost_per_month", 2000), ("deployments.gpt-4o.cost_per_day", 1000)];
        let limiter = TestClient::new().limiter(&keys);
        let mut reservation = limiter.reserve(GPT, 100, 0).unwrap();
        assert_eq!(counted(&limiter, 0), [100; 3]);
        if let Some(known) = known {
            reservation.reservation.set_cost(known);
        }
        reservation.settle(settlement, 10);
        drop(reservation);
        assert_eq!(counted(&limiter, 20), [expected; 3], "{settlement:?} {known:?}");
    }
}

#[test]
fn a_reservation_counts_while_the_request_runs_whatever_its_age() {
    let limiter = TestClient::new().limiter(ALL_KINDS);
    let mut reservation = limiter.reserve(GPT, 100, 0).unwrap();
    assert_eq!(counted(&limiter, 600_000), both([0, 100, 100, 1]));
    reservation.settle(used(120), 600_000);
    assert_eq!(counted(&limiter, 600_000), both([0, 20, 120, 0]));
}

#[test]
fn a_dropped_reservation_is_given_back() {
    let limiter = TestClient::new().limiter(ALL_KINDS);
    let (first, second) = (limiter.reserve(GPT, 100, 0).unwrap(), limiter.reserve(None, 7, 0).unwrap());
    drop(first);
    assert_eq!(counted(&limiter, 0), [2, 7, 7, 1, 1, 0, 0, 0]);
    drop(second);
    // That they came still counts.
    assert_eq!(counted(&limiter, 0), [2, 0, 0, 0, 1, 0, 0, 0]);
}

#[test]
fn a_request_leaves_those_in_flight_once_and_keeps_its_tokens() {
    let limiter = TestClient::new().limiter(ALL_KINDS);
    let (mut first, mut second) =
        (limiter.reserve(GPT, 10, 0).unwrap(), limiter.reserve(GPT, 10, 0).unwrap());
    first.leave_in_flight(1000);
    first.leave_in_flight(1000);
    assert_eq!(counted(&limiter, 1000), both([2, 20, 20, 1]));
    first.settle(used(10), 2000);
    drop(first);
    assert_eq!(counted(&limiter, 2000), both([2, 20, 20, 1]));
    second.settle(used(10), 2000);
    second.leave_in_flight(2000);
    assert_eq!(counted(&limiter, 2000), both([2, 20, 20, 0]));
}

#[test]
fn the_ends_of_requests_tell_how_long_to_wait_for_one() {
    let limiter = TestClient::new().limiter(&[("in_flight", 1)]);
    for end in [0, 3000, 5000, 7000] {
        limiter.reserve(GPT, 1, end).unwrap().leave_in_flight(end);
    }
    let running = limiter.reserve(GPT, 1, 7000).unwrap();
    for (now, expected) in [(7000, 2000), (8500, 500), (9000, 100), (60_000, 100)] {
        let wait = limiter.reserve(None, 1, now).unwrap_err().wait;
        assert_eq!(wait, Some(Duration::from_millis(expected)), "{now}");
    }
    drop(running);
    assert!(limiter.reserve(None, 1, 60_000).is_ok());
}

#[test]
fn only_told_tokens_are_learned_and_for_the_deployment_they_are_of() {
    let limiter = TestClient::new().limiter(ALL_KINDS);
    let estimated = Demand { max_output_tokens: None, prompt_bytes: 100, ..demand(0) };
    let reserve = |deployment: Option<&str>, settlement| {
        let deployment = deployment.map(name);
        let reserved =
            ClientLimiter::reserve(&limiter.limiter, deployment.as_ref(), &estimated, limiter.at(0), time(0));
        let mut reservation = reserved.unwrap();
        reservation.settle(settlement, limiter.at(0), time(0));
        reservation.tokens()
    };
    assert_eq!(reserve(GPT, Settlement::Nothing), 25 + 256);
    assert_eq!(reserve(GPT, Settlement::Unknown), 25 + 256);
    assert_eq!(reserve(GPT, Settlement::Used(UsedTokens { input: 25, cached: 0, output: 8 })), 25 + 256);
    // The first one decides alone.
    assert_eq!(reserve(GPT, Settlement::Nothing), 25 + 8);
    let cut_off = UsedTokens { input: 25, cached: 0, output: 1 };
    assert_eq!(reserve(GPT, Settlement::Estimated(cut_off)), 25 + 8);
    assert_eq!(reserve(GPT, Settlement::Nothing), 25 + 8);
    assert_eq!(reserve(None, Settlement::Nothing), 25 + 8, "all requests together");
    assert_eq!(reserve(Some("other"), Settlement::Nothing), 25 + 256);
}

#[test]
fn a_reload_changes_limits_while_requests_run() {
    let client = TestClient::new();
    let none = client.limiter(&[("requests_per_minute", 100)]);
    let mut unlimited = none.reserve(GPT, 50, 0).unwrap();
    // Limits are added.
    let all = client.limiter(ALL_KINDS);
    assert_eq!(counted(&all, 1000), [1, 0, 50, 1, 0, 0, 50, 1]);
    let mut limited = all.reserve(GPT, 100, 1000).unwrap();
    assert_eq!(counted(&all, 1000), [2, 100, 150, 2, 1, 100, 150, 2]);
    // What was not reserved counts from its end.
    unlimited.settle(used(40), 2000);
    assert_eq!(counted(&all, 2000), [2, 140, 140, 1, 1, 140, 140, 1]);
    // Limits are removed, and added again.
    let none = client.limiter(&[("requests_per_minute", 100)]);
    let mut unlimited = none.reserve(GPT, 7, 3000).unwrap();
    limited.settle(used(80), 3000);
    assert_eq!(counted(&none, 3000), [3]);
    let all = client.limiter(ALL_KINDS);
    assert_eq!(counted(&all, 3000), [3, 120, 127, 1, 1, 120, 127, 1]);
    unlimited.settle(Settlement::Unknown, 4000);
    assert_eq!(counted(&all, 4000), [3, 127, 127, 0, 1, 127, 127, 0]);
    assert_eq!(counted(&all, 65_000), [0, 0, 127, 0, 0, 0, 127, 0]);
}

#[test]
fn a_reload_lowers_a_limit_below_what_is_reserved() {
    let client = TestClient::new();
    let mut large = client.limiter(&[("tokens_per_minute", 100)]).reserve(GPT, 100, 0).unwrap();
    let small = client.limiter(&[("tokens_per_minute", 10)]);
    assert!(small.reserve(GPT, 1, 0).is_err());
    large.settle(used(9), 0);
    assert!(small.reserve(GPT, 1, 0).is_ok());
}

#[test]
fn a_request_for_one_of_too_many_deployments_ends_where_it_began() {
    let client = TestClient::new();
    let limiter = client.limiter(&[("in_flight", 1000)]);
    let mut running: Vec<TestReservation> =
        (0..300).map(|number| limiter.reserve(Some(&format!("d{number}")), 5, 0).unwrap()).collect();
    let limited = client.limiter(&[
        ("in_flight", 1000),
        ("deployments.d299.in_flight", 2),
        ("deployments.d299.tokens_per_day", 100),
    ]);
    running.push(limited.reserve(Some("d299"), 5, 0).unwrap());
    assert_eq!(counted(&limited, 0), [301, 5, 1]);
    // It was not counted for its deployment.
    drop(running.remove(299));
    assert_eq!(counted(&limited, 0), [300, 5, 1]);
    drop(running);
    assert_eq!(counted(&limited, 0), [0, 0, 0]);
}

/// The scopes of the property test: all requests, and those for two deployments.
const SCOPES: [Option<&str>; 3] = [None, Some("a"), Some("b")];
const KINDS: [&str; 5] =
    ["requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month", "in_flight"];
/// Where requests go: one of them has no limits of its own, another names no deployment.
const TARGETS: [Option<&str>; 4] = [Some("a"), Some("b"), Some("c"), None];

#[derive(Clone, Debug)]
enum Step {
    Reserve {
        target: usize,
        tokens: u64,
    },
    /// `used_percent`: `None` if it is not known.
    Settle {
        index: usize,
        used_percent: Option<u64>,
    },
    LeaveInFlight {
        index: usize,
    },
    Drop {
        index: usize,
    },
    Wait {
        millis: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0usize..8;
    prop_oneof![
        6 => (0..TARGETS.len(), 0u64..120).prop_map(|(target, tokens)| Step::Reserve { target, tokens }),
        3 => (index(), prop::option::of(0u64..=100))
            .prop_map(|(index, used_percent)| Step::Settle { index, used_percent }),
        1 => index().prop_map(|index| Step::LeaveInFlight { index }),
        1 => index().prop_map(|index| Step::Drop { index }),
        2 => (0u64..3_000).prop_map(|millis| Step::Wait { millis }),
        1 => (0u64..70_000).prop_map(|millis| Step::Wait { millis }),
    ]
}

fn limit_values() -> impl Strategy<Value = Vec<Option<u64>>> {
    let set =
        || (1u64..8, 1u64..300, 1u64..900, 1u64..1200, 1u64..6).prop_map(|(a, b, c, d, e)| [a, b, c, d, e]);
    let one = || (set(), prop::array::uniform5(prop::bool::weighted(0.6)));
    prop::collection::vec(one(), SCOPES.len()).prop_map(|sets| {
        sets.into_iter()
            .flat_map(|(values, present)| {
                values.into_iter().zip(present).map(|(value, present)| present.then_some(value))
            })
            .collect()
    })
}

/// A request, as a list remembers it that knows nothing of windows.
struct Event {
    target: Option<&'static str>,
    tokens: u64,
    start: u64,
    used: Option<u64>,
    reservation: Option<TestReservation>,
    is_in_flight: bool,
}

/// What counts against a limit if what has ended counts for so many milliseconds.
fn exact(events: &[Event], scope: Option<&str>, kind: &str, now: u64, window: u64) -> u64 {
    let of_scope = events.iter().filter(|event| scope.is_none() || event.target == scope);
    of_scope
        .map(|event| {
            let is_recent = now - event.start < window;
            match kind {
                "requests_per_minute" => u64::from(is_recent),
                "tokens_per_minute" => {
                    event.used.map_or(event.tokens, |used| if is_recent { used } else { 0 })
                }
                "in_flight" => u64::from(event.is_in_flight),
                _ => event.used.unwrap_or(event.tokens),
            }
        })
        .sum()
}

fn key_of(scope: Option<&str>, kind: &str) -> String {
    scope.map_or_else(|| kind.to_owned(), |name| format!("deployments.{name}.{kind}"))
}

proptest! {
    #[test]
    fn no_interleaving_exceeds_a_limit_and_in_the_end_all_are_whole(
        values in limit_values(), steps in prop::collection::vec(step(), 1..150)
    ) {
        let all_keys = SCOPES.iter().flat_map(|scope| KINDS.map(|kind| (*scope, kind)));
        let limits: Vec<(Option<&str>, &str, u64)> = all_keys
            .zip(&values)
            .filter_map(|((scope, kind), value)| value.map(|value| (scope, kind, value)))
            .collect();
        let named: Vec<(String, u64)> =
            limits.iter().map(|(scope, kind, value)| (key_of(*scope, kind), *value)).collect();
        let keys: Vec<(&str, u64)> = named.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        let limiter = TestClient::new().limiter(&keys);
        let (mut events, mut now): (Vec<Event>, u64) = (Vec::new(), 0);
        for step in steps {
            // The `index`th of the requests in progress.
            let mut running = events.iter_mut().filter(|event| event.reservation.is_some());
            match step {
                Step::Wait { millis } => now += millis,
                Step::Reserve { target, tokens } => {
                    let target = TARGETS[target];
                    match limiter.reserve(target, tokens, now) {
                        Ok(reservation) => events.push(Event {
                            target, tokens, start: now, used: None, reservation: Some(reservation), is_in_flight: true,
                        }),
                        Err(reached) => {
                            // It is really reached, to the second.
                            let scope = reached.key.deployment.as_ref().map(|name| name.as_str());
                            let counted = exact(&events, scope, reached.key.kind.key(), now, 61_000);
                            prop_assert!(counted + reached.demand > reached.limit, "{reached:?} {counted}");
                        }
                    }
                }
                Step::Settle { index, used_percent } => if let Some(event) = running.nth(index) {
                    let tokens = used_percent.map(|percent| event.tokens * percent / 100);
                    let settlement = tokens.map_or(Settlement::Unknown, used);
                    event.reservation.take().unwrap().settle(settlement, now);
                    (event.used, event.is_in_flight) = (Some(tokens.unwrap_or(event.tokens)), false);
                },
                Step::LeaveInFlight { index } => if let Some(event) = running.nth(index) {
                    event.reservation.as_mut().unwrap().leave_in_flight(now);
                    event.is_in_flight = false;
                },
                Step::Drop { index } => if let Some(event) = running.nth(index) {
                    event.reservation = None;
                    (event.used, event.is_in_flight) = (Some(0), false);
                },
            }
            let uses = limiter.uses(now);
            prop_assert_eq!(uses.len(), limits.len());
            for (scope, kind, limit) in &limits {
                let least = exact(&events, *scope, kind, now, 60_000);
                prop_assert!(least <= *limit, "{} {}: {} > {}", scope.unwrap_or("all"), kind, least, limit);
                let most = exact(&events, *scope, kind, now, 61_000);
                let (_, counted) = uses.iter().find(|(key, _)| *key == key_of(*scope, kind)).unwrap();
                prop_assert!((least..=most).contains(counted), "{} {}: {}", scope.unwrap_or("all"), kind, counted);
            }
        }
        for event in &mut events {
            if let Some(mut reservation) = event.reservation.take() {
                reservation.settle(used(event.tokens / 2), now);
                (event.used, event.is_in_flight) = (Some(event.tokens / 2), false);
            }
        }
        for (key, counted) in limiter.uses(now + 61_000) {
            let is_budget = key.ends_with("_day") || key.ends_with("_month");
            let scope = key.strip_prefix("deployments.").and_then(|rest| rest.split('.').next());
            let used = exact(&events, scope, "tokens_per_day", now, 0);
            prop_assert_eq!(counted, if is_budget { used } else { 0 }, "{}", key);
        }
    }
}
