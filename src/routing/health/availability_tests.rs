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
fn one_request_probes_after_a_cooldown_which_ends_by_time_or_by_an_answer() {
    let now = Instant::now();
    let cell = Arc::new(AvailabilityCell::default());
    let permit = |at| ProbePermit::acquire([&cell].into_iter(), at);
    let cooldown = |until, at| cell.mark_unavailable(unavailable(UnavailableReason::CoolingDown, until), at);
    cooldown(now, now);
    let first = permit(now).unwrap();
    assert!(first.is_probing(&cell) && permit(now).is_none(), "only one request probes");
    let until = cell.unavailability(now).unwrap().until;
    assert_eq!(until, now + 100 * MS);
    // The first is given up before it is sent: another request may probe.
    drop(first);
    let second = permit(now).unwrap();
    second.on_request_sent(now + 10 * MS);
    assert_eq!(cell.availability(now + 110 * MS), Availability::Available, "a refusal would have come");
    // A later refusal starts a new cooldown, whichever request gets it.
    cooldown(now + 500 * MS, now + 200 * MS);
    let third = permit(now + 500 * MS).unwrap();
    cooldown(now + 900 * MS, now + 520 * MS);
    drop(third);
    assert!(matches!(cell.availability(now + 899 * MS), Availability::Unavailable(_)));
    // An answer ends the cooldown at once.
    permit(now + 900 * MS).unwrap().mark_all_available();
    assert_eq!(cell.availability(now + 900 * MS), Availability::Available);
    drop(second);
}

#[test]
fn a_misconfiguration_is_tried_once_a_second_as_a_last_resort_and_ends_by_an_answer() {
    let now = Instant::now();
    let cell = Arc::new(AvailabilityCell::default());
    let last_resort = |at| ProbePermit::acquire_last_resort([&cell].into_iter(), at);
    let until = now + 60_000 * MS;
    cell.mark_unavailable(unavailable(UnavailableReason::CoolingDown, until), now);
    assert!(last_resort(now).is_none(), "what ends by itself is waited for");
    cell.mark_available();
    cell.mark_unavailable(unavailable(UnavailableReason::NoUsableCredential, until), now);
    drop(last_resort(now).unwrap());
    assert!(last_resort(now + 999 * MS).is_none());
    let second = last_resort(now + 1000 * MS).unwrap();
    // It was rejected again.
    cell.mark_unavailable(unavailable(UnavailableReason::NoUsableCredential, until), now + 1001 * MS);
    drop(second);
    assert!(last_resort(now + 1500 * MS).is_none());
    assert!(matches!(cell.availability(now + 1500 * MS), Availability::Unavailable(_)));
    last_resort(now + 2000 * MS).unwrap().mark_all_available();
    assert_eq!(cell.availability(now + 2001 * MS), Availability::Available);
}

#[test]
fn other_outages_end_only_by_an_answer_and_a_silent_probe_times_out() {
    let now = Instant::now();
    let cell = Arc::new(AvailabilityCell::default());
    cell.mark_unavailable(unavailable(UnavailableReason::NoUsableCredential, now), now);
    let first = ProbePermit::acquire([&cell].into_iter(), now).unwrap();
    first.on_request_sent(now);
    assert!(matches!(cell.availability(now + 29_000 * MS), Availability::Unavailable(_)));
    assert_eq!(cell.availability(now + 30_000 * MS), Availability::ProbeDue);
    let second = ProbePermit::acquire([&cell].into_iter(), now + 30_000 * MS).unwrap();
    // The answer to the first probe comes after its time-out and changes nothing for the second.
    first.mark_all_available();
    assert!(matches!(cell.availability(now + 30_001 * MS), Availability::Unavailable(_)));
    second.mark_all_available();
    assert_eq!(cell.availability(now + 30_001 * MS), Availability::Available);
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
        // Requests may use it all the same.
        assert_eq!(cell.availability(until), Availability::ProbeDue);
        let is_overdue = |ms| cell.is_probe_overdue(reason, 5_000 * MS, now + ms * MS);
        assert_eq!([is_overdue(64_999), is_overdue(65_000)], [false, true]);
        assert!(!cell.is_probe_overdue(UnavailableReason::Stalled, 5_000 * MS, now + 65_000 * MS));
        cell.mark_available();
        assert_eq!((at(59_999), is_overdue(65_000)), (None, false));
    }
}
