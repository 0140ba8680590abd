//! What a retry plan does next, after each kind of outcome.

use std::sync::Arc;

use super::*;
use crate::azure::Operation;
use crate::config::BalancePolicy;
use crate::credentials::BackendCredential;
use crate::names::{BackendName, Tier, Weight};
use crate::routing::health::availability::{Unavailable, UnavailableReason};
use crate::routing::health::backend_health::HealthRegistry;
use crate::routing::pool::Candidate;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const CHAT: RoutedOperation = RoutedOperation { operation: Operation::Chat, is_flex: false };
const FLEX_CHAT: RoutedOperation = RoutedOperation { operation: Operation::Chat, is_flex: true };

pub(super) struct Fixture {
    pub(super) now: Instant,
    pub(super) health_registry: HealthRegistry,
    pub(super) pool: BackendPool,
    pub(super) limits: RetryLimits,
}

/// One pool of the backends `0, 1, …`, each in the given tier.
pub(super) fn fixture(tiers: &[u16]) -> Fixture {
    fixture_of_resources(tiers, &Vec::from_iter(0..tiers.len()))
}

/// The same, each backend on the resource of the given index.
pub(super) fn fixture_of_resources(tiers: &[u16], resources: &[usize]) -> Fixture {
    build_fixture(tiers, resources, || BackendCredential::fixed_for_test("key"))
}

fn fixture_with_credentials(tiers: &[u16], credential: fn() -> BackendCredential) -> Fixture {
    build_fixture(tiers, &Vec::from_iter(0..tiers.len()), credential)
}

/// The same as [`fixture_of_resources`], for requests that are routed by their prompts.
pub(super) fn fixture_by_prompt(tiers: &[u16], resources: &[usize]) -> Fixture {
    let credential = || BackendCredential::fixed_for_test("key");
    build_fixture_with_policy(tiers, resources, credential, BalancePolicy::PromptCache)
}

fn build_fixture(tiers: &[u16], resources: &[usize], credential: fn() -> BackendCredential) -> Fixture {
    build_fixture_with_policy(tiers, resources, credential, BalancePolicy::RoundRobin)
}

fn build_fixture_with_policy(
    tiers: &[u16],
    resources: &[usize],
    credential: fn() -> BackendCredential,
    policy: BalancePolicy,
) -> Fixture {
    let now = Instant::now();
    let health_registry = HealthRegistry::new(now);
    let candidate = |(backend_index, tier): (usize, &u16)| {
        let backend_health =
            health_registry.get_or_create_backend(&BackendName::new(&backend_index.to_string()));
        Candidate {
            backend_index,
            name: BackendName::new(&backend_index.to_string()),
            resource_index: resources[backend_index],
            tier: Tier::new(*tier).unwrap(),
            weight: Weight::ONE,
            is_configured_as_provisioned: false,
            upstream_deployment_override: None,
            credential: Arc::new(credential()),
            deployment_health: Some(backend_health.get_or_create_deployment(None)),
            backend_health,
        }
    };
    let candidates = tiers.iter().enumerate().map(candidate).collect();
    let pool = BackendPool::new(candidates, policy, now);
    let limits = RetryLimits {
        max_retries: 12,
        max_cooldown_wait: 250 * MS,
        latest_retry_start: now + 120_000 * MS,
        max_outage: 5_000 * MS,
        retry_budget_percentage: Percentage::new(20).unwrap(),
        max_queue_wait: None,
    };
    Fixture { now, health_registry, pool, limits }
}

impl Fixture {
    pub(super) fn next_step(&self, plan: &RetryPlan) -> NextStep {
        plan.next_step(&self.pool, CHAT, &self.limits, self.now, 0.0)
    }

    /// Starts the next attempt, which has to be due; returns the index of its candidate.
    pub(super) fn start_attempt(&self, plan: &mut RetryPlan) -> usize {
        match self.next_step(plan) {
            NextStep::Attempt(attempt) => {
                plan.on_attempt_start(&self.pool, &attempt, self.now);
                // No probe is in progress when other plans ask.
                attempt.probe_permit.mark_all_available();
                attempt.candidate_index
            }
            other => panic!("expected an attempt, got {other:?}"),
        }
    }

    /// The next step, which has to be a wait.
    pub(super) fn next_wait(&self, plan: &RetryPlan) -> Wait {
        match self.next_step(plan) {
            NextStep::Wait(wait) => wait,
            other => panic!("expected a wait, got {other:?}"),
        }
    }

    fn is_exhausted(&self, plan: &RetryPlan) -> bool {
        matches!(self.next_step(plan), NextStep::Exhausted)
    }

    /// Makes the deployment on a backend unavailable for this many milliseconds.
    pub(super) fn mark_unavailable(&self, backend: usize, reason: UnavailableReason, ms: u32) {
        let unavailable = Unavailable { reason, until: self.now + ms * MS };
        let name = BackendName::new(&backend.to_string());
        let deployment = self.health_registry.get_or_create_backend(&name).get_or_create_deployment(None);
        deployment.availability.mark_unavailable(unavailable, self.now);
    }

    /// Drains a backend.
    pub(super) fn drain(&self, backend: usize) {
        let unavailable =
            Unavailable { reason: UnavailableReason::Drained, until: self.now + 3_600_000 * MS };
        let name = BackendName::new(&backend.to_string());
        self.health_registry.get_or_create_backend(&name).drain_state.mark_unavailable(unavailable, self.now);
    }
}

#[test]
fn each_backend_is_tried_once_tier_by_tier_then_those_that_failed_in_rounds() {
    let mut fixture = fixture(&[1, 1, 2]);
    let mut plan = RetryPlan::new(&fixture.pool);
    let mut tried = Vec::new();
    for _ in 0..3 {
        let index = fixture.start_attempt(&mut plan);
        tried.push(index);
        let until = fixture.now + 10_000 * MS;
        let outcome = if index == 2 { AttemptOutcome::Throttled(until) } else { AttemptOutcome::Failed };
        plan.on_attempt_end(&fixture.pool, index, outcome);
    }
    assert_eq!(tried, [0, 1, 2]);
    for expected in [100, 200, 400] {
        let wait = fixture.next_wait(&plan);
        assert_eq!(wait.duration, expected * MS);
        fixture.now += wait.duration;
        plan.on_wait_over(wait);
        for _ in 0..2 {
            let index = fixture.start_attempt(&mut plan);
            assert_ne!(index, 2, "the third is cooling down");
            plan.on_attempt_end(&fixture.pool, index, AttemptOutcome::Failed);
        }
    }
    fixture.limits.latest_retry_start = fixture.now + 799 * MS;
    assert!(fixture.is_exhausted(&plan), "the next round would start too late");
}

#[test]
fn the_number_of_retries_is_limited() {
    let mut fixture = fixture(&[1, 1]);
    fixture.limits.max_retries = 1;
    let mut plan = RetryPlan::new(&fixture.pool);
    for _ in 0..2 {
        let index = fixture.start_attempt(&mut plan);
        plan.on_attempt_end(&fixture.pool, index, AttemptOutcome::Failed);
    }
    assert!(fixture.is_exhausted(&plan));
}

#[test]
fn a_short_cooldown_is_waited_for_and_a_long_one_spills_over_to_the_next_tier() {
    let mut fixture = fixture(&[1, 2]);
    fixture.mark_unavailable(0, UnavailableReason::CoolingDown, 40);
    let mut plan = RetryPlan::new(&fixture.pool);
    let wait = fixture.next_wait(&plan);
    assert_eq!(wait.duration, 40 * MS);
    fixture.now += wait.duration;
    plan.on_wait_over(wait);
    assert_eq!(fixture.start_attempt(&mut plan), 0);
    // It is throttled again, for longer than what is left of the time for waits.
    plan.on_attempt_end(&fixture.pool, 0, AttemptOutcome::Throttled(fixture.now + 220 * MS));
    assert_eq!(fixture.start_attempt(&mut plan), 1);
}

#[test]
fn further_rounds_end_when_the_outage_has_lasted_for_its_time() {
    let mut fixture = fixture(&[1]);
    fixture.limits.max_outage = 1000 * MS;
    let mut plan = RetryPlan::new(&fixture.pool);
    let began_at = fixture.now + 10_000 * MS;
    assert_eq!(fixture.start_attempt(&mut plan), 0);
    // The time that the first attempt took does not count.
    fixture.now = began_at;
    plan.on_attempt_end(&fixture.pool, 0, AttemptOutcome::Failed);
    let mut rounds = 0;
    while let NextStep::Wait(wait) = fixture.next_step(&plan) {
        fixture.now += wait.duration;
        plan.on_wait_over(wait);
        assert_eq!(fixture.start_attempt(&mut plan), 0);
        plan.on_attempt_end(&fixture.pool, 0, AttemptOutcome::Failed);
        rounds += 1;
    }
    // 100, 200 and 400 ms; 800 ms more would be too long.
    assert_eq!((rounds, fixture.now - began_at), (3, 700 * MS));
    assert!(fixture.is_exhausted(&plan));
}

#[test]
fn no_further_round_begins_if_an_outage_may_last_no_time() {
    let mut fixture = fixture(&[1]);
    fixture.limits.max_outage = Duration::ZERO;
    let mut plan = RetryPlan::new(&fixture.pool);
    assert_eq!(fixture.start_attempt(&mut plan), 0);
    plan.on_attempt_end(&fixture.pool, 0, AttemptOutcome::Failed);
    assert!(fixture.is_exhausted(&plan));
}

#[test]
fn what_no_backend_of_a_tier_can_serve_goes_to_the_next_tier() {
    let fixture = fixture(&[1, 1, 2]);
    let mut plan = RetryPlan::new(&fixture.pool);
    assert_eq!(fixture.start_attempt(&mut plan), 0);
    plan.on_attempt_end(&fixture.pool, 0, AttemptOutcome::TierCannotServe);
    assert_eq!(fixture.start_attempt(&mut plan), 2);
    plan.on_attempt_end(&fixture.pool, 2, AttemptOutcome::TierCannotServe);
    assert!(fixture.is_exhausted(&plan));
}

#[test]
fn a_retry_after_of_zero_is_no_busy_loop() {
    let mut fixture = fixture(&[1, 2]);
    let mut plan = RetryPlan::new(&fixture.pool);
    let mut attempts = 0;
    while fixture.start_attempt(&mut plan) == 0 {
        attempts += 1;
        plan.on_attempt_end(&fixture.pool, 0, AttemptOutcome::Throttled(fixture.now));
        if let NextStep::Wait(wait) = fixture.next_step(&plan) {
            fixture.now += wait.duration;
            plan.on_wait_over(wait);
        }
        if attempts > 12 {
            break;
        }
    }
    // After waits of 10, 20, 40 and 80 ms the time for waits is used up.
    assert_eq!(attempts, 5);
}

#[test]
fn a_pool_of_throttled_backends_is_exhausted_at_once_and_tells_the_earliest_end_of_a_cooldown() {
    let fixture = fixture(&[1, 2]);
    fixture.mark_unavailable(1, UnavailableReason::CoolingDown, 3000);
    let mut plan = RetryPlan::new(&fixture.pool);
    let index = fixture.start_attempt(&mut plan);
    plan.on_attempt_end(&fixture.pool, index, AttemptOutcome::Throttled(fixture.now + 5000 * MS));
    assert!(fixture.is_exhausted(&plan));
    assert_eq!(plan.earliest_cooldown_end(&fixture.pool, CHAT, fixture.now), Some(fixture.now + 3000 * MS));
}

#[test]
fn a_backend_without_the_deployment_is_tried_last_and_never_waited_for() {
    let fixture = fixture(&[1, 1]);
    fixture.mark_unavailable(0, UnavailableReason::DeploymentNotFound, 50);
    let mut plan = RetryPlan::new(&fixture.pool);
    assert_eq!(fixture.start_attempt(&mut plan), 1);
    plan.on_attempt_end(&fixture.pool, 1, AttemptOutcome::CannotServe);
    assert_eq!(fixture.start_attempt(&mut plan), 0);
    plan.on_attempt_end(&fixture.pool, 0, AttemptOutcome::CannotServe);
    assert!(fixture.is_exhausted(&plan));
}

#[test]
fn the_first_stale_connection_to_a_backend_does_not_count_as_an_attempt() {
    let fixture = fixture(&[1]);
    let mut plan = RetryPlan::new(&fixture.pool);
    for outcome in [AttemptOutcome::Uncounted, AttemptOutcome::Uncounted] {
        assert_eq!(fixture.start_attempt(&mut plan), 0);
        plan.on_attempt_end(&fixture.pool, 0, outcome);
    }
    assert!(matches!(fixture.next_step(&plan), NextStep::Wait(_)));
}

#[test]
fn after_a_cooldown_one_request_probes_and_the_others_wait_for_its_result() {
    let mut fixture = fixture(&[1]);
    fixture.mark_unavailable(0, UnavailableReason::CoolingDown, 10);
    fixture.now += 10 * MS;
    let (first, second) = (RetryPlan::new(&fixture.pool), RetryPlan::new(&fixture.pool));
    let NextStep::Attempt(probe) = fixture.next_step(&first) else { panic!("one request probes") };
    let deployment = fixture.pool.candidate(0).unwrap().deployment_health.as_ref().unwrap();
    assert!(probe.probe_permit.is_probing(&deployment.availability));
    let wait = fixture.next_wait(&second);
    assert_eq!(wait.duration, 100 * MS, "no longer than a refusal would take");
    probe.probe_permit.mark_all_available();
    assert!(matches!(fixture.next_step(&second), NextStep::Attempt(_)));
}

#[test]
fn if_all_circuits_are_open_each_backend_is_tried_once_the_one_that_closes_soonest_first() {
    let fixture = fixture(&[1, 1]);
    for (backend, ms) in [(0, 9000), (1, 5000)] {
        let health = fixture.health_registry.get_or_create_backend(&BackendName::new(&backend.to_string()));
        let unavailable =
            Unavailable { reason: UnavailableReason::BreakerOpen, until: fixture.now + ms * MS };
        health.breaker.availability.mark_unavailable(unavailable, fixture.now);
    }
    let mut plan = RetryPlan::new(&fixture.pool);
    for expected in [1, 0] {
        assert_eq!(fixture.start_attempt(&mut plan), expected);
        plan.on_attempt_end(&fixture.pool, expected, AttemptOutcome::Failed);
    }
    // In the next round the circuits are still open, and each backend has been tried as a last resort.
    let wait = fixture.next_wait(&plan);
    plan.on_wait_over(wait);
    assert!(fixture.is_exhausted(&plan));
}

#[test]
fn the_first_failover_and_attempts_that_follow_no_failure_do_not_use_the_retry_budget() {
    let fixture = fixture(&[1, 1, 1]);
    let exhaust_budget = || {
        while fixture.pool.retry_budget.allows_retry(fixture.limits.retry_budget_percentage, fixture.now) {
            fixture.pool.retry_budget.record_retry(fixture.now);
        }
    };
    exhaust_budget();
    let mut plan = RetryPlan::new(&fixture.pool);
    let first = fixture.start_attempt(&mut plan);
    exhaust_budget();
    plan.on_attempt_end(&fixture.pool, first, AttemptOutcome::Failed);
    let second = fixture.start_attempt(&mut plan);
    plan.on_attempt_end(&fixture.pool, second, AttemptOutcome::Failed);
    assert!(fixture.is_exhausted(&plan), "the second failover uses the budget");
    plan.on_attempt_end(&fixture.pool, second, AttemptOutcome::Throttled(fixture.now + 5000 * MS));
    assert!(matches!(fixture.next_step(&plan), NextStep::Attempt(_)), "an attempt after a 429 does not");
}

#[test]
fn a_new_secret_is_waited_for_once_if_no_other_backend_is_left_and_is_tried_once() {
    let fixture = fixture_with_credentials(&[1, 2], || BackendCredential::replaceable_for_test("old"));
    let reject_secret = |plan: &mut RetryPlan, index: usize| {
        let candidate = fixture.pool.candidate(index).unwrap();
        let secret_id = candidate.credential.secret().current_value_id();
        candidate.credential.secret().on_value_rejected(secret_id);
        let unavailable =
            Unavailable { reason: UnavailableReason::NoUsableCredential, until: fixture.now + 60_000 * MS };
        candidate.backend_health.record_credential_rejection(
            &candidate.credential,
            secret_id,
            unavailable,
            fixture.now,
        );
        plan.on_attempt_end(&fixture.pool, index, AttemptOutcome::CredentialRejected(secret_id));
    };
    let renew_secret = |index: usize, key| {
        let candidate = fixture.pool.candidate(index).unwrap();
        candidate.credential.secret().replace_for_test(key);
    };
    let mut plan = RetryPlan::new(&fixture.pool);
    let first = fixture.start_attempt(&mut plan);
    reject_secret(&mut plan, first);
    // While the secret is being renewed, another backend is tried.
    let second = fixture.start_attempt(&mut plan);
    assert_ne!(first, second);
    reject_secret(&mut plan, second);
    assert!(matches!(fixture.next_step(&plan), NextStep::AwaitCredential(_)));
    // A second request that comes in the meantime waits as well.
    let mut other = RetryPlan::new(&fixture.pool);
    assert!(matches!(fixture.next_step(&other), NextStep::AwaitCredential(_)));
    renew_secret(first, "new");
    renew_secret(second, "old");
    plan.on_credential_wait_over();
    other.on_credential_wait_over();
    assert_eq!(fixture.start_attempt(&mut plan), first);
    reject_secret(&mut plan, first);
    // A third secret is not tried, and the secret of the second backend has not changed.
    renew_secret(first, "newer");
    assert!(fixture.is_exhausted(&plan), "{:?}", fixture.next_step(&plan));
    assert_eq!(fixture.start_attempt(&mut other), first, "another request tries the third secret");
}

#[test]
fn a_request_that_has_given_up_waiting_takes_nothing_from_those_that_still_wait() {
    let mut fixture = fixture(&[1, 2]);
    fixture.limits.max_queue_wait = Some(5000 * MS);
    let mut plan = RetryPlan::new(&fixture.pool);
    fixture.mark_unavailable(0, UnavailableReason::CoolingDown, 1000);
    fixture.mark_unavailable(1, UnavailableReason::CoolingDown, 9000);
    assert!(matches!(fixture.next_step(&plan), NextStep::Queue));
    plan.on_queue_given_up();
    assert!(fixture.is_exhausted(&plan));
    fixture.now += 2000 * MS;
    assert!(fixture.is_exhausted(&plan), "a backend is free");
    assert!(matches!(fixture.next_step(&RetryPlan::new(&fixture.pool)), NextStep::Attempt(_)));
}

#[test]
fn a_flex_cooldown_keeps_only_flex_requests_away() {
    let fixture = fixture(&[1, 2]);
    let health = |index: usize| fixture.pool.candidate(index).unwrap().deployment_health.as_ref().unwrap();
    assert!(health(0).flex_availability().is_none(), "it costs nothing until there is one");
    let cooldown = |until| Unavailable { reason: UnavailableReason::CoolingDown, until };
    let flex_cell = health(0).get_or_create_flex_availability();
    flex_cell.mark_unavailable(cooldown(fixture.now + 5000 * MS), fixture.now);
    let step = |operation, now| {
        RetryPlan::new(&fixture.pool).next_step(&fixture.pool, operation, &fixture.limits, now, 0.0)
    };
    let next = |operation, now| match step(operation, now) {
        NextStep::Attempt(attempt) => (attempt.candidate_index, attempt.probe_permit),
        step => panic!("{step:?}"),
    };
    assert_eq!((next(CHAT, fixture.now).0, next(FLEX_CHAT, fixture.now).0), (0, 1));
    // When it is over, one flex request probes; another request does not.
    let later = fixture.now + 5000 * MS;
    let (_, permit) = next(CHAT, later);
    assert!(!permit.is_probing(flex_cell));
    let (candidate, permit) = next(FLEX_CHAT, later);
    assert!(candidate == 0 && permit.is_probing(flex_cell));
    assert!(matches!(step(FLEX_CHAT, later), NextStep::Wait(_)), "another flex request waits for the probe");
    assert_eq!(next(CHAT, later).0, 0);
    permit.mark_all_available();
    assert_eq!(next(FLEX_CHAT, later).0, 0);
    // Where none has capacity for flex requests, the first to have some says how long that lasts.
    let second = health(1).get_or_create_flex_availability();
    second.mark_unavailable(cooldown(later + 900 * MS), later);
    flex_cell.mark_unavailable(cooldown(later + 700 * MS), later);
    let plan = RetryPlan::new(&fixture.pool);
    let end = |operation| plan.earliest_cooldown_end(&fixture.pool, operation, later);
    assert_eq!((end(FLEX_CHAT), end(CHAT)), (Some(later + 700 * MS), None));
    // A cooldown of the deployment itself keeps all away.
    health(0).availability.mark_unavailable(cooldown(later + 5000 * MS), later);
    assert_eq!((end(FLEX_CHAT), next(CHAT, later).0), (Some(later + 900 * MS), 1));
}
