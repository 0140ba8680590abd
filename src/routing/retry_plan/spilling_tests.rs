//! Why an attempt goes to a lower tier.

use super::tests::{CHAT, Fixture, MS, fixture, fixture_of_resources};
use super::*;
use crate::routing::health::availability::UnavailableReason;
use crate::routing::spill::SpillReason;

fn reason_for(fixture: &Fixture, plan: &RetryPlan, index: usize) -> Option<SpillReason> {
    plan.spill_reason(&fixture.pool, index, CHAT, fixture.now)
}

#[test]
fn the_backend_that_was_closest_to_answering_says_why() {
    use UnavailableReason::{
        BreakerOpen, CoolingDown, DeploymentNotFound, Drained, NoUsableCredential, PermissionDenied, Stalled,
    };
    let table: &[(&[Option<UnavailableReason>], SpillReason)] = &[
        (&[Some(CoolingDown)], SpillReason::Throttled),
        (&[Some(BreakerOpen)], SpillReason::Unavailable),
        (&[Some(Stalled)], SpillReason::Unavailable),
        (&[Some(NoUsableCredential)], SpillReason::Unavailable),
        (&[Some(PermissionDenied)], SpillReason::Unavailable),
        (&[Some(DeploymentNotFound)], SpillReason::Absent),
        (&[Some(Drained)], SpillReason::Drained),
        // Available, so the request was not let in.
        (&[None], SpillReason::Shed),
        (&[Some(Drained), Some(CoolingDown)], SpillReason::Throttled),
        (&[Some(Drained), Some(DeploymentNotFound), Some(BreakerOpen)], SpillReason::Unavailable),
    ];
    for (reasons, expected) in table {
        let tiers = [vec![1; reasons.len()], vec![2]].concat();
        let fixture = fixture(&tiers);
        for (index, reason) in reasons.iter().enumerate() {
            if let Some(reason) = reason {
                fixture.mark_unavailable(index, *reason, 60_000);
            }
        }
        let plan = RetryPlan::new(&fixture.pool);
        assert_eq!(reason_for(&fixture, &plan, reasons.len()), Some(*expected), "{reasons:?}");
        assert_eq!(reason_for(&fixture, &plan, 0), None, "{reasons:?}: the highest tier");
    }
}

#[test]
fn an_attempt_that_has_ended_says_why_as_it_ended() {
    let later = Instant::now() + 60_000 * MS;
    for (outcome, expected) in [
        (AttemptOutcome::Throttled(later), SpillReason::Throttled),
        (AttemptOutcome::Failed, SpillReason::Failed),
        (AttemptOutcome::CannotServe, SpillReason::Failed),
        (AttemptOutcome::TierCannotServe, SpillReason::Failed),
        (AttemptOutcome::CredentialRejected(7), SpillReason::Unavailable),
        (AttemptOutcome::NotOnThisResource, SpillReason::Home),
    ] {
        let fixture = fixture(&[1, 2]);
        let mut plan = RetryPlan::new(&fixture.pool);
        plan.on_attempt_end(&fixture.pool, 0, outcome);
        assert_eq!(reason_for(&fixture, &plan, 1), Some(expected), "{outcome:?}");
    }
    let fixture = fixture(&[1, 2]);
    let mut plan = RetryPlan::new(&fixture.pool);
    fixture.mark_unavailable(0, UnavailableReason::DeploymentNotFound, 60_000);
    plan.on_attempt_end(&fixture.pool, 0, AttemptOutcome::CannotServe);
    assert_eq!(reason_for(&fixture, &plan, 1), Some(SpillReason::Absent));
}

#[test]
fn what_lives_on_a_resource_of_a_lower_tier_is_at_home_there() {
    let fixture = fixture_of_resources(&[1, 1, 2, 2], &[0, 1, 1, 2]);
    let at_home = |resource_index| {
        RetryPlan::for_search(&fixture.pool, ResourceSearch::Home { resource_index, lags_until: None })
    };
    assert_eq!(reason_for(&fixture, &at_home(2), 3), Some(SpillReason::Home));
    // Its own resource has a backend in the higher tier.
    fixture.mark_unavailable(1, UnavailableReason::CoolingDown, 60_000);
    assert_eq!(reason_for(&fixture, &at_home(1), 2), Some(SpillReason::Throttled));
}
