//! Something that is unavailable, as the task keeps track of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::claim::Claim;
use super::part::SharedPart;
use super::targets::Target;
use crate::names::BackendName;
use crate::routing::health::availability::{AvailabilityCell, OutageView, Unavailable, UnavailableReason};

/// An outage that is extended by less than this, or than this part of what is left, is not announced again.
const MIN_EXTENSION: Duration = Duration::from_millis(20);
const MIN_EXTENSION_PART: u32 = 50;

/// Who leads the probe of something, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeLead {
    /// The backend.
    pub backend: BackendName,
    /// The part of it.
    pub part: SharedPart,
    /// The id of the instance.
    pub instance: String,
}

/// What is unavailable: the backend and its part.
pub(super) type Key = (BackendName, SharedPart);

/// Something that is unavailable.
pub(super) struct Tracked {
    pub(super) target: Arc<Target>,
    pub(super) cell: Arc<AvailabilityCell>,
    /// A request of this instance has found it; the others are told.
    pub(super) is_own: bool,
    /// The instance that told of it last, and when that was.
    pub(super) told: Option<(String, Instant)>,
    /// The end that was announced.
    pub(super) announced: Option<(UnavailableReason, Instant)>,
    /// The status of the response that showed it, if that matters.
    pub(super) status: Option<u16>,
    /// When a request of this instance found it.
    pub(super) met_at: Option<Instant>,
    /// When it was last seen unavailable without a probe in progress, and until when.
    pub(super) quiet_at: Instant,
    pub(super) last_reason: UnavailableReason,
    pub(super) last_until: Instant,
    pub(super) claim: Claim,
}

impl Tracked {
    /// Something that is found unavailable now.
    pub(super) fn new(
        target: &Arc<Target>,
        cell: Arc<AvailabilityCell>,
        view: &OutageView,
        now: Instant,
    ) -> Self {
        Self {
            target: Arc::clone(target),
            cell,
            is_own: false,
            told: None,
            announced: None,
            status: None,
            met_at: None,
            quiet_at: now,
            last_reason: view.unavailable.reason,
            last_until: view.unavailable.until,
            claim: Claim::None,
        }
    }

    /// When it was last unavailable for certain. Nothing probes a deployment during its cooldown.
    pub(super) fn last_known_at(&self) -> Instant {
        let is_cooldown = self.last_reason == UnavailableReason::CoolingDown;
        if is_cooldown { self.quiet_at.max(self.last_until) } else { self.quiet_at }
    }

    /// When this instance told of it, if none has done so since.
    pub(super) fn told_at(&self, instance: &str) -> Option<Instant> {
        self.told.as_ref().filter(|(teller, _)| teller == instance).map(|(_, at)| *at)
    }

    /// Whether what has been announced covers an outage.
    pub(super) fn is_announced(&self, unavailable: Unavailable, now: Instant) -> bool {
        let left = unavailable.until.saturating_duration_since(now);
        let min_extension = MIN_EXTENSION.max(left / MIN_EXTENSION_PART);
        self.announced.is_some_and(|(reason, until)| {
            reason == unavailable.reason && unavailable.until < until + min_extension
        })
    }

    /// It has been looked at.
    pub(super) fn see(&mut self, view: &OutageView, now: Instant) {
        if !view.is_probing {
            self.quiet_at = now;
        }
        (self.last_reason, self.last_until) = (view.unavailable.reason, view.unavailable.until);
    }

    /// Who probes it, if that is known.
    pub(super) fn lead(&self, (backend, part): &Key, own_id: &str) -> Option<ProbeLead> {
        let instance = match &self.claim {
            Claim::Own { .. } => own_id.to_owned(),
            Claim::Other { id: Some(id), .. } => id.clone(),
            _ => return None,
        };
        Some(ProbeLead { backend: backend.clone(), part: part.clone(), instance })
    }
}

impl ProbeLead {
    /// Leads are shown in the order of these.
    pub(super) fn sort_key(&self) -> (&str, &str, &str) {
        (self.backend.as_str(), self.part.kind(), self.part.name())
    }
}
