//! When something is unavailable, and who may probe it.

use super::*;

const MS: Duration = Duration::from_millis(1);

fn unavailable(reason: UnavailableReason, until: Instant) -> Unavailable {
    Unavailable { reason, until }
}

#[test]
fn a_cell_is_unavailable_until_its_time_and_the_longer_outage_wins() {
    let now = Instant::now();
    let cell = AvailabilityCell::default();
    let until = |ms: u32| unavailable(UnavailableReason::CoolingDown, now + ms * MS);
    assert_eq!(cell.availability(now), Availability::Available);
    assert!(cell.mark_unavailable(until(100), now));
    assert!(!cell.mark_unavailable(until(50), now), "already unavailable");
    assert_eq!(cell.availability(now + 99 * MS), Availability::Unavailable(until(100)));
    assert_eq!(cell.availability(now + 100 * MS), Availability::ProbeDue);
    assert!(!cell.mark_unavailable(until(300), now + 200 * MS), "the same outage until a probe succeeds");
    cell.mark_available();
    assert_eq!(cell.availability(now), Availability::Available);
    assert!(cell.mark_unavailable(until(400), now + 300 * MS));
}

#[test]
fn while_another_instance_probes_none_is_due_here() {
    let now = Instant::now();
    let cell = AvailabilityCell::default();
    let until = now + 100 * MS;
    cell.hold_probe(now + 900 * MS);
    assert_eq!(cell.availability(now), Availability::Available, "nothing is unavailable");
    cell.mark_unavailable(unavailable(UnavailableReason::CoolingDown, until), now);
    cell.hold_probe(now + 500 * MS);
    assert!(cell.is_probe_held(now + 499 * MS) && !cell.is_probe_held(now + 500 * MS));
    // A request that waits looks again soon, since the other one may be told of at any time.
    let held = unavailable(UnavailableReason::CoolingDown, now + 300 * MS);
    assert_eq!(cell.availability(now + 200 * MS), Availability::Unavailable(held));
    let held = unavailable(UnavailableReason::CoolingDown, now + 500 * MS);
    assert_eq!(cell.availability(now + 450 * MS), Availability::Unavailable(held));
    assert_eq!(cell.availability(now + 500 * MS), Availability::ProbeDue);
    cell.hold_probe(now + 900 * MS);
    cell.release_probe();
    assert_eq!(cell.availability(now + 500 * MS), Availability::ProbeDue);
    cell.hold_probe(now + 900 * MS);
    cell.mark_unavailable(unavailable(UnavailableReason::CoolingDown, now + 600 * MS), now + 500 * MS);
    assert_eq!(cell.availability(now + 600 * MS), Availability::ProbeDue, "that was the outage before");
}

#[test]
fn another_instance_ends_an_outage_unless_there_is_a_newer_one() {
    let now = Instant::now();
    let cell = AvailabilityCell::default();
    let cooling = UnavailableReason::CoolingDown;
    let mark = |at: u32| cell.mark_unavailable(unavailable(cooling, now + 900 * MS), now + at * MS);
    assert!(!cell.end_outage_found_over(cooling, now));
    mark(10);
    assert!(!cell.end_outage_found_over(cooling, now + 9 * MS), "it was found again since");
    assert!(!cell.end_outage_found_over(UnavailableReason::BreakerOpen, now + 20 * MS));
    assert!(cell.end_outage_found_over(cooling, now + 10 * MS));
    assert_eq!(cell.availability(now + 11 * MS), Availability::Available);
    mark(20);
    assert!(!cell.make_probe_due(cooling, now + 19 * MS, now + 30 * MS));
    cell.hold_probe(now + 900 * MS);
    assert!(cell.make_probe_due(cooling, now + 20 * MS, now + 30 * MS));
    assert_eq!(cell.availability(now + 30 * MS), Availability::ProbeDue);
}

#[test]
fn what_others_have_to_know_of_an_outage() {
    let now = Instant::now();
    let cell = AvailabilityCell::default();
    cell.mark_wanted(now);
    assert_eq!(cell.shared_view(now), None);
    let cooling = unavailable(UnavailableReason::CoolingDown, now + 100 * MS);
    cell.mark_unavailable(cooling, now);
    let view = OutageView { unavailable: cooling, is_probing: false, wanted_at: None };
    assert_eq!(cell.shared_view(now), Some(view));
    cell.unavailability_for_request(now + 50 * MS);
    let view = OutageView { wanted_at: Some(now + 50 * MS), ..view };
    assert_eq!(cell.shared_view(now + 60 * MS), Some(view));
    assert!(cell.try_start_probe(now + 100 * MS, 1));
    assert_eq!(cell.shared_view(now + 110 * MS), Some(OutageView { is_probing: true, ..view }));
}

#[test]
fn what_only_the_operator_can_repair_is_over_when_that_is_seen_and_not_when_its_time_has_passed() {
    use UnavailableReason::{BreakerOpen, CoolingDown, NoUsableCredential};
    let now = Instant::now();
    let until = now + 60_000 * MS;
    for (reason, is_shown_when_due) in
        [(CoolingDown, false), (BreakerOpen, false), (NoUsableCredential, true)]
    {
        let cell = AvailabilityCell::default();
        cell.mark_unavailable(unavailable(reason, until), now);
        let expected = Outage { unavailable: unavailable(reason, until), since: now };
        let at = |ms| cell.current_outage(now + ms * MS);
        assert_eq!(at(59_999), Some(expected), "{reason:?}");
        assert_eq!(at(60_000), is_shown_when_due.then_some(expected), "{reason:?}");
        assert_eq!(at(359_999), is_shown_when_due.then_some(expected), "{reason:?}");
        assert_eq!(at(360_000), None, "nobody has asked for five minutes");
        // What is shown changes nothing for requests: one of them may probe.
        assert_eq!(cell.availability(until), Availability::ProbeDue);
        let is_overdue = |ms| cell.is_probe_overdue(reason, 5_000 * MS, now + ms * MS);
        assert_eq!([is_overdue(64_999), is_overdue(65_000)], [false, true]);
        assert!(!cell.is_probe_overdue(UnavailableReason::Stalled, 5_000 * MS, now + 65_000 * MS));
        cell.mark_available();
        assert_eq!((at(59_999), is_overdue(65_000)), (None, false));
    }
}
