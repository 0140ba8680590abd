//! Whether something can be used: why and until when it cannot. Which request probes it first when that time has
//! passed is in `probe_permit.rs`.
//!
//! What a response means for availability is decided in `gateway/learn.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After a cooldown, a probe counts as accepted when this much time has passed since it was sent
/// whole: a 429 comes at once, an answer may take minutes.
pub(super) const PROBE_ACCEPTED_AFTER: Duration = Duration::from_millis(100);
/// After this time without a result, another request may probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// What only the operator can repair stays an outage for this long after a probe has become due. The balancer asks
/// by itself meanwhile; where it has no free question, nothing is known after this time.
const UNCONFIRMED_OUTAGE_DURATION: Duration = Duration::from_secs(300);
/// While nothing else is left, what only the operator can repair is tried by one request in this time, so
/// that its outage ends when it is repaired.
const LAST_RESORT_INTERVAL: Duration = Duration::from_secs(1);

/// Why something is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnavailableReason {
    /// A 429, or another refusal with `retry-after`.
    CoolingDown,
    /// The resource does not have the deployment or the model.
    DeploymentNotFound,
    /// The resource rejects our credential, every key, or our network; or there is no secret yet.
    NoUsableCredential,
    /// The credential is not allowed to do this operation.
    PermissionDenied,
    /// The circuit breaker is open: too many attempts failed.
    BreakerOpen,
    /// The backend does not answer any more.
    Stalled,
    /// The operator drains the backend.
    Drained,
}

impl UnavailableReason {
    const ALL: [Self; 7] = [
        Self::CoolingDown,
        Self::DeploymentNotFound,
        Self::NoUsableCredential,
        Self::PermissionDenied,
        Self::BreakerOpen,
        Self::Stalled,
        Self::Drained,
    ];

    /// Whether only the operator can end it: nothing is to be expected of waiting.
    pub fn is_misconfiguration(self) -> bool {
        match self {
            Self::DeploymentNotFound | Self::NoUsableCredential | Self::PermissionDenied => true,
            Self::CoolingDown | Self::BreakerOpen | Self::Stalled | Self::Drained => false,
        }
    }

    /// Its name in the status API and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CoolingDown => "cooling",
            Self::DeploymentNotFound => "absent",
            Self::NoUsableCredential => "credential",
            Self::PermissionDenied => "permission",
            Self::BreakerOpen => "breaker_open",
            Self::Stalled => "stalled",
            Self::Drained => "drained",
        }
    }

    /// The reason of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// Why and until when something is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// Why.
    pub reason: UnavailableReason,
    /// The first moment at which a probe is allowed.
    pub until: Instant,
}

/// A time of unavailability with its beginning. If it is extended before a probe has succeeded, it
/// is still the same outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Why and until when.
    pub unavailable: Unavailable,
    /// When it began.
    pub since: Instant,
}

/// What other instances have to know of an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutageView {
    /// Why and until when.
    pub unavailable: Unavailable,
    /// Its time is over, and a request of this instance probes.
    pub is_probing: bool,
    /// When a request of this instance would last have used it.
    pub wanted_at: Option<Instant>,
}

/// The availability of something at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Every request may use it.
    Available,
    /// No request may use it, except one that may be probing it.
    Unavailable(Unavailable),
    /// The time of the outage is over, and one request may probe (`ProbePermit::acquire`).
    ProbeDue,
}

/// Tracks the availability of one thing: a backend, a deployment on it, an operation.
#[derive(Debug, Default)]
pub struct AvailabilityCell {
    /// While this is false, which is nearly always, it is available and reading costs one atomic load.
    may_be_unavailable: AtomicBool,
    state: Mutex<Option<OutageState>>,
}

impl AvailabilityCell {
    /// Makes it unavailable until the given moment, or longer if the current outage lasts longer.
    /// Returns whether it was available before, so that an outage is logged once.
    pub fn mark_unavailable(&self, unavailable: Unavailable, now: Instant) -> bool {
        let mut state = self.lock_state();
        let was_available = self.refresh_availability(&mut state, now) == Availability::Available;
        let since = state.as_ref().map_or(now, |state| state.since);
        let unavailable = match state.as_ref() {
            Some(OutageState { unavailable: current, .. }) if current.until > unavailable.until => *current,
            _ => unavailable,
        };
        let (last_resort_at, wanted_at) =
            state.as_ref().map_or((None, None), |state| (state.last_resort_at, state.wanted_at));
        let probe = ProbeState::NotStarted;
        *state = Some(OutageState {
            unavailable,
            since,
            marked_at: now,
            probe,
            held_until: None,
            wanted_at,
            last_resort_at,
        });
        self.may_be_unavailable.store(true, Ordering::Release);
        was_available
    }

    /// Whether it is in an outage for this reason, also one for which a probe is due.
    pub fn is_in_outage(&self, reason: UnavailableReason, now: Instant) -> bool {
        self.may_be_unavailable()
            && self.unresolved_outage(now).is_some_and(|outage| outage.unavailable.reason == reason)
    }

    /// Ends the outage if this is its reason. Returns whether it was.
    pub fn end_outage(&self, reason: UnavailableReason) -> bool {
        let mut state = self.lock_state();
        let is_this = state.as_ref().is_some_and(|state| state.unavailable.reason == reason);
        if is_this {
            *state = None;
            self.may_be_unavailable.store(false, Ordering::Release);
        }
        is_this
    }

    /// Ends the outage: it works again.
    pub fn mark_available(&self) {
        if self.may_be_unavailable() {
            let mut state = self.lock_state();
            *state = None;
            self.may_be_unavailable.store(false, Ordering::Release);
        }
    }

    /// Its availability now.
    pub fn availability(&self, now: Instant) -> Availability {
        if !self.may_be_unavailable() {
            return Availability::Available;
        }
        self.refresh_availability(&mut self.lock_state(), now)
    }

    /// Why and until when it is unavailable; `None` if it is available or a probe is due.
    pub fn unavailability(&self, now: Instant) -> Option<Unavailable> {
        match self.availability(now) {
            Availability::Unavailable(unavailable) => Some(unavailable),
            Availability::Available | Availability::ProbeDue => None,
        }
    }

    /// As [`AvailabilityCell::unavailability`], for a request that would use it.
    pub(in crate::routing) fn unavailability_for_request(&self, now: Instant) -> Option<Unavailable> {
        let unavailable = self.unavailability(now)?;
        self.mark_wanted(now);
        Some(unavailable)
    }

    /// Notes that a request would use it, or that this instance would probe it.
    pub fn mark_wanted(&self, now: Instant) {
        if self.may_be_unavailable()
            && let Some(state) = self.lock_state().as_mut()
        {
            state.wanted_at = Some(now);
        }
    }

    /// Whether another instance probes it in place of this one.
    pub fn is_probe_held(&self, now: Instant) -> bool {
        self.may_be_unavailable()
            && self.lock_state().as_ref().and_then(|state| state.held_until).is_some_and(|until| now < until)
    }

    /// The outage that has not ended, with what other instances have to know of it.
    pub fn shared_view(&self, now: Instant) -> Option<OutageView> {
        if !self.may_be_unavailable() {
            return None;
        }
        let mut state = self.lock_state();
        self.refresh_availability(&mut state, now);
        state.as_ref().map(|state| OutageView {
            unavailable: state.unavailable,
            is_probing: now >= state.unavailable.until
                && matches!(state.probe, ProbeState::InProgress { deadline, .. } if now < deadline),
            wanted_at: state.wanted_at,
        })
    }

    /// Keeps requests of this instance from probing until this moment, because another instance probes. A probe in
    /// progress goes on.
    pub fn hold_probe(&self, until: Instant) {
        if let Some(state) = self.lock_state().as_mut() {
            state.held_until = Some(until);
        }
    }

    /// Lets requests of this instance probe.
    pub fn release_probe(&self) {
        if let Some(state) = self.lock_state().as_mut() {
            state.held_until = None;
        }
    }

    /// Ends the outage of this reason, because another instance has found at `found_at` that it is over. Nothing
    /// changes if it has been found unavailable since. Returns whether it ended.
    pub fn end_outage_found_over(&self, reason: UnavailableReason, found_at: Instant) -> bool {
        let mut state = self.lock_state();
        let ends = state
            .as_ref()
            .is_some_and(|state| state.unavailable.reason == reason && state.marked_at <= found_at);
        if ends {
            *state = None;
            self.may_be_unavailable.store(false, Ordering::Release);
        }
        ends
    }

    /// Makes a probe due in an outage of this reason, because another instance has found at `found_at` that it is
    /// over there. Returns whether something changed.
    pub fn make_probe_due(&self, reason: UnavailableReason, found_at: Instant, now: Instant) -> bool {
        let mut state = self.lock_state();
        let outage =
            state.as_mut().filter(|state| state.unavailable.reason == reason && state.marked_at <= found_at);
        let Some(outage) = outage else { return false };
        outage.unavailable.until = outage.unavailable.until.min(now);
        outage.held_until = None;
        true
    }

    /// The outage it is in, for people. If a probe is due, there is none, unless only the operator can repair the
    /// cause: nobody has seen yet that it is repaired.
    pub fn current_outage(&self, now: Instant) -> Option<Outage> {
        if !self.may_be_unavailable() {
            return None;
        }
        let mut state = self.lock_state();
        let availability = self.refresh_availability(&mut state, now);
        let OutageState { unavailable, since, .. } = state.as_ref()?;
        let is_unconfirmed = || {
            unavailable.reason.is_misconfiguration() && now < unavailable.until + UNCONFIRMED_OUTAGE_DURATION
        };
        let unavailable = match availability {
            Availability::Unavailable(unavailable) => unavailable,
            Availability::ProbeDue if is_unconfirmed() => *unavailable,
            Availability::Available | Availability::ProbeDue => return None,
        };
        Some(Outage { unavailable, since: *since })
    }

    /// Whether a probe has been due for this long in an outage for this reason.
    pub fn is_probe_overdue(&self, reason: UnavailableReason, by: Duration, now: Instant) -> bool {
        if !self.may_be_unavailable() {
            return false;
        }
        let mut state = self.lock_state();
        self.refresh_availability(&mut state, now) == Availability::ProbeDue
            && state.as_ref().is_some_and(|OutageState { unavailable, .. }| {
                unavailable.reason == reason && now >= unavailable.until + by
            })
    }

    /// The last outage, unless a probe or time has ended it: also one for which a probe is due.
    pub(super) fn unresolved_outage(&self, now: Instant) -> Option<Outage> {
        let mut state = self.lock_state();
        self.refresh_availability(&mut state, now);
        state.as_ref().map(|state| Outage { unavailable: state.unavailable, since: state.since })
    }

    /// Continues an outage that another process has recorded.
    pub(super) fn restore_outage(&self, Outage { unavailable, since }: Outage) {
        *self.lock_state() = Some(OutageState {
            unavailable,
            since,
            marked_at: since,
            probe: ProbeState::NotStarted,
            held_until: None,
            wanted_at: None,
            last_resort_at: None,
        });
        self.may_be_unavailable.store(true, Ordering::Release);
    }

    /// False if it is available; true if only [`AvailabilityCell::availability`] can tell.
    pub(super) fn may_be_unavailable(&self) -> bool {
        self.may_be_unavailable.load(Ordering::Acquire)
    }

    /// Registers the probe with this permit. Returns false if none is due.
    pub(super) fn try_start_probe(&self, now: Instant, permit_id: u64) -> bool {
        let mut state = self.lock_state();
        if self.refresh_availability(&mut state, now) != Availability::ProbeDue {
            return false;
        }
        if let Some(state) = state.as_mut() {
            let deadline = now + PROBE_TIMEOUT;
            state.probe = ProbeState::InProgress { permit_id, deadline, available_at_deadline: false };
        }
        true
    }

    /// Registers a probe with this permit in the middle of an outage that only the operator can end.
    /// Returns false if there was one a short time ago.
    pub(super) fn try_start_last_resort(&self, now: Instant, permit_id: u64) -> bool {
        let mut state = self.lock_state();
        let Some(state) = state.as_mut().filter(|state| state.unavailable.reason.is_misconfiguration())
        else {
            return false;
        };
        let is_due = state.last_resort_at.is_none_or(|last| now >= last + LAST_RESORT_INTERVAL);
        if is_due {
            state.last_resort_at = Some(now);
            let deadline = now + PROBE_TIMEOUT;
            state.probe = ProbeState::InProgress { permit_id, deadline, available_at_deadline: false };
        }
        is_due
    }

    /// Changes the state if this permit's probe is the current one; a probe that was replaced after
    /// its time-out changes nothing.
    pub(super) fn update_if_permit_held(
        &self,
        permit_id: u64,
        change: impl FnOnce(&mut Option<OutageState>),
    ) {
        let mut state = self.lock_state();
        let is_current = |state: &OutageState| match state.probe {
            ProbeState::InProgress { permit_id: current, .. } => current == permit_id,
            ProbeState::NotStarted => false,
        };
        if state.as_ref().is_some_and(is_current) {
            change(&mut state);
            self.may_be_unavailable.store(state.is_some(), Ordering::Release);
        }
    }

    /// Ends an outage whose probe was accepted by now, and returns the availability.
    fn refresh_availability(&self, state: &mut Option<OutageState>, now: Instant) -> Availability {
        let Some(OutageState { unavailable, probe, held_until, .. }) = state else {
            return Availability::Available;
        };
        if now < unavailable.until {
            return Availability::Unavailable(*unavailable);
        }
        // After a cooldown, a probe that is sent now would count as accepted after this time, so other requests need
        // not wait longer.
        let while_probed = |deadline: Instant| {
            let is_cooldown = unavailable.reason == UnavailableReason::CoolingDown;
            let until = if is_cooldown { deadline.min(now + PROBE_ACCEPTED_AFTER) } else { deadline };
            Availability::Unavailable(Unavailable { until, ..*unavailable })
        };
        match probe {
            ProbeState::NotStarted => match *held_until {
                Some(held_until) if now < held_until => while_probed(held_until),
                _ => Availability::ProbeDue,
            },
            ProbeState::InProgress { deadline, available_at_deadline: false, .. } if now < *deadline => {
                while_probed(*deadline)
            }
            ProbeState::InProgress { deadline, available_at_deadline: true, .. } if now < *deadline => {
                Availability::Unavailable(Unavailable { until: *deadline, ..*unavailable })
            }
            ProbeState::InProgress { available_at_deadline: true, .. } => {
                *state = None;
                self.may_be_unavailable.store(false, Ordering::Release);
                Availability::Available
            }
            ProbeState::InProgress { .. } => Availability::ProbeDue,
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, Option<OutageState>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An outage that has not ended.
#[derive(Debug)]
pub(super) struct OutageState {
    pub(super) unavailable: Unavailable,
    since: Instant,
    /// When something last showed that it is unavailable.
    marked_at: Instant,
    /// Relevant once `unavailable.until` has passed.
    pub(super) probe: ProbeState,
    /// Until when another instance may probe in place of this one.
    held_until: Option<Instant>,
    /// When a request last found it unavailable.
    wanted_at: Option<Instant>,
    /// When a request was last sent in the middle of the outage.
    last_resort_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) enum ProbeState {
    NotStarted,
    /// No other request probes before the deadline. If that passes, the outage is over
    /// (`available_at_deadline`) or another request may probe.
    InProgress {
        permit_id: u64,
        deadline: Instant,
        available_at_deadline: bool,
    },
}

#[cfg(test)]
#[path = "availability_tests.rs"]
mod tests;
