//! Which candidates a request leaves to more urgent ones.

use std::sync::Barrier;

use super::tests::{CHAT, Fixture, MS, fixture, fixture_of_resources};
use super::*;
use crate::config::RequestClass;
use crate::names::BackendName;
use crate::routing::health::availability::UnavailableReason;

impl Fixture {
    /// The deployment on a backend tells this utilization now.
    fn tell(&self, backend: usize, ratio: f64) {
        let name = BackendName::new(&backend.to_string());
        let deployment = self.health_registry.get_or_create_backend(&name).get_or_create_deployment(None);
        deployment.utilization.record_reading(deployment.headroom.record_send(self.now), ratio, self.now);
    }

    /// Has the deployment on a backend answer 429 with a `retry-after-ms` of `ms`.
    fn throttle(&self, backend: usize, ms: u32) {
        self.mark_unavailable(backend, UnavailableReason::CoolingDown, ms);
        let name = BackendName::new(&backend.to_string());
        let deployment = self.health_registry.get_or_create_backend(&name).get_or_create_deployment(None);
        deployment.utilization.record_throttling(false, self.now + ms * MS);
    }

    fn batch_plan(&self) -> RetryPlan {
        RetryPlan::new(&self.pool).with_shed_rule(Some(batch_rule()))
    }

    /// The candidate of the next attempt; `None` for a wait or nothing.
    fn next_candidate(&self, plan: &RetryPlan) -> Option<usize> {
        match self.next_step(plan) {
            NextStep::Attempt(attempt) => Some(attempt.candidate_index),
            _ => None,
        }
    }
}

/// The rule of a class that stays up to 80 %.
fn batch_rule() -> ShedRule {
    ShedRule { class: RequestClass::Batch, threshold: Percentage::new(80).unwrap() }
}

#[test]
fn a_request_leaves_what_is_above_its_threshold_if_a_lower_tier_serves_it() {
    let table: &[(&[u16], &[f64], usize)] = &[
        (&[1, 2], &[0.8, 0.0], 0),
        (&[1, 2], &[0.81, 0.0], 1),
        // The last tier is left by nobody, however much of it is used.
        (&[1, 2], &[0.81, 1.2], 1),
        (&[1], &[1.2], 0),
        (&[1, 1], &[1.2, 1.2], 0),
        // Another one of the tier is better than the next tier.
        (&[1, 1, 2], &[0.9, 0.5, 0.0], 1),
        (&[1, 2, 3], &[0.9, 0.7, 0.0], 1),
        (&[1, 2, 3], &[0.9, 0.9, 0.0], 2),
    ];
    for (tiers, utilizations, expected) in table {
        let fixture = fixture(tiers);
        for (backend, ratio) in utilizations.iter().enumerate() {
            fixture.tell(backend, *ratio);
        }
        let case = format!("{tiers:?} {utilizations:?}");
        assert_eq!(fixture.next_candidate(&fixture.batch_plan()), Some(*expected), "{case}");
        let without_rule = fixture.next_candidate(&RetryPlan::new(&fixture.pool));
        assert_eq!(without_rule.map(|index| tiers[index]), Some(1), "{case}: no rule");
    }
}

#[test]
fn one_request_at_a_time_goes_where_the_reading_is_old() {
    let mut fixture = fixture(&[1, 2]);
    fixture.tell(0, 0.9);
    fixture.now += 10_000 * MS;
    let batch = |fixture: &Fixture| fixture.next_candidate(&fixture.batch_plan());
    assert_eq!((batch(&fixture), batch(&fixture), batch(&fixture)), (Some(0), Some(1), Some(1)));
    fixture.now += 10_000 * MS;
    assert_eq!((batch(&fixture), batch(&fixture)), (Some(0), Some(1)));
    fixture.tell(0, 0.3);
    assert_eq!((batch(&fixture), batch(&fixture)), (Some(0), Some(0)));
}

#[test]
fn of_requests_at_the_same_moment_one_goes_where_the_reading_is_old() {
    const THREADS: usize = 4;
    let mut fixture = fixture(&[1, 2]);
    for round in 0..300 {
        fixture.tell(0, 0.9);
        fixture.now += 10_000 * MS;
        let (fixture, barrier) = (&fixture, &Barrier::new(THREADS));
        let chosen = std::thread::scope(|scope| {
            let choose = || {
                let plan = fixture.batch_plan();
                barrier.wait();
                fixture.next_candidate(&plan)
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(choose)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(chosen.iter().filter(|index| **index == Some(0)).count(), 1, "{round}: {chosen:?}");
        assert_eq!(chosen.iter().filter(|index| **index == Some(1)).count(), THREADS - 1, "{chosen:?}");
    }
}

#[test]
fn a_request_stays_if_nothing_else_is_left_but_not_if_the_others_only_cool_down() {
    use UnavailableReason::{BreakerOpen, CoolingDown, DeploymentNotFound};
    for (second, third, expected) in [
        (None, None, Some(1)),
        (Some(CoolingDown), None, Some(2)),
        (Some(CoolingDown), Some(CoolingDown), None),
        (Some(BreakerOpen), Some(CoolingDown), None),
        (Some(BreakerOpen), Some(BreakerOpen), Some(0)),
        (Some(DeploymentNotFound), Some(BreakerOpen), Some(0)),
    ] {
        let fixture = fixture(&[1, 2, 3]);
        fixture.tell(0, 0.9);
        for (backend, reason) in [(1, second), (2, third)] {
            if let Some(reason) = reason {
                fixture.mark_unavailable(backend, reason, 5_000);
            }
        }
        let (plan, case) = (fixture.batch_plan(), format!("{second:?}, {third:?}"));
        assert_eq!(fixture.next_candidate(&plan), expected, "{case}");
        let is_throttled = plan.earliest_cooldown_end(&fixture.pool, CHAT, fixture.now).is_some();
        assert_eq!(is_throttled, second == Some(CoolingDown) || third == Some(CoolingDown), "{case}");
        assert_eq!(
            plan.has_eligible_candidate(&fixture.pool, CHAT, fixture.now),
            expected.is_some(),
            "{case}"
        );
        assert_eq!(fixture.next_candidate(&RetryPlan::new(&fixture.pool)), Some(0), "{case}: no rule");
    }
    let drained = fixture(&[1, 2]);
    drained.tell(0, 0.9);
    drained.drain(1);
    assert_eq!(drained.next_candidate(&drained.batch_plan()), Some(0));
}

#[test]
fn a_request_comes_back_when_the_lower_tiers_have_failed_it() {
    let fixture = fixture(&[1, 2]);
    fixture.tell(0, 0.9);
    for outcome in [AttemptOutcome::Failed, AttemptOutcome::CannotServe] {
        let mut plan = fixture.batch_plan();
        assert_eq!(fixture.start_attempt(&mut plan), 1);
        plan.on_attempt_end(&fixture.pool, 1, outcome);
        assert_eq!(fixture.next_candidate(&plan), Some(0), "{outcome:?}");
    }
    let mut plan = fixture.batch_plan();
    assert_eq!(fixture.start_attempt(&mut plan), 1);
    plan.on_attempt_end(&fixture.pool, 1, AttemptOutcome::Throttled(fixture.now + 5_000 * MS));
    assert!(matches!(fixture.next_step(&plan), NextStep::Exhausted), "the lower tier only cools down");
}

#[test]
fn nobody_waits_for_the_cooldown_of_what_is_left_to_others() {
    let mut fixture = fixture(&[1, 2]);
    fixture.tell(0, 0.5);
    fixture.throttle(0, 100);
    let plan = fixture.batch_plan();
    assert_eq!(fixture.next_candidate(&plan), Some(1));
    assert_eq!(fixture.next_wait(&RetryPlan::new(&fixture.pool)).duration, 100 * MS, "no rule");
    // It is the lower one that is waited for, and that tells the client when to come back.
    fixture.mark_unavailable(1, UnavailableReason::CoolingDown, 200);
    assert_eq!(fixture.next_wait(&plan).duration, 200 * MS);
    let end = plan.earliest_cooldown_end(&fixture.pool, CHAT, fixture.now);
    assert_eq!(end, Some(fixture.now + 200 * MS));
    // Nothing else is left: it counts like any other.
    fixture.now += 300 * MS;
    fixture.throttle(0, 150);
    fixture.mark_unavailable(1, UnavailableReason::BreakerOpen, 5_000);
    assert_eq!(fixture.next_wait(&plan).duration, 150 * MS);
}

#[test]
fn a_request_stays_at_its_home_and_asks_the_others_first_while_its_home_is_unknown() {
    let fixture = fixture_of_resources(&[1, 2], &[0, 0]);
    fixture.tell(0, 0.9);
    let home = ResourceSearch::Home { resource_index: 0, lags_until: None };
    let plan = |search| RetryPlan::for_search(&fixture.pool, search).with_shed_rule(Some(batch_rule()));
    assert_eq!(fixture.next_candidate(&plan(home)), Some(0));
    let fixture = fixture_of_resources(&[1, 2], &[0, 1]);
    fixture.tell(0, 0.9);
    let ask = ResourceSearch::Ask { max_further: 5, further_rounds: &[] };
    let mut plan = RetryPlan::for_search(&fixture.pool, ask).with_shed_rule(Some(batch_rule()));
    assert_eq!(fixture.start_attempt(&mut plan), 1);
    plan.on_attempt_end(&fixture.pool, 1, AttemptOutcome::NotOnThisResource);
    assert_eq!(fixture.next_candidate(&plan), Some(0));
}
