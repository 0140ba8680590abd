//! Records on disk until every sink has them: segments that are only appended to.
//!
//! One thread writes, each sink reads at its own pace and notes beside the segment how far it got.
//! A segment belongs to the process that holds its lock. While it grows it is called `….open`,
//! then `….sealed`; one whose process is gone is claimed by the next that looks, its torn end cut
//! off. When there is too much, the oldest goes, delivered or not.

mod frame;
mod reader;
mod segment;
mod shared;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use log::{error, info, warn};

pub use self::frame::FrameBuffer;
pub use self::reader::{RecordBatch, SpoolRead, SpoolReader};
use self::segment::{AdoptedSegment, Segment};
use self::shared::{SharedSpool, SpoolState};

/// The spool is so many segments at least, so that losing the oldest loses little.
const MIN_SEGMENT_COUNT: u64 = 16;
/// The size at which a segment is sealed is at most this.
const MAX_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// How long the writer of a full disk waits before it looks again.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The writer's side.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<SharedSpool>,
    max_bytes: u64,
    segment_seal_bytes: u64,
    /// The name of the segment that grows.
    active_segment: Option<String>,
    created_segments: u64,
    /// What cannot be claimed, which is said once.
    unreadable_paths: Vec<PathBuf>,
    writes_paused_until: Option<Instant>,
}

impl Spool {
    /// Opens the directory (created with mode 0750), claims what a process left there that is
    /// gone, and gives each sink its reader.
    ///
    /// # Errors
    /// When the directory cannot be made or written to.
    pub fn open(
        directory: &Path,
        max_bytes: u64,
        sink_names: &[&'static str],
    ) -> io::Result<(Self, Vec<SpoolReader>)> {
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        }
        let state = SpoolState { lost_records: vec![0; sink_names.len()], ..SpoolState::default() };
        let shared = Arc::new(SharedSpool {
            directory: directory.to_owned(),
            sink_names: sink_names.to_vec(),
            state: Mutex::new(state),
            state_changed: Condvar::new(),
        });
        let segment_seal_bytes = (max_bytes / MIN_SEGMENT_COUNT).min(MAX_SEGMENT_BYTES);
        let mut spool = Self {
            shared,
            max_bytes,
            segment_seal_bytes,
            active_segment: None,
            created_segments: 0,
            unreadable_paths: Vec::new(),
            writes_paused_until: None,
        };
        spool.adopt_orphans();
        segment::remove_stray_files(directory);
        spool.start_segment()?;
        let readers = (0..sink_names.len())
            .map(|sink_index| SpoolReader { shared: Arc::clone(&spool.shared), sink_index });
        let readers = readers.collect();
        Ok((spool, readers))
    }

    /// Appends these records in one write. Returns how many are lost because there is no room:
    /// all or none of them.
    pub fn append(&mut self, frames: &FrameBuffer) -> u64 {
        let now = Instant::now();
        if frames.is_empty() {
            return 0;
        }
        // A full disk is asked again in a while, not for each record.
        if self.writes_paused_until.is_some_and(|until| now < until) {
            return frames.record_count();
        }
        loop {
            match self.try_append(frames) {
                Ok(()) => {
                    if self.writes_paused_until.take().is_some() {
                        info!("records are written to {} again", self.shared.directory.display());
                    }
                    self.enforce_size_limit();
                    return 0;
                }
                Err(problem) if is_disk_full(&problem) && self.drop_oldest_segment() => {}
                Err(problem) => {
                    if self.writes_paused_until.is_none() {
                        let directory = self.shared.directory.display();
                        error!("records are lost, {directory} cannot be written: {problem}");
                    }
                    self.writes_paused_until = Some(now + WRITE_RETRY_INTERVAL);
                    return frames.record_count();
                }
            }
        }
    }

    fn try_append(&mut self, frames: &FrameBuffer) -> io::Result<()> {
        let is_seal_due = |state: &SpoolState, name: &str| {
            state.segments.get(name).is_none_or(|segment| segment.length() >= self.segment_seal_bytes)
        };
        if self.active_segment.as_deref().is_none_or(|name| is_seal_due(&self.shared.lock(), name)) {
            self.start_segment()?;
        }
        let mut state = self.shared.lock();
        let segment = self.active_segment.as_ref().and_then(|name| state.segments.get(name));
        let Some(file) = segment.map(Segment::file) else { return Err(io::ErrorKind::NotFound.into()) };
        let length = segment.map_or(0, Segment::length);
        // Readers look at the length alone: the lock is not held while the disk is waited for.
        drop(state);
        segment::write_all_or_truncate(&file, frames.complete_frames(), length)?;
        state = self.shared.lock();
        if let Some(segment) = self.active_segment.as_ref().and_then(|name| state.segments.get_mut(name)) {
            segment.on_appended(frames.byte_len() as u64);
        }
        drop(state);
        self.shared.state_changed.notify_all();
        Ok(())
    }

    /// Seals the segment that grows and begins another.
    fn start_segment(&mut self) -> io::Result<()> {
        let segment =
            segment::create_segment(&self.shared.directory, self.created_segments, &self.shared.sink_names)?;
        self.created_segments += 1;
        let mut state = self.shared.lock();
        if let Some(mut previous) = self.active_segment.take().and_then(|name| state.segments.remove(&name)) {
            previous.seal(&self.shared.directory);
            state.insert_segment(previous);
        }
        self.active_segment = Some(segment.name().to_owned());
        state.insert_segment(segment);
        Ok(())
    }

    /// Claims the segments of processes that are gone.
    pub fn adopt_orphans(&mut self) {
        for adopted in segment::adopt_orphans(&self.shared.directory, &self.shared.sink_names) {
            match adopted {
                Ok(AdoptedSegment { segment, torn_bytes }) => {
                    if torn_bytes > 0 {
                        warn!("spool: {torn_bytes} bytes of a record that was being written are cut off");
                    }
                    let mut state = self.shared.lock();
                    state.insert_segment(segment);
                    self.shared.state_changed.notify_all();
                }
                Err((path, problem)) if !self.unreadable_paths.contains(&path) => {
                    error!("spool: {} cannot be read and is left as it is: {problem}", path.display());
                    self.unreadable_paths.push(path);
                }
                Err(_) => {}
            }
        }
        self.shared.remove_delivered_segments();
    }

    fn enforce_size_limit(&mut self) {
        while self.total_bytes() > self.max_bytes && self.drop_oldest_segment() {}
    }

    /// Bytes of all segments.
    pub fn total_bytes(&self) -> u64 {
        self.shared.lock().segments.values().map(Segment::length).sum()
    }

    /// Bytes that some sink has not.
    pub fn undelivered_bytes(&self) -> u64 {
        let max_undelivered = |segment: &Segment| {
            (0..self.shared.sink_names.len()).map(|sink| segment.undelivered_bytes(sink)).max().unwrap_or(0)
        };
        self.shared.lock().segments.values().map(max_undelivered).sum()
    }

    /// Lets go of the oldest segment but the one that grows; `false` if there is none.
    fn drop_oldest_segment(&mut self) -> bool {
        let mut state = self.shared.lock();
        let oldest = state.segments.keys().find(|name| Some(*name) != self.active_segment.as_ref()).cloned();
        let Some(segment) = oldest.and_then(|name| state.segments.remove(&name)) else { return false };
        let is_first_drop = !std::mem::replace(&mut state.is_dropping_segments, true);
        drop(state);
        let lost: Vec<u64> =
            (0..self.shared.sink_names.len()).map(|sink| segment.count_undelivered_records(sink)).collect();
        segment.delete_files(&self.shared.directory);
        if is_first_drop && lost.iter().any(|lost| *lost > 0) {
            let sinks: Vec<&str> = self
                .shared
                .sink_names
                .iter()
                .zip(&lost)
                .filter(|(_, lost)| **lost > 0)
                .map(|(sink, _)| *sink)
                .collect();
            error!(
                "spool: there is no room for more: the oldest records go, undelivered to {}",
                sinks.join(" and ")
            );
        }
        let mut state = self.shared.lock();
        for (total, lost) in state.lost_records.iter_mut().zip(lost) {
            *total += lost;
        }
        true
    }

    /// Records that went undelivered since the last call, by sink.
    pub fn take_lost_records(&self) -> Vec<(&'static str, u64)> {
        let mut state = self.shared.lock();
        let lost = std::mem::replace(&mut state.lost_records, vec![0; self.shared.sink_names.len()]);
        // It is over when there is room again, not between two segments that go.
        if state.is_dropping_segments
            && state.segments.values().map(Segment::length).sum::<u64>() < self.max_bytes / 2
        {
            state.is_dropping_segments = false;
        }
        self.shared.sink_names.iter().copied().zip(lost).filter(|(_, lost)| *lost > 0).collect()
    }

    /// Nothing more will be written: readers that have all end.
    pub fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.state_changed.notify_all();
    }
}

fn is_disk_full(problem: &io::Error) -> bool {
    matches!(problem.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
