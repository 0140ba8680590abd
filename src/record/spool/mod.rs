//! The spool: keeps records on disk until every sink has delivered them.
//!
//! Records are in segment files that are only appended to. One thread at a time writes; each sink reads at its own
//! pace and saves its position in a file beside the segment. A sink that has records already is noted as having
//! delivered the segment. A segment belongs to the process that holds its lock.
//! While it is written its name ends in `.open`, afterwards in `.sealed`. When a process has ended, the next
//! process that looks adopts its segments and cuts off a torn last record. Beyond the size limit the oldest
//! segment is deleted, delivered or not.

mod append_times;
mod backlog;
pub mod frame;
mod reader;
pub mod scan;
mod segment;
mod shared;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use log::{error, warn};

pub use self::backlog::SpoolView;
pub use self::frame::FrameBuffer;
pub use self::reader::{RecordBatch, SpoolRead, SpoolReader};
use self::segment::{AdoptedSegment, Segment};
use self::shared::{SharedSpool, SpoolState};

use crate::system_error::describe;

/// A full spool has at least this many segments, so that deleting the oldest loses few records.
const MIN_SEGMENTS_WHEN_FULL: u64 = 16;
/// A segment is sealed at this size at the latest.
const MAX_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// How long nothing is written after an error, such as a full disk.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// An incident is over when nothing has failed for this long. A disk that is nearly full would otherwise be
/// logged again and again.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(3);

/// The spool, as its writer sees it.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<SharedSpool>,
    max_bytes: u64,
    segment_seal_bytes: u64,
    /// The name of the segment that is being written.
    active_segment: Option<String>,
    /// The sink that needs nothing of the next segment.
    delivered_to: Option<&'static str>,
    created_segment_count: u64,
    /// Segments that cannot be adopted; each is logged once.
    unreadable_paths: Vec<PathBuf>,
    incident: Option<WriteIncident>,
}

/// A time in which records cannot be written. It is logged when it begins and when it is over.
#[derive(Debug)]
struct WriteIncident {
    last_failure: Instant,
    last_error: String,
    /// Nothing is appended for a while. An open file can be written to even if its directory is gone.
    pauses_appends: bool,
    lost_records: u64,
}

impl Spool {
    /// Opens the directory, adopts the segments of processes that have ended, and returns a reader for each
    /// sink. A missing directory is created with mode 0750. If that is not possible, this is logged, and
    /// [`Spool::maintain`] tries again.
    pub fn open(
        directory: &Path,
        max_bytes: u64,
        sink_names: &[&'static str],
        now: Instant,
    ) -> (Self, Vec<SpoolReader>) {
        let state = SpoolState { lost_records_by_sink: vec![0; sink_names.len()], ..SpoolState::default() };
        let shared = Arc::new(SharedSpool {
            directory: directory.to_owned(),
            sink_names: sink_names.to_vec(),
            state: Mutex::new(state),
            state_changed: Condvar::new(),
        });
        let segment_seal_bytes = (max_bytes / MIN_SEGMENTS_WHEN_FULL).min(MAX_SEGMENT_BYTES);
        let mut spool = Self {
            shared,
            max_bytes,
            segment_seal_bytes,
            active_segment: None,
            delivered_to: None,
            created_segment_count: 0,
            unreadable_paths: Vec::new(),
            incident: None,
        };
        spool.adopt_orphans();
        segment::remove_stray_files(directory);
        // Now, so that a directory that cannot be written to is logged at the start.
        if let Err(problem) = spool.start_segment() {
            spool.on_write_failed(&problem, 0, now);
        }
        let readers = (0..sink_names.len())
            .map(|sink_index| SpoolReader { shared: Arc::clone(&spool.shared), sink_index });
        let readers = readers.collect();
        (spool, readers)
    }

    /// Appends the records in one write. The sink `delivered_to`, if any, has them already. Returns how many are
    /// lost because they could not be written: all or none.
    pub fn append(
        &mut self,
        frames: &mut FrameBuffer,
        delivered_to: Option<&'static str>,
        now: Instant,
    ) -> u64 {
        self.delivered_to = delivered_to;
        let record_count = frames.record_count();
        if frames.is_empty() {
            return 0;
        }
        // A full disk is not tried again for every batch.
        if let Some(incident) =
            self.incident.as_mut().filter(|incident| incident.pauses_appends && !incident.is_retry_due(now))
        {
            incident.lost_records += record_count;
            return record_count;
        }
        loop {
            match self.try_append(frames) {
                Ok(()) => {
                    self.enforce_size_limit();
                    return 0;
                }
                // Newer records are worth more than older ones: make room and try again.
                Err(problem) if is_disk_full(&problem) && self.drop_oldest_segment() => {}
                Err(problem) => {
                    self.on_write_failed(&problem, record_count, now);
                    return record_count;
                }
            }
        }
    }

    /// To be called every now and then: looks whether the directory is still there, or can be used again.
    pub fn maintain(&mut self, now: Instant) {
        let active = self.active_segment.as_ref();
        let is_active_segment_gone = active.is_none_or(|name| {
            let state = self.shared.lock();
            state.segments.get(name).is_none_or(|segment| !segment.file_exists(&self.shared.directory))
        });
        if is_active_segment_gone
            && self.incident.as_ref().is_none_or(|incident| incident.is_retry_due(now))
            && let Err(problem) = self.start_segment()
        {
            self.on_write_failed(&problem, 0, now);
        }
        if let Some(incident) = self.incident.take_if(|incident| incident.is_over(now)) {
            warn!(
                "records are written to {} again; meanwhile {} records were lost",
                self.shared.directory.display(),
                incident.lost_records
            );
        }
    }

    /// Whether records cannot be written at the moment.
    pub fn is_failing(&self) -> bool {
        self.incident.is_some()
    }

    /// Why records cannot be written at the moment; `None` if they can.
    pub fn failure(&self) -> Option<&str> {
        self.incident.as_ref().map(|incident| incident.last_error.as_str())
    }

    /// Shows the backlog of each sink.
    pub fn view(&self) -> SpoolView {
        SpoolView { shared: Arc::downgrade(&self.shared) }
    }

    /// Logs the first of several failures.
    fn on_write_failed(&mut self, problem: &io::Error, lost_records: u64, now: Instant) {
        let incident = self.incident.get_or_insert_with(|| {
            let (directory, problem) = (self.shared.directory.display(), describe(problem));
            error!(
                "cannot write records to {directory}: {problem}. This is tried again every second; until then \
                 records are lost and counted"
            );
            WriteIncident {
                last_failure: now,
                last_error: String::new(),
                pauses_appends: false,
                lost_records: 0,
            }
        });
        incident.pauses_appends = lost_records > 0 || self.active_segment.is_none();
        incident.last_failure = now;
        incident.last_error = format!("cannot write to its directory: {problem}");
        incident.lost_records += lost_records;
    }

    fn try_append(&mut self, frames: &mut FrameBuffer) -> io::Result<()> {
        let is_seal_due = |state: &SpoolState, name: &str| {
            state.segments.get(name).is_none_or(|segment| {
                segment.length() >= self.segment_seal_bytes || segment.delivered_to() != self.delivered_to
            })
        };
        if self.active_segment.as_deref().is_none_or(|name| is_seal_due(&self.shared.lock(), name)) {
            self.start_segment()?;
        }
        let mut state = self.shared.lock();
        let segment = self.active_segment.as_ref().and_then(|name| state.segments.get(name));
        let Some(file) = segment.map(Segment::file) else { return Err(io::ErrorKind::NotFound.into()) };
        let length = segment.map_or(0, Segment::length);
        // Not under the lock: a slow disk must not block the readers. They read only up to the length of the
        // segment, which is updated after the write.
        drop(state);
        segment::write_all_or_truncate(&file, frames.complete_frames(), length)?;
        state = self.shared.lock();
        if let Some(segment) = self.active_segment.as_ref().and_then(|name| state.segments.get_mut(name)) {
            segment.on_appended(frames.byte_len() as u64, frames.record_count(), SystemTime::now());
        }
        drop(state);
        self.shared.state_changed.notify_all();
        Ok(())
    }

    /// Appends records that another process left in memory, and may have delivered, as a segment of their own.
    ///
    /// # Errors
    /// If they cannot be written: then none of them are.
    pub fn append_recovered(&mut self, frames: &mut FrameBuffer) -> io::Result<()> {
        loop {
            match self.try_append_recovered(frames) {
                Err(problem) if is_disk_full(&problem) && self.drop_oldest_segment() => {}
                result => {
                    self.enforce_size_limit();
                    return result;
                }
            }
        }
    }

    fn try_append_recovered(&mut self, frames: &mut FrameBuffer) -> io::Result<()> {
        let directory = &self.shared.directory;
        let mut segment =
            segment::create_segment(directory, self.created_segment_count, &self.shared.sink_names, None)?;
        self.created_segment_count += 1;
        if let Err(problem) = segment.file().write_all_at(frames.complete_frames(), segment.length()) {
            segment.delete_files(directory);
            return Err(problem);
        }
        segment.on_recovered(frames.byte_len() as u64, frames.record_count());
        segment.seal(directory);
        self.shared.lock().insert_segment(segment);
        self.shared.state_changed.notify_all();
        Ok(())
    }

    /// Seals the active segment and starts a new one.
    fn start_segment(&mut self) -> io::Result<()> {
        let directory = &self.shared.directory;
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        }
        let segment = segment::create_segment(
            &self.shared.directory,
            self.created_segment_count,
            &self.shared.sink_names,
            self.delivered_to,
        )?;
        self.created_segment_count += 1;
        let mut state = self.shared.lock();
        if let Some(mut previous) = self.active_segment.take().and_then(|name| state.segments.remove(&name)) {
            previous.seal(&self.shared.directory);
            state.insert_segment(previous);
        }
        self.active_segment = Some(segment.name().to_owned());
        state.insert_segment(segment);
        Ok(())
    }

    /// Adopts the segments of processes that have ended.
    pub fn adopt_orphans(&mut self) {
        for adopted in segment::adopt_orphans(&self.shared.directory, &self.shared.sink_names) {
            match adopted {
                Ok(AdoptedSegment { segment, torn_bytes }) => {
                    if torn_bytes > 0 {
                        warn!("spool: {torn_bytes} bytes are cut off: a process ended while it wrote them");
                    }
                    let mut state = self.shared.lock();
                    state.insert_segment(segment);
                    self.shared.state_changed.notify_all();
                }
                Err((path, problem)) if !self.unreadable_paths.contains(&path) => {
                    let problem = describe(&problem);
                    error!("spool: cannot read {}: {problem}. Its records are not delivered", path.display());
                    self.unreadable_paths.push(path);
                }
                Err(_) => {}
            }
        }
        self.shared.remove_delivered_segments();
    }

    /// Deletes the oldest segments while the spool exceeds its size limit.
    fn enforce_size_limit(&mut self) {
        while self.total_bytes() > self.max_bytes && self.drop_oldest_segment() {}
    }

    /// The length of all segments, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.shared.lock().segments.values().map(Segment::length).sum()
    }

    /// Whether this sink has delivered all records.
    pub fn is_delivered_to(&self, sink: &str) -> bool {
        let Some(sink) = self.shared.sink_names.iter().position(|name| *name == sink) else { return true };
        self.shared.lock().segments.values().all(|segment| segment.undelivered_bytes(sink) == 0)
    }

    /// Bytes that are not yet delivered to every sink.
    pub fn undelivered_bytes(&self) -> u64 {
        let max_undelivered = |segment: &Segment| {
            (0..self.shared.sink_names.len()).map(|sink| segment.undelivered_bytes(sink)).max().unwrap_or(0)
        };
        self.shared.lock().segments.values().map(max_undelivered).sum()
    }

    /// Deletes the oldest segment other than the active one; `false` if there is none.
    fn drop_oldest_segment(&mut self) -> bool {
        let mut state = self.shared.lock();
        let oldest = state.segments.keys().find(|name| Some(*name) != self.active_segment.as_ref()).cloned();
        let Some(segment) = oldest.and_then(|name| state.segments.remove(&name)) else { return false };
        drop(state);
        let count_lost = |sink| {
            let count =
                || segment::count_records(&segment.file(), segment.delivered_offset(sink), segment.length());
            segment.undelivered_records(sink).unwrap_or_else(count)
        };
        let lost: Vec<u64> = (0..self.shared.sink_names.len()).map(count_lost).collect();
        segment.delete_files(&self.shared.directory);
        let mut state = self.shared.lock();
        let lost_before = state.lost_while_full.unwrap_or(0);
        state.lost_while_full = Some(lost_before + lost.iter().max().copied().unwrap_or(0));
        drop(state);
        if lost_before == 0 && lost.iter().any(|lost| *lost > 0) {
            let sinks: Vec<&str> = self
                .shared
                .sink_names
                .iter()
                .zip(&lost)
                .filter(|(_, lost)| **lost > 0)
                .map(|(sink, _)| *sink)
                .collect();
            error!(
                "spool: full: the oldest records are deleted before they were delivered to {}",
                sinks.join(" and ")
            );
        }
        let mut state = self.shared.lock();
        for (total, lost) in state.lost_records_by_sink.iter_mut().zip(lost) {
            *total += lost;
        }
        true
    }

    /// How many records were deleted before they were delivered since the last call, by sink.
    pub fn take_lost_record_counts(&self) -> Vec<(&'static str, u64)> {
        let mut state = self.shared.lock();
        let lost = std::mem::replace(&mut state.lost_records_by_sink, vec![0; self.shared.sink_names.len()]);
        // The next deletion is logged again only after the spool was half empty, not for every segment.
        let is_half_empty = state.segments.values().map(Segment::length).sum::<u64>() < self.max_bytes / 2;
        if let Some(lost) = state.lost_while_full.take_if(|_| is_half_empty)
            && lost > 0
        {
            warn!("spool: no longer full; {lost} records were deleted before they were delivered");
        }
        self.shared.sink_names.iter().copied().zip(lost).filter(|(_, lost)| *lost > 0).collect()
    }

    /// Ends the writing: a reader gets [`SpoolRead::Closed`] when it has read everything.
    pub fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.state_changed.notify_all();
    }
}

impl WriteIncident {
    fn is_retry_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_failure) >= WRITE_RETRY_INTERVAL
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_failure) >= RECOVERY_INTERVAL
    }
}

fn is_disk_full(problem: &io::Error) -> bool {
    matches!(problem.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
