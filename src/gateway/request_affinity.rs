//! What a request refers to, as far as routing needs it.

use std::time::{Duration, Instant, SystemTime};

use smallvec::SmallVec;

use super::shared_homes::SharedKey;
use crate::azure::ReferenceKind;
use crate::routing::homes::ObjectKey;
use crate::routing::retry_plan::ResourceSearch;

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// To measure durations.
    pub instant: Instant,
    /// The time of day.
    pub time: SystemTime,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// A later moment of the same request, which is measured on the monotonic clock only.
    #[must_use]
    pub fn at(self, instant: Instant) -> Self {
        Self { instant, time: self.time + instant.saturating_duration_since(self.instant) }
    }

    /// In Unix seconds.
    pub fn unix_seconds(self) -> u32 {
        let since_epoch = self.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX)
    }
}

/// An object that a request refers to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReferencedObject {
    /// Its key on this instance.
    pub(super) key: ObjectKey,
    /// Its key on all instances; `None` if nothing is shared.
    pub(super) shared_key: Option<SharedKey>,
}

/// What a request refers to, and where that is.
#[derive(Debug)]
pub struct RequestAffinity {
    /// The kind of the first reference; `None` if the request names neither a deployment nor an object.
    pub kind: Option<ReferenceKind>,
    /// Where the request may be answered; `None` if it is not about an object.
    pub search: Option<ResourceSearch>,
    /// When its object was made, in Unix seconds, if it was made through this balancer and may lag.
    pub made_at: Option<u32>,
    /// The objects whose resource is not known.
    pub(super) unknown_objects: SmallVec<[ReferencedObject; 2]>,
    /// The object that the request deletes.
    pub(super) deleted_object: Option<ReferencedObject>,
}

impl RequestAffinity {
    /// How the resource is found, as records and metrics name it.
    pub fn how(&self) -> &'static str {
        match &self.search {
            Some(ResourceSearch::Home { .. }) => "learned",
            Some(ResourceSearch::Ask { .. }) => "asked",
            None => "default",
        }
    }

    /// The index of the resource that has what the request refers to, if it is known.
    pub fn home(&self) -> Option<usize> {
        match self.search {
            Some(ResourceSearch::Home { resource_index, .. }) => Some(resource_index),
            _ => None,
        }
    }

    /// How long ago its object was made, if that is known.
    pub fn age(&self, now: Moment) -> Option<Duration> {
        let made_at = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(self.made_at?));
        now.time.duration_since(made_at).ok()
    }

    /// Whether the resources are asked for what the request refers to.
    pub fn asks(&self) -> bool {
        matches!(self.search, Some(ResourceSearch::Ask { .. }))
    }

    /// A call that names neither a deployment nor an object.
    pub(super) fn default_backend() -> Self {
        Self {
            kind: None,
            search: None,
            made_at: None,
            unknown_objects: SmallVec::new(),
            deleted_object: None,
        }
    }
}
