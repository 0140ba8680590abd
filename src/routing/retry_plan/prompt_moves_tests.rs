//! Requests that are routed by their prompts: which backend they go to, and why not to the first of their key.

use std::sync::Arc;

use super::search_tests::home;
use super::tests::{CHAT, Fixture, MS, fixture_by_prompt};
use super::*;
use crate::names::{CacheKey, KeySpread};
use crate::routing::health::availability::UnavailableReason;
use crate::routing::prompt_cache::{KeySource, LoadTicket, MoveReason, PromptRoute};

fn route(key: u64) -> PromptRoute {
    let key = CacheKey::from_hash(key);
    PromptRoute { key, spread: None, source: KeySource::Session, tokens: 1_000 }
}

/// The candidates in the order of a key.
fn order(fixture: &Fixture, key: u64) -> Vec<usize> {
    fixture.pool.key_order(CacheKey::from_hash(key))
}

/// A key with this order of the first candidates.
fn key_with_order(fixture: &Fixture, first: &[usize]) -> u64 {
    (0..10_000).find(|key| order(fixture, *key).starts_with(first)).unwrap()
}

/// Chooses the next attempt and starts it; returns its candidate and why that is not the first of the key.
fn attempt(fixture: &Fixture, plan: &mut RetryPlan) -> (usize, Option<MoveReason>) {
    let NextStep::Attempt(attempt) = fixture.next_step(plan) else { panic!("an attempt is due") };
    plan.note_move(&fixture.pool, CHAT, &attempt, false, fixture.now);
    plan.on_attempt_start(&fixture.pool, &attempt, fixture.now);
    attempt.probe_permit.mark_all_available();
    (attempt.candidate_index, plan.move_reason())
}

fn hold(fixture: &Fixture, index: usize, requests: usize) -> Vec<LoadTicket> {
    let candidate = fixture.pool.candidate(index).unwrap();
    (0..requests).filter_map(|_| candidate.hold_tokens(1_000)).collect()
}

#[test]
fn attempts_follow_the_order_of_the_key_tier_by_tier() {
    let fixture = fixture_by_prompt(&[1, 1, 1, 2, 2], &[0, 1, 2, 3, 4]);
    for key in 0..20 {
        let mut plan = RetryPlan::new(&fixture.pool).with_prompt_route(Some(route(key)));
        let mut tried = Vec::new();
        for number in 0..5 {
            let (index, moved) = attempt(&fixture, &mut plan);
            assert_eq!(moved, (number > 0).then_some(MoveReason::Rest));
            tried.push(index);
            plan.on_attempt_end(&fixture.pool, index, AttemptOutcome::CannotServe);
        }
        assert_eq!(tried, order(&fixture, key));
        assert!(tried[..3].iter().all(|index| *index < 3), "the first tier first: {tried:?}");
    }
}

#[test]
fn a_move_has_the_reason_that_keeps_the_first_backend_from_it() {
    let fixture = fixture_by_prompt(&[1, 1, 1], &[0, 1, 2]);
    let key = key_with_order(&fixture, &[1, 0]);
    let first_attempt = |plan: RetryPlan| attempt(&fixture, &mut { plan });
    let plan = || RetryPlan::new(&fixture.pool).with_prompt_route(Some(route(key)));
    assert_eq!(first_attempt(plan()), (1, None));
    // Of three backends it holds all there is, which of so few requests is three standard deviations.
    let held = hold(&fixture, 1, 7);
    assert_eq!(first_attempt(plan()), (0, Some(MoveReason::Load)));
    drop(held);
    assert_eq!(first_attempt(plan()), (1, None));
    // Over two backends the key is spread by conversations: some stay with its first backend, others go to the second.
    let spread_plan = |conversation| {
        let conversation = CacheKey::from_hash(conversation);
        let spread = KeySpread { backends: 2, conversation, conversation_backends: 1, number: 1 };
        RetryPlan::new(&fixture.pool)
            .with_prompt_route(Some(PromptRoute { spread: Some(spread), ..route(key) }))
    };
    let goes_to = |index| (0..100).find(|conversation| first_attempt(spread_plan(*conversation)).0 == index);
    let (of_first, of_second) = (goes_to(1).unwrap(), goes_to(0).unwrap());
    assert_eq!(goes_to(2), None);
    assert_eq!(first_attempt(spread_plan(of_first)), (1, None));
    assert_eq!(first_attempt(spread_plan(of_second)), (0, Some(MoveReason::Hot)));
    let held = hold(&fixture, 1, 20);
    assert_eq!(first_attempt(spread_plan(of_first)), (0, Some(MoveReason::Load)));
    drop(held);
    let search = RetryPlan::for_search(&fixture.pool, home(2)).with_prompt_route(Some(route(key)));
    assert_eq!(first_attempt(search), (2, Some(MoveReason::Home)));
    fixture.mark_unavailable(1, UnavailableReason::CoolingDown, 1_000);
    assert_eq!(first_attempt(plan()), (0, Some(MoveReason::Rest)));
    assert_eq!(first_attempt(RetryPlan::new(&fixture.pool)).1, None, "it is not routed by its prompt");
}

#[test]
fn a_request_with_a_home_follows_its_key_among_the_backends_of_that_resource() {
    let fixture = fixture_by_prompt(&[1, 1, 1, 1], &[0, 0, 1, 1]);
    for first in [2, 3] {
        let key = key_with_order(&fixture, &[0, 1, first]);
        for _ in 0..3 {
            let mut plan = RetryPlan::for_search(&fixture.pool, home(1)).with_prompt_route(Some(route(key)));
            assert_eq!(attempt(&fixture, &mut plan), (first, Some(MoveReason::Home)));
        }
    }
}

#[test]
fn a_request_from_the_queue_gets_the_free_backend_that_is_first_in_its_order() {
    let mut fixture = fixture_by_prompt(&[1, 1, 1], &[0, 1, 2]);
    fixture.limits.max_queue_wait = Some(1_000 * MS);
    let keys = [[0, 1], [1, 2], [2, 0], [1, 0]].map(|first| (first, key_with_order(&fixture, &first)));
    let Fixture { pool, now, .. } = fixture;
    let pool = Arc::new(pool);
    let plan = RetryPlan::new(&pool).with_prompt_route(Some(route(0)));
    let choice = plan.backend_choice(&pool, CHAT);
    for ([first, _], key) in keys {
        let taken = choice.next_attempt(Some(CacheKey::from_hash(key).into()), now).unwrap();
        assert_eq!(taken.candidate_index, first);
    }
    // One choice for all keys: requests with different keys wait for the same.
    let other = RetryPlan::new(&pool).with_prompt_route(Some(route(1)));
    assert!(choice == other.backend_choice(&pool, CHAT));
    let without_key: Vec<usize> =
        (0..3).map(|_| choice.next_attempt(None, now).unwrap().candidate_index).collect();
    assert_eq!(without_key, [0, 1, 2], "they take turns");
}
