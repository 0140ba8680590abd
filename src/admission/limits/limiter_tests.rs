use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::testing::{TestClient, TestReservation, name, used};
use super::*;

/// A request: its deployment, its tokens, and the millisecond at which it comes.
type Request = (Option<&'static str>, u64, u64);

/// Limits, the requests in progress, another request, and what it is told: the key, the limit, what it adds, and how
/// many milliseconds to wait.
type Case = (
    &'static [(&'static str, u64)],
    &'static [Request],
    Request,
    Option<(&'static str, u64, u64, Option<u64>)>,
);

const GPT: Option<&str> = Some("gpt-4o");
const OTHER: Option<&str> = Some("other");
const HOUR: u64 = 3_600_000;

const CASES: &[Case] = &[
    // Each limit, at its value and beyond.
    (&[("cost_per_day", 100)], &[(GPT, 60, 0)], (OTHER, 40, 0), None),
    (
        &[("cost_per_day", 100)],
        &[(GPT, 60, 0)],
        (OTHER, 41, 0),
        Some(("cost_per_day", 100, 41, Some(6 * HOUR))),
    ),
    (
        &[("cost_per_month", 100)],
        &[(GPT, 60, 0)],
        (OTHER, 41, 0),
        Some(("cost_per_month", 100, 41, Some(30 * HOUR))),
    ),
    (
        &[("cost_per_day", 100), ("deployments.gpt-4o.cost_per_day", 50)],
        &[(GPT, 40, 0)],
        (GPT, 11, 0),
        Some(("deployments.gpt-4o.cost_per_day", 50, 11, Some(6 * HOUR))),
    ),
    (&[("cost_per_day", 100)], &[], (GPT, 101, 0), Some(("cost_per_day", 100, 101, None))),
    (&[("requests_per_minute", 2)], &[(GPT, 9, 500)], (GPT, 9, 20_000), None),
    (
        &[("requests_per_minute", 2)],
        &[(GPT, 9, 500), (OTHER, 9, 10_500)],
        (None, 9, 20_000),
        Some(("requests_per_minute", 2, 1, Some(41_000))),
    ),
    (&[("tokens_per_minute", 100)], &[(GPT, 60, 500)], (GPT, 40, 20_000), None),
    (
        &[("tokens_per_minute", 100)],
        &[(GPT, 60, 500), (OTHER, 40, 10_500)],
        (GPT, 60, 20_000),
        Some(("tokens_per_minute", 100, 60, Some(41_000))),
    ),
    (
        &[("tokens_per_minute", 100)],
        &[(GPT, 60, 500), (OTHER, 40, 10_500)],
        (GPT, 61, 20_000),
        Some(("tokens_per_minute", 100, 61, Some(51_000))),
    ),
    (&[("in_flight", 2)], &[(GPT, 9, 0)], (GPT, 9, 0), None),
    (
        &[("in_flight", 2)],
        &[(GPT, 9, 0), (None, 9, 0)],
        (OTHER, 9, 0),
        // Until an end tells more.
        Some(("in_flight", 2, 1, Some(1000))),
    ),
    (&[("tokens_per_day", 100)], &[(GPT, 60, 0)], (GPT, 40, 0), None),
    (
        &[("tokens_per_day", 100)],
        &[(GPT, 60, 0)],
        (OTHER, 41, 20_000),
        Some(("tokens_per_day", 100, 41, Some(6 * HOUR - 20_000))),
    ),
    (&[("tokens_per_month", 100)], &[(GPT, 60, 0)], (GPT, 40, 0), None),
    (
        &[("tokens_per_month", 100)],
        &[(GPT, 60, 0)],
        (None, 41, 20_000),
        Some(("tokens_per_month", 100, 41, Some(30 * HOUR - 20_000))),
    ),
    // Those of a deployment are about its own requests.
    (
        &[("deployments.gpt-4o.requests_per_minute", 1)],
        &[(GPT, 9, 0)],
        (GPT, 9, 1_500),
        Some(("deployments.gpt-4o.requests_per_minute", 1, 1, Some(59_500))),
    ),
    (&[("deployments.gpt-4o.requests_per_minute", 1)], &[(GPT, 9, 0)], (OTHER, 9, 0), None),
    (&[("deployments.gpt-4o.requests_per_minute", 1)], &[(OTHER, 9, 0), (None, 9, 0)], (GPT, 9, 0), None),
    (
        &[("deployments.gpt-4o.tokens_per_minute", 10), ("tokens_per_minute", 100)],
        &[(GPT, 9, 0)],
        (GPT, 2, 1_500),
        Some(("deployments.gpt-4o.tokens_per_minute", 10, 2, Some(59_500))),
    ),
    (&[("deployments.gpt-4o.tokens_per_minute", 10)], &[(GPT, 9, 0)], (None, 2, 0), None),
    (
        &[("deployments.gpt-4o.in_flight", 1)],
        &[(GPT, 9, 0)],
        (GPT, 9, 0),
        Some(("deployments.gpt-4o.in_flight", 1, 1, Some(1000))),
    ),
    (&[("deployments.gpt-4o.in_flight", 1)], &[(GPT, 9, 0)], (OTHER, 9, 0), None),
    (
        &[("deployments.gpt-4o.tokens_per_day", 10)],
        &[(GPT, 9, 0)],
        (GPT, 2, 0),
        Some(("deployments.gpt-4o.tokens_per_day", 10, 2, Some(6 * HOUR))),
    ),
    (&[("deployments.gpt-4o.tokens_per_day", 10)], &[(GPT, 9, 0)], (OTHER, 2, 0), None),
    (
        &[("deployments.gpt-4o.tokens_per_month", 10)],
        &[(GPT, 9, 0)],
        (GPT, 2, 0),
        Some(("deployments.gpt-4o.tokens_per_month", 10, 2, Some(30 * HOUR))),
    ),
    // The total counts what is for a deployment with limits of its own.
    (
        &[("tokens_per_minute", 12), ("deployments.gpt-4o.tokens_per_minute", 10)],
        &[(GPT, 9, 0)],
        (OTHER, 4, 0),
        Some(("tokens_per_minute", 12, 4, Some(61_000))),
    ),
    // A request that is too much alone need not wait, whatever else is used.
    (&[("tokens_per_minute", 100)], &[], (GPT, 100, 0), None),
    (&[("tokens_per_minute", 100)], &[], (GPT, 101, 0), Some(("tokens_per_minute", 100, 101, None))),
    (&[("tokens_per_day", 100)], &[(GPT, 9, 0)], (GPT, 101, 0), Some(("tokens_per_day", 100, 101, None))),
    (&[("tokens_per_month", 100)], &[], (None, 101, 0), Some(("tokens_per_month", 100, 101, None))),
    (&[("tokens_per_month", 100)], &[], (None, u64::MAX, 0), Some(("tokens_per_month", 100, u64::MAX, None))),
    (
        &[("deployments.gpt-4o.tokens_per_minute", 5)],
        &[],
        (GPT, 6, 0),
        Some(("deployments.gpt-4o.tokens_per_minute", 5, 6, None)),
    ),
    // Of several limits the one with the longest wait is told.
    (
        &[("requests_per_minute", 1), ("in_flight", 1)],
        &[(GPT, 9, 0)],
        (GPT, 9, 0),
        Some(("requests_per_minute", 1, 1, Some(61_000))),
    ),
    (
        // All of the tokens have to be forgotten, but only the first of the requests.
        &[("requests_per_minute", 2), ("tokens_per_minute", 20)],
        &[(GPT, 9, 0), (GPT, 9, 30_000)],
        (GPT, 20, 40_000),
        Some(("tokens_per_minute", 20, 20, Some(51_000))),
    ),
    (
        &[("requests_per_minute", 1), ("tokens_per_day", 10), ("tokens_per_month", 10), ("in_flight", 1)],
        &[(GPT, 9, 0)],
        (GPT, 9, 0),
        Some(("tokens_per_month", 10, 9, Some(30 * HOUR))),
    ),
    (
        &[("tokens_per_minute", 10), ("deployments.gpt-4o.tokens_per_day", 10)],
        &[(GPT, 9, 0)],
        (GPT, 9, 0),
        Some(("deployments.gpt-4o.tokens_per_day", 10, 9, Some(6 * HOUR))),
    ),
    (
        &[("tokens_per_day", 10), ("deployments.gpt-4o.tokens_per_minute", 10)],
        &[(GPT, 9, 0)],
        (GPT, 9, 0),
        Some(("tokens_per_day", 10, 9, Some(6 * HOUR))),
    ),
    (
        &[("tokens_per_month", 100), ("deployments.gpt-4o.tokens_per_minute", 10)],
        &[(GPT, 9, 0), (OTHER, 85, 0)],
        (GPT, 11, 0),
        Some(("deployments.gpt-4o.tokens_per_minute", 10, 11, None)),
    ),
];

/// What counts of all requests, whatever is limited.
const METER: &[(&str, u64)] = &[
    ("in_flight", 1000),
    ("tokens_per_day", 1000),
    ("deployments.gpt-4o.in_flight", 1000),
    ("deployments.gpt-4o.tokens_per_day", 1000),
    ("deployments.other.in_flight", 1000),
];

fn told(reached: &LimitReached) -> (String, u64, u64, Option<u64>) {
    let wait = reached.wait.map(|wait| u64::try_from(wait.as_millis()).unwrap());
    (reached.key.to_string(), reached.limit, reached.demand, wait)
}

#[test]
fn a_request_beyond_a_limit_is_told_which_and_how_long_to_wait_and_reserves_nothing() {
    for (limits, in_progress, (deployment, tokens, now), expected) in CASES {
        let case = format!("{limits:?} {in_progress:?} {deployment:?} {tokens}");
        let client = TestClient::new();
        let (limiter, meter) = (client.limiter(limits), client.limiter(METER));
        let reserve = |(deployment, tokens, now): &Request| limiter.reserve(*deployment, *tokens, *now);
        let _running: Vec<TestReservation> =
            in_progress.iter().map(|request| reserve(request).expect(&case)).collect();
        let before = (limiter.uses(*now), meter.uses(*now));
        let reserved = limiter.reserve(*deployment, *tokens, *now);
        let expected = expected.map(|(key, limit, added, wait)| (key.to_owned(), limit, added, wait));
        assert_eq!(reserved.as_ref().err().map(told), expected, "{case}");
        let after = (limiter.uses(*now), meter.uses(*now));
        assert_eq!(before == after, reserved.is_err(), "{case}: {before:?} {after:?}");
        if let Ok(reservation) = reserved {
            assert_eq!(reservation.reservation.tokens(), *tokens);
            assert_eq!(reservation.reservation.exceeded(), None);
        }
    }
}

#[test]
fn what_is_observed_is_told_as_if_it_was_refused_and_counts_in_full() {
    for (limits, in_progress, (deployment, tokens, now), expected) in CASES {
        let case = format!("{limits:?} {in_progress:?} {deployment:?} {tokens}");
        let client = TestClient::new();
        let (limiter, meter) = (client.limiter_with(limits, LimitMode::Observe, 1000), client.limiter(METER));
        let _running: Vec<TestReservation> = in_progress
            .iter()
            .map(|(deployment, tokens, now)| limiter.reserve(*deployment, *tokens, *now).unwrap())
            .collect();
        let reservation = limiter.reserve(*deployment, *tokens, *now).expect(&case);
        let expected = expected.map(|(key, limit, added, wait)| (key.to_owned(), limit, added, wait));
        assert_eq!(reservation.reservation.exceeded().map(told), expected, "{case}");
        let all = [in_progress, &[(*deployment, *tokens, *now)][..]].concat();
        let count = |of: Option<Option<&str>>| {
            let of_scope = all.iter().filter(|(deployment, ..)| of.is_none_or(|of| *deployment == of));
            of_scope.fold((0u64, 0u64), |(requests, sum), (_, tokens, _)| {
                (requests + 1, sum.saturating_add(*tokens))
            })
        };
        let (total, gpt, other) = (count(None), count(Some(GPT)), count(Some(OTHER)));
        let counted: Vec<u64> = meter.uses(*now).into_iter().map(|(_, used)| used).collect();
        // The budget comes before `in_flight`.
        assert_eq!(counted, [total.1, total.0, gpt.1, gpt.0, other.0], "{case}");
        for (key, used) in limiter.uses(*now) {
            let (requests, tokens) = if key.starts_with("deployments") { gpt } else { total };
            // A token costs a millionth.
            let is_of_tokens = key.contains("tokens") || key.contains("cost");
            assert_eq!(used, if is_of_tokens { tokens } else { requests }, "{case} {key}");
        }
    }
}

#[test]
fn a_request_fits_when_its_wait_is_over_and_not_before() {
    for limits in [
        &[("tokens_per_minute", 100)][..],
        &[("requests_per_minute", 3)],
        &[("tokens_per_minute", 1000), ("deployments.gpt-4o.tokens_per_minute", 100)],
        &[("requests_per_minute", 3), ("tokens_per_minute", 110)],
    ] {
        for tokens in [1, 30, 70, 100] {
            let limiter = TestClient::new().limiter(limits);
            for (tokens, start) in [(30, 700), (30, 5_200), (40, 30_000)] {
                limiter.reserve(GPT, tokens, start).unwrap().settle(used(tokens), start + 1000);
            }
            let case = format!("{limits:?} {tokens}");
            let Err(reached) = limiter.reserve(GPT, tokens, 40_000) else {
                assert!(limits.len() == 2 && tokens == 1, "{case}");
                continue;
            };
            let end = 40_000 + u64::try_from(reached.wait.unwrap().as_millis()).unwrap();
            assert!(limiter.reserve(GPT, tokens, end - 1).is_err(), "{case}");
            assert!(limiter.reserve(GPT, tokens, end).is_ok(), "{case}");
        }
    }
}

#[test]
fn the_tighter_of_two_rates_is_told() {
    let client = TestClient::new();
    let limiter = client.limiter(&[
        ("requests_per_minute", 10),
        ("tokens_per_minute", 100),
        ("deployments.gpt-4o.tokens_per_minute", 50),
        ("deployments.other.in_flight", 5),
    ]);
    let state = |kind, deployment: Option<&str>, millis| {
        let deployment = deployment.map(name);
        let state = limiter.limiter.rate_state(kind, deployment.as_ref(), limiter.at(millis));
        state.map(|state| (state.limit, state.remaining, state.reset.as_millis()))
    };
    let (requests, tokens) = (LimitKind::RequestsPerMinute, LimitKind::TokensPerMinute);
    assert_eq!(state(tokens, GPT, 0), Some((50, 50, 0)));
    let _first = limiter.reserve(GPT, 20, 0).unwrap();
    let _second = limiter.reserve(OTHER, 75, 10_000).unwrap();
    for (kind, deployment, expected) in [
        (tokens, GPT, Some((100, 5, 51_000))),
        (tokens, OTHER, Some((100, 5, 51_000))),
        (tokens, None, Some((100, 5, 51_000))),
        (requests, GPT, Some((10, 8, 51_000))),
        (LimitKind::TokensPerDay, GPT, None),
    ] {
        assert_eq!(state(kind, deployment, 20_000), expected, "{kind:?} {deployment:?}");
    }
    for (limits, mode, expected) in [
        (&[("requests_per_minute", 1)][..], LimitMode::Enforce, true),
        (&[("deployments.gpt-4o.tokens_per_minute", 1)], LimitMode::Enforce, true),
        (&[("in_flight", 1), ("tokens_per_day", 1), ("tokens_per_month", 1)], LimitMode::Enforce, false),
        (&[("requests_per_minute", 1)], LimitMode::Observe, false),
    ] {
        assert_eq!(client.limiter_with(limits, mode, 1000).limiter.tells_rates(), expected, "{limits:?}");
    }
}

#[test]
fn what_was_used_without_a_reservation_counts() {
    let client = TestClient::new();
    let keys = [
        ("tokens_per_minute", 100),
        ("tokens_per_month", 1000),
        ("deployments.gpt-4o.tokens_per_minute", 100),
        ("deployments.gpt-4o.tokens_per_day", 1000),
    ];
    let limiter = client.limiter_with(&keys, LimitMode::Enforce, 500);
    for (deployment, input, expected) in
        [(GPT, 30, [34, 34, 34, 34]), (OTHER, 40, [78, 78, 34, 34]), (None, 2_000, [2082, 2082, 34, 34])]
    {
        let used = UsedTokens { input, cached: 2, output: 5 };
        let deployment = deployment.map(name);
        let time = super::super::testing::time(0);
        limiter.limiter.add_used(deployment.as_ref(), &used, 0, limiter.at(0), time);
        let counted: Vec<u64> = limiter.uses(0).into_iter().map(|(_, used)| used).collect();
        assert_eq!(counted, expected, "{deployment:?}");
    }
    assert!(limiter.reserve(None, 1, 0).is_err());
}

#[test]
fn threads_together_stay_within_the_limits_and_use_them_up() {
    const LIMIT: u64 = 30_000;
    const TOKENS: u64 = 7;
    let limiter = TestClient::new().limiter(&[
        ("in_flight", 5),
        ("tokens_per_minute", LIMIT),
        ("deployments.gpt-4o.tokens_per_day", LIMIT),
    ]);
    let (in_flight, most, granted, starts) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), Barrier::new(8));
    let work = || {
        starts.wait();
        for _ in 0..1000 {
            let mut reservation = loop {
                match limiter.reserve(GPT, TOKENS, 0) {
                    Ok(reservation) => break reservation,
                    Err(reached) if reached.key.kind == LimitKind::InFlight => std::thread::yield_now(),
                    Err(_) => return,
                }
            };
            most.fetch_max(in_flight.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            granted.fetch_add(TOKENS, Ordering::SeqCst);
            std::thread::yield_now();
            in_flight.fetch_sub(1, Ordering::SeqCst);
            reservation.settle(used(TOKENS), 0);
        }
    };
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(work))));
    let (most, granted) = (most.into_inner(), granted.into_inner());
    assert!((1..=5).contains(&most), "{most}");
    assert_eq!(granted, LIMIT / TOKENS * TOKENS);
    let uses: Vec<u64> = limiter.uses(0).into_iter().map(|(_, used)| used).collect();
    assert_eq!(uses, [granted, 0, granted]);
}
