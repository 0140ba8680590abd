//! Which resources a request is sent to that refers to what was made on one of them.

use super::resource_search::ResourceSearch;
use super::tests::{Fixture, MS, fixture, fixture_of_resources};
use super::*;
use crate::routing::health::availability::UnavailableReason;

const SECOND: Duration = Duration::from_secs(1);

fn ask_all() -> ResourceSearch {
    ResourceSearch::Ask { max_further: u32::MAX, further_rounds: &[] }
}

pub(super) fn home(resource_index: usize) -> ResourceSearch {
    ResourceSearch::Home { resource_index, lags_until: None }
}

/// Attempts until the plan waits or ends, each of which is denied: the backends in their order.
fn deny_all(fixture: &Fixture, plan: &mut RetryPlan) -> Vec<usize> {
    let mut tried = Vec::new();
    while let NextStep::Attempt(attempt) = fixture.next_step(plan) {
        plan.on_attempt_start(&fixture.pool, &attempt, fixture.now);
        plan.on_attempt_end(&fixture.pool, attempt.candidate_index, AttemptOutcome::NotOnThisResource);
        tried.push(attempt.candidate_index);
    }
    tried
}

#[test]
fn an_object_of_unknown_resource_is_asked_for_on_each_resource_once() {
    // Backends 0 and 2 are one resource.
    let fixture = fixture_of_resources(&[1, 1, 2, 2], &[0, 1, 0, 2]);
    let mut plan = RetryPlan::for_search(&fixture.pool, ask_all());
    assert_eq!(deny_all(&fixture, &mut plan), [0, 1, 3]);
    assert!(matches!(fixture.next_step(&plan), NextStep::Exhausted));
    assert_eq!((plan.denial_count(), plan.has_unasked_resource()), (3, false));
}

#[test]
fn more_resources_are_asked_than_there_may_be_retries() {
    let fixture = fixture(&[1; 40]);
    let mut plan = RetryPlan::for_search(&fixture.pool, ask_all());
    assert_eq!(deny_all(&fixture, &mut plan).len(), 40);
    let mut plan =
        RetryPlan::for_search(&fixture.pool, ResourceSearch::Ask { max_further: 2, further_rounds: &[] });
    assert_eq!(deny_all(&fixture, &mut plan).len(), 3);
    assert!(!plan.has_unasked_resource(), "no more than that were to be asked");
}

#[test]
fn a_resource_that_cannot_be_asked_leaves_the_search_open() {
    let fixture = fixture(&[1, 1]);
    fixture.mark_unavailable(1, UnavailableReason::CoolingDown, 60_000);
    let mut plan = RetryPlan::for_search(&fixture.pool, ask_all());
    assert_eq!(deny_all(&fixture, &mut plan)[..1], [0]);
    assert!(plan.has_unasked_resource());
}

#[test]
fn a_known_resource_is_the_only_one_that_gets_the_request() {
    let fixture = fixture_of_resources(&[1, 1, 2], &[0, 1, 1]);
    let mut plan = RetryPlan::for_search(&fixture.pool, home(1));
    assert_eq!(fixture.start_attempt(&mut plan), 1);
    plan.on_attempt_end(&fixture.pool, 1, AttemptOutcome::Failed);
    assert_eq!(fixture.start_attempt(&mut plan), 2, "its other backend");
    plan.on_attempt_end(&fixture.pool, 2, AttemptOutcome::NotOnThisResource);
    assert!(matches!(fixture.next_step(&plan), NextStep::Exhausted));
    assert!(plan.is_excluded(0) && !plan.is_excluded(1));
}

#[test]
fn what_was_made_a_short_time_ago_is_asked_for_again_until_the_lag_is_over() {
    let mut fixture = fixture(&[1, 1]);
    let lags_until = Some(fixture.now + 10 * SECOND);
    let search = ResourceSearch::Home { resource_index: 1, lags_until };
    let mut plan = RetryPlan::for_search(&fixture.pool, search);
    let mut waits = Vec::new();
    loop {
        assert_eq!(deny_all(&fixture, &mut plan), [1]);
        let NextStep::Wait(wait) = fixture.next_step(&plan) else { break };
        waits.push(wait.duration.as_millis());
        fixture.now += wait.duration;
        assert!(plan.is_wait_for_home(wait));
        plan.on_wait_over(wait);
    }
    assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 2_250]);
}

#[test]
fn the_lag_is_not_waited_for_beyond_the_deadline() {
    let mut fixture = fixture(&[1]);
    fixture.limits.latest_retry_start = fixture.now + 400 * MS;
    let lags_until = Some(fixture.now + 40 * SECOND);
    let mut plan =
        RetryPlan::for_search(&fixture.pool, ResourceSearch::Home { resource_index: 0, lags_until });
    deny_all(&fixture, &mut plan);
    let wait = fixture.next_wait(&plan);
    fixture.now += wait.duration;
    plan.on_wait_over(wait);
    deny_all(&fixture, &mut plan);
    assert!(matches!(fixture.next_step(&plan), NextStep::Exhausted));
}

#[test]
fn a_recent_object_of_unknown_resource_is_asked_for_in_further_rounds() {
    let mut fixture = fixture(&[1, 1]);
    const ROUNDS: &[Duration] = &[Duration::from_secs(2), Duration::from_secs(8)];
    let mut plan = RetryPlan::for_search(
        &fixture.pool,
        ResourceSearch::Ask { max_further: u32::MAX, further_rounds: ROUNDS },
    );
    let mut waits = Vec::new();
    loop {
        assert_eq!(deny_all(&fixture, &mut plan).len(), 2);
        let NextStep::Wait(wait) = fixture.next_step(&plan) else { break };
        waits.push(wait.duration);
        fixture.now += wait.duration;
        plan.on_wait_over(wait);
    }
    assert_eq!(waits, ROUNDS);
    assert_eq!(plan.denial_count(), 6);
}

#[test]
fn a_client_that_asks_too_often_waits_for_its_turn() {
    let mut fixture = fixture(&[1, 1]);
    let mut plan = RetryPlan::for_search(&fixture.pool, ask_all());
    let first = fixture.start_attempt(&mut plan);
    plan.on_attempt_end(&fixture.pool, first, AttemptOutcome::NotOnThisResource);
    plan.delay_next_ask(fixture.now + 40 * MS);
    let wait = fixture.next_wait(&plan);
    assert_eq!(wait.duration, 40 * MS);
    fixture.now += wait.duration;
    plan.on_wait_over(wait);
    assert_ne!(fixture.start_attempt(&mut plan), first);
}

#[test]
fn the_cooldown_of_a_known_resource_is_waited_for_if_it_ends_in_time() {
    let mut fixture = fixture(&[1, 1]);
    fixture.limits.max_cooldown_wait = 120 * SECOND;
    let until = fixture.now + 20 * SECOND;
    fixture.mark_unavailable(0, UnavailableReason::CoolingDown, 20_000);
    let mut plan = RetryPlan::for_search(&fixture.pool, home(0));
    let wait = fixture.next_wait(&plan);
    assert_eq!(wait.duration, 20 * SECOND);
    fixture.limits.latest_retry_start = fixture.now + 19 * SECOND;
    assert!(matches!(fixture.next_step(&plan), NextStep::Exhausted), "not even before the first attempt");
    fixture.limits.latest_retry_start = fixture.now + 21 * SECOND;
    fixture.now = until;
    plan.on_wait_over(wait);
    assert_eq!(fixture.start_attempt(&mut plan), 0);
}

#[test]
fn a_drained_backend_gets_what_only_its_resource_can_answer() {
    let fixture = fixture_of_resources(&[1, 1, 1], &[0, 1, 1]);
    fixture.drain(0);
    fixture.drain(1);
    let mut plan = RetryPlan::for_search(&fixture.pool, home(0));
    assert_eq!(fixture.start_attempt(&mut plan), 0);
    let mut plan = RetryPlan::for_search(&fixture.pool, home(1));
    assert_eq!(fixture.start_attempt(&mut plan), 2, "the other backend of the resource is not drained");
    let mut plan = RetryPlan::for_search(&fixture.pool, ask_all());
    assert_eq!(deny_all(&fixture, &mut plan), [2, 0], "a drained resource may have it");
}

#[test]
fn requests_for_known_resources_keep_the_shares_of_all_requests() {
    let fixture = fixture(&[1, 1, 1]);
    let mut counts = [0; 3];
    let mut send = |search: Option<ResourceSearch>| {
        let mut plan = match search {
            Some(search) => RetryPlan::for_search(&fixture.pool, search),
            None => RetryPlan::new(&fixture.pool),
        };
        counts[fixture.start_attempt(&mut plan)] += 1;
    };
    for _ in 0..100 {
        send(Some(home(0)));
    }
    for _ in 0..200 {
        send(None);
    }
    assert_eq!(counts, [100, 100, 100]);
    let mut counts = [0; 3];
    for _ in 0..30 {
        let mut plan = RetryPlan::new(&fixture.pool);
        counts[fixture.start_attempt(&mut plan)] += 1;
    }
    assert_eq!(counts, [10, 10, 10]);
}
