//! Which request probes what has been unavailable.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::availability::{
    Availability, AvailabilityCell, OutageState, PROBE_ACCEPTED_AFTER, ProbeState, UnavailableReason,
};

/// Permits one request to use a backend, and to probe everything for which a probe is due; usually that is
/// nothing. If it is dropped without a result, another request may probe.
#[derive(Debug, Default)]
pub struct ProbePermit {
    /// What is probed, with the id of each probe.
    probed_cells: SmallVec<[(Arc<AvailabilityCell>, u64); 1]>,
}

impl ProbePermit {
    /// The permit to use all of these, and to probe those for which a probe is due. `None` if one is
    /// unavailable, perhaps because another request started to probe it first.
    pub(in crate::routing) fn acquire<'c>(
        cells: impl Iterator<Item = &'c Arc<AvailabilityCell>>,
        now: Instant,
    ) -> Option<Self> {
        let mut permit = Self::default();
        for cell in cells {
            match cell.availability(now) {
                Availability::Available => {}
                // The drop of `permit` gives up the probes that it has started.
                Availability::Unavailable(_) => return None,
                Availability::ProbeDue => {
                    let permit_id = fastrand::u64(..);
                    if !cell.try_start_probe(now, permit_id) {
                        return None;
                    }
                    permit.probed_cells.push((Arc::clone(cell), permit_id));
                }
            }
        }
        Some(permit)
    }

    /// The permit to use all of these though some are unavailable for a reason that only the operator can
    /// end. `None` if one is unavailable for another reason, or was tried like this a short time ago.
    pub(in crate::routing) fn acquire_last_resort<'c>(
        cells: impl Iterator<Item = &'c Arc<AvailabilityCell>>,
        now: Instant,
    ) -> Option<Self> {
        let mut permit = Self::default();
        for cell in cells {
            let permit_id = fastrand::u64(..);
            let is_permitted = match cell.availability(now) {
                Availability::Available => continue,
                Availability::ProbeDue => cell.try_start_probe(now, permit_id),
                Availability::Unavailable(_) => cell.try_start_last_resort(now, permit_id),
            };
            // The drop of `permit` gives up the probes that it has started.
            if !is_permitted {
                return None;
            }
            permit.probed_cells.push((Arc::clone(cell), permit_id));
        }
        Some(permit)
    }

    /// Whether this cell is among those that are probed.
    pub fn is_probing(&self, cell: &Arc<AvailabilityCell>) -> bool {
        self.probed_cells.iter().any(|(probed, _)| Arc::ptr_eq(probed, cell))
    }

    /// The request has been sent whole: a cooldown now ends soon unless a refusal comes.
    pub fn on_request_sent(&self, now: Instant) {
        for (cell, permit_id) in &self.probed_cells {
            cell.update_if_permit_held(*permit_id, |state| {
                if let Some(OutageState { unavailable, probe, .. }) = state
                    && let ProbeState::InProgress { deadline, available_at_deadline, .. } = probe
                    && unavailable.reason == UnavailableReason::CoolingDown
                    && !*available_at_deadline
                {
                    (*deadline, *available_at_deadline) = (now + PROBE_ACCEPTED_AFTER, true);
                }
            });
        }
    }

    /// Marks only this one of what is probed as available: about the others nothing is known yet.
    pub fn mark_available(&mut self, cell: &Arc<AvailabilityCell>) {
        self.probed_cells.retain(|(probed, permit_id)| {
            let is_this = Arc::ptr_eq(probed, cell);
            if is_this {
                probed.update_if_permit_held(*permit_id, |state| *state = None);
            }
            !is_this
        });
    }

    /// Marks everything that is probed as available: the request was answered.
    pub fn mark_all_available(self) {
        for (cell, permit_id) in &self.probed_cells {
            cell.update_if_permit_held(*permit_id, |state| *state = None);
        }
    }
}

impl Drop for ProbePermit {
    fn drop(&mut self) {
        for (cell, permit_id) in &self.probed_cells {
            cell.update_if_permit_held(*permit_id, |state| {
                if let Some(state) = state {
                    state.probe = ProbeState::NotStarted;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::routing::health::availability::Unavailable;

    const MS: Duration = Duration::from_millis(1);

    fn unavailable(reason: UnavailableReason, until: Instant) -> Unavailable {
        Unavailable { reason, until }
    }

    #[test]
    fn one_request_probes_after_a_cooldown_which_ends_by_time_or_by_an_answer() {
        let now = Instant::now();
        let cell = Arc::new(AvailabilityCell::default());
        let permit = |at| ProbePermit::acquire([&cell].into_iter(), at);
        let cooldown =
            |until, at| cell.mark_unavailable(unavailable(UnavailableReason::CoolingDown, until), at);
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
}
