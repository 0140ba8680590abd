//! Shares of turns from reported capacity, and a simulated hour of three unequal resources.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::*;
use crate::azure::Operation;
use crate::config::{BalancePolicy, Percentage};
use crate::credentials::BackendCredential;
use crate::names::{BackendName, Tier, Weight};
use crate::routing::attempt_outcome::AttemptOutcome;
use crate::routing::health::availability::{Unavailable, UnavailableReason};
use crate::routing::health::backend_health::HealthRegistry;
use crate::routing::pool::{BackendPool, Candidate};
use crate::routing::retry_plan::{NextStep, RetryLimits, RetryPlan};

const MS: Duration = Duration::from_millis(1);

const TOKENS: u64 = 100_000;

fn tokens(remaining: i64, reset: Option<u64>) -> ReportedCapacity {
    let limit = NonZeroU64::new(TOKENS).unwrap();
    let reset = reset.map(Duration::from_secs);
    ReportedCapacity {
        token_rate_limit: Some(RateLimit { limit_per_minute: limit, remaining, resets_in: reset }),
        ..ReportedCapacity::default()
    }
}

fn load(utilization: f64) -> ReportedCapacity {
    ReportedCapacity { provisioned_utilization: Some(utilization), ..ReportedCapacity::default() }
}

/// The share of turns at `second`, after attempts at earlier seconds reported these capacities.
fn turn_share_after(reports: &[(u64, ReportedCapacity)], second: u64) -> f64 {
    let start = Instant::now();
    let at = |second| start + Duration::from_secs(second);
    let headroom = Headroom::default();
    for (second, capacity) in reports {
        headroom.turn_share(at(*second));
        headroom.record_response(headroom.record_send(at(*second)), capacity);
    }
    (headroom.turn_share(at(second)) * 100.0).round() / 100.0
}

#[test]
fn what_other_instances_have_sent_counts_like_what_this_one_has() {
    let now = Instant::now();
    let share_after = |own: u64, elsewhere: u64| {
        let headroom = Headroom::default();
        // Each attempt takes one hundredth.
        for remaining in [95_000, 94_000, 93_000] {
            headroom.record_response(headroom.record_send(now), &tokens(remaining, None));
        }
        (0..own).for_each(|_| _ = headroom.record_send(now));
        headroom.record_sends_elsewhere(elsewhere);
        let share = headroom.turn_share(now);
        // A later report has what all have taken.
        headroom.record_response(headroom.record_send(now), &tokens(50_000, None));
        assert_eq!(headroom.turn_share(now), 1.0, "{own} {elsewhere}");
        share
    };
    assert_eq!(share_after(0, 0), 1.0);
    let share = share_after(0, 70);
    assert!((0.1..0.9).contains(&share), "{share}");
    assert_eq!(share_after(70, 0), share);
    assert_eq!(share_after(40, 30), share);
    assert_eq!(share_after(0, 95), 0.0);
}

#[test]
fn the_share_of_turns_follows_what_is_left_of_the_minute() {
    for (case, reports, second, expected) in [
        ("nothing is known", vec![], 0, 1.0),
        ("nothing is reported", vec![(0, ReportedCapacity::default())], 1, 1.0),
        ("much is left", vec![(0, tokens(90_000, None))], 1, 1.0),
        ("little is left, until an unknown time", vec![(0, tokens(10_000, None))], 1, 0.4),
        ("a report of a minute ago", vec![(0, tokens(10_000, None))], 60, 1.0),
        ("half of the limit for half a minute", vec![(0, tokens(50_000, Some(30)))], 0, 1.0),
        ("half of the limit for the whole minute", vec![(0, tokens(49_000, Some(60)))], 0, 0.54),
        ("the same, half a minute later", vec![(0, tokens(49_000, Some(60)))], 30, 1.0),
        ("below zero, as Azure reports on calls that succeed", vec![(0, tokens(-27_689, Some(64)))], 63, 0.0),
        ("the same, after the reset", vec![(0, tokens(-27_689, Some(64)))], 64, 1.0),
        (
            "a known reset recurs each minute",
            vec![(0, tokens(0, Some(10))), (20, tokens(96_000, None))],
            40,
            1.0,
        ),
        (
            "a rise means that a new minute has begun",
            vec![(0, tokens(5_000, None)), (1, tokens(99_000, None))],
            60,
            1.0,
        ),
        ("half load of a provisioned deployment", vec![(0, load(0.5))], 0, 1.0),
        ("a nearly full one", vec![(0, load(0.9))], 0, 0.4),
        ("an overloaded one", vec![(0, load(1.3))], 12, 0.0),
        ("the same, 12 seconds later", vec![(0, load(1.3))], 24, 0.4),
        ("the same, when it is idle again", vec![(0, load(1.3))], 40, 1.0),
    ] {
        assert!(
            (turn_share_after(&reports, second) - expected).abs() < 0.011,
            "{case}: {}",
            turn_share_after(&reports, second)
        );
    }
}

#[test]
fn attempts_without_a_response_count_with_the_average_cost() {
    let now = Instant::now();
    let headroom = Headroom::default();
    // Each attempt takes ten thousand tokens, and each response comes before the next attempt.
    for left in [90_000, 80_000, 70_000, 60_000, 50_000] {
        headroom.record_response(headroom.record_send(now), &tokens(left, Some(60)));
    }
    assert!(headroom.turn_share(now) > 0.4, "{}", headroom.turn_share(now));
    let unreported: Vec<SendTicket> = (0..4).map(|_| headroom.record_send(now)).collect();
    assert!(
        headroom.turn_share(now) <= 0.0,
        "four attempts in flight may use up the limit: {}",
        headroom.turn_share(now)
    );
    // Some were smaller. The response to an earlier attempt, which comes later, changes nothing.
    headroom.record_response(unreported[3], &tokens(30_000, Some(60)));
    headroom.record_response(unreported[0], &tokens(40_000, Some(60)));
    let share = headroom.turn_share(now);
    assert!((0.2..0.35).contains(&share), "{share}");
    // A new minute.
    assert!(headroom.turn_share(now + QUOTA_WINDOW) > 0.9);
}

/// Simulates a standard deployment. It charges a request on arrival, against a limit that is reset each
/// minute. A request that crosses the limit is still served. The reset is reported only when nothing is
/// left.
struct TokenQuota {
    limit: u64,
    created_at: Instant,
    minute: u128,
    used: u64,
}

impl TokenQuota {
    /// Charges a request of this many tokens. Returns whether it is served, or else when to come back,
    /// and the capacity that the response reports.
    fn charge(&mut self, tokens: u64, now: Instant) -> (Result<(), Duration>, ReportedCapacity) {
        let age = (now - self.created_at).as_millis();
        if age / 60_000 != self.minute {
            (self.minute, self.used) = (age / 60_000, 0);
        }
        let reset = Duration::from_millis(u64::try_from(60_000 - age % 60_000).unwrap());
        let is_full = self.used >= self.limit;
        self.used += tokens;
        let remaining = self.limit as i64 - self.used as i64;
        let reported_reset = Duration::from_secs(reset.as_millis().div_ceil(1000) as u64);
        let capacity = ReportedCapacity {
            token_rate_limit: Some(RateLimit {
                limit_per_minute: NonZeroU64::new(self.limit).unwrap(),
                remaining,
                resets_in: (remaining <= 0).then_some(reported_reset),
            }),
            ..ReportedCapacity::default()
        };
        (if is_full { Err(reset) } else { Ok(()) }, capacity)
    }
}

#[derive(Debug, Default, PartialEq)]
struct SimulationResult {
    requests: u64,
    throttled_attempts: u64,
    failed_requests: u64,
    served_by_backend: Vec<u64>,
}

/// Simulates an hour of requests that use `load` of the sum of the limits and are answered after
/// `mean_latency` on average.
fn simulate_hour(
    balance: BalancePolicy,
    limits: &[u64],
    load: f64,
    mean_latency: Duration,
) -> SimulationResult {
    const MEAN_TOKENS: u64 = 500;
    let start = Instant::now() + 3_600_000 * MS;
    let mut random = fastrand::Rng::with_seed(7);
    let health_registry = HealthRegistry::new(start);
    let candidate = |backend_index: usize| {
        let backend_health =
            health_registry.get_or_create_backend(&BackendName::new(&backend_index.to_string()));
        Candidate {
            name: BackendName::new(&backend_index.to_string()),
            backend_index,
            resource_index: backend_index,
            tier: Tier::FIRST,
            weight: Weight::ONE,
            is_configured_as_provisioned: false,
            upstream_deployment_override: None,
            credential: Arc::new(BackendCredential::fixed_for_test("key")),
            deployment_health: Some(backend_health.get_or_create_deployment(None)),
            backend_health,
        }
    };
    let pool = BackendPool::new((0..limits.len()).map(candidate).collect(), balance, start);
    // Their minutes begin at different times.
    let created_at = |n: usize| start - MS * (17_000 * u32::try_from(n).unwrap());
    let mut resources: Vec<TokenQuota> = limits
        .iter()
        .enumerate()
        .map(|(n, &limit)| TokenQuota { limit, created_at: created_at(n), minute: 0, used: 0 })
        .collect();
    let requests_per_ms = limits.iter().sum::<u64>() as f64 * load / 60_000.0 / MEAN_TOKENS as f64;
    let mut result = SimulationResult { served_by_backend: vec![0; limits.len()], ..Default::default() };
    let mut pending_responses = BinaryHeap::new();
    let mut responses: Vec<(usize, SendTicket, ReportedCapacity)> = Vec::new();
    let mut now = start;
    while now < start + Duration::from_secs(3600) {
        now += MS.mul_f64(-(1.0 - random.f64()).ln() / requests_per_ms);
        while pending_responses.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, n))) = pending_responses.pop() else { break };
            let (index, send_ticket, capacity): &(usize, SendTicket, ReportedCapacity) = &responses[n];
            let deployment = pool.candidate(*index).unwrap().deployment_health.as_ref().unwrap();
            deployment.headroom.record_response(*send_ticket, capacity);
        }
        result.requests += 1;
        // From a fifth to nearly twice the mean.
        let tokens = random.u64(MEAN_TOKENS / 5..MEAN_TOKENS * 9 / 5);
        let mut plan = RetryPlan::new(&pool);
        let limits = RetryLimits {
            max_retries: 12,
            max_cooldown_wait: Duration::ZERO,
            latest_retry_start: now,
            max_outage: Duration::ZERO,
            retry_budget_percentage: Percentage::new(20).unwrap(),
            max_queue_wait: None,
        };
        loop {
            let NextStep::Attempt(attempt) = plan.next_step(&pool, Operation::Chat.into(), &limits, now, 0.0)
            else {
                result.failed_requests += 1;
                break;
            };
            plan.on_attempt_start(&pool, &attempt, now);
            let index = attempt.candidate_index;
            let candidate = pool.candidate(index).unwrap();
            let deployment = candidate.deployment_health.as_ref().unwrap();
            let send_ticket = candidate.record_send(now).unwrap();
            let (answer, capacity) = resources[index].charge(tokens, now);
            match answer {
                Ok(()) => {
                    attempt.probe_permit.mark_all_available();
                    result.served_by_backend[index] += 1;
                    responses.push((index, send_ticket, capacity));
                    let latency = mean_latency.mul_f64(0.2 + 1.6 * random.f64());
                    pending_responses.push(Reverse((now + latency, responses.len() - 1)));
                    break;
                }
                Err(wait) => {
                    result.throttled_attempts += 1;
                    deployment.headroom.record_response(send_ticket, &capacity);
                    let until = now + wait;
                    let unavailable = Unavailable { reason: UnavailableReason::CoolingDown, until };
                    deployment.availability.mark_unavailable(unavailable, now);
                    plan.on_attempt_end(&pool, index, AttemptOutcome::Throttled(until));
                }
            }
        }
    }
    result
}

#[test]
fn balancing_by_headroom_avoids_nearly_all_429s_at_95_percent_load_of_three_unequal_resources() {
    let latency = Duration::from_secs(3);
    let run = |balance, load| simulate_hour(balance, &[120_000, 60_000, 20_000], load, latency);
    let (plain, headroom) = (run(BalancePolicy::RoundRobin, 0.95), run(BalancePolicy::Headroom, 0.95));
    assert_eq!(headroom.failed_requests, 0, "{headroom:?}");
    assert!(
        plain.throttled_attempts > 100 && headroom.throttled_attempts * 20 < plain.throttled_attempts,
        "{plain:?} {headroom:?}"
    );
    // At more load than the limits allow, it serves as much as round robin does.
    let (plain, headroom) = (run(BalancePolicy::RoundRobin, 1.2), run(BalancePolicy::Headroom, 1.2));
    let served = |result: &SimulationResult| (result.requests - result.failed_requests) as f64;
    assert!((served(&headroom) / served(&plain) - 1.0).abs() < 0.02, "{plain:?} {headroom:?}");
}

#[test]
fn equal_resources_take_exact_turns() {
    let result = simulate_hour(BalancePolicy::Headroom, &[60_000; 3], 0.5, Duration::from_secs(3));
    let served = result.served_by_backend;
    let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
    assert!(most - least <= 1, "{served:?}");
}
