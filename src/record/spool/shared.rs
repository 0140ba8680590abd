//! What the spool's writer and readers share: the segments, and the lock around them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::segment::Segment;

/// What the writer and the readers share.
#[derive(Debug)]
pub(super) struct SharedSpool {
    pub(super) directory: PathBuf,
    pub(super) sink_names: Vec<&'static str>,
    pub(super) state: Mutex<SpoolState>,
    /// Notified when there is more to read, or when the spool is closed.
    pub(super) state_changed: Condvar,
}

/// The part of [`SharedSpool`] that changes.
#[derive(Debug, Default)]
pub(super) struct SpoolState {
    pub(super) segments: BTreeMap<String, Segment>,
    /// Records that were deleted before they were delivered, by sink, until they are reported.
    pub(super) lost_records_by_sink: Vec<u64>,
    /// Records that were deleted before they were delivered since the spool is full; `None` if it is not.
    pub(super) lost_while_full: Option<u64>,
    pub(super) is_closed: bool,
}

impl SpoolState {
    pub(super) fn insert_segment(&mut self, segment: Segment) {
        self.segments.insert(segment.name().to_owned(), segment);
    }
}

impl SharedSpool {
    pub(super) fn lock(&self) -> MutexGuard<'_, SpoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes the sealed segments that are delivered to every sink.
    pub(super) fn remove_delivered_segments(&self) {
        let mut state = self.lock();
        let delivered: Vec<String> = state
            .segments
            .values()
            .filter(|segment| segment.is_fully_delivered())
            .map(|segment| segment.name().to_owned())
            .collect();
        let removed: Vec<Segment> = delivered.iter().filter_map(|name| state.segments.remove(name)).collect();
        drop(state);
        removed.iter().for_each(|segment| segment.delete_files(&self.directory));
    }
}

/// When the writer and all readers are gone, deletes every delivered segment, even the active one.
impl Drop for SharedSpool {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for segment in state.segments.values() {
            if (0..self.sink_names.len()).all(|sink| segment.undelivered_bytes(sink) == 0) {
                segment.delete_files(&self.directory);
            }
        }
    }
}
