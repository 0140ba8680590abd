//! A sink's side of the spool: it reads records in batches and marks what it has delivered.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::error;

use super::frame;
use super::segment::{self, Segment};
use super::shared::{SharedSpool, SpoolState};

use crate::system_error::describe;

/// The spool, as one sink sees it.
#[derive(Debug)]
pub struct SpoolReader {
    pub(super) shared: Arc<SharedSpool>,
    pub(super) sink_index: usize,
}

/// The result of waiting for records.
pub enum SpoolRead {
    /// The next records.
    Batch(RecordBatch),
    /// There were no records within the timeout.
    TimedOut,
    /// Everything has been read, and nothing more will be written.
    Closed,
}

/// Records that a sink delivers together. They come from one segment.
pub struct RecordBatch {
    segment_name: String,
    end_offset: u64,
    /// Whether some records may have been delivered before: by a process that ended before it saved its
    /// position.
    pub may_contain_duplicates: bool,
    bytes: Vec<u8>,
    record_count: u64,
}

impl RecordBatch {
    /// The name of the segment that contains the records.
    pub fn segment_name(&self) -> &str {
        &self.segment_name
    }

    /// The bytes that they take in the spool.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The records, oldest first.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        frame::records(&self.bytes)
    }
}

impl SpoolReader {
    /// The name of the sink.
    pub fn sink_name(&self) -> &'static str {
        self.shared.sink_names.get(self.sink_index).copied().unwrap_or("")
    }

    /// Waits for the next records: at most about `max_bytes` of them, but at least one record.
    pub fn wait_for_batch(&self, max_bytes: usize, timeout: Duration) -> SpoolRead {
        let deadline = Instant::now() + timeout;
        let mut state = self.count_records_of_earlier_processes(self.shared.lock());
        loop {
            let next_segment =
                state.segments.values().find(|segment| segment.undelivered_bytes(self.sink_index) > 0);
            if let Some(segment) = next_segment {
                let (name, file) = (segment.name().to_owned(), segment.file());
                let (start, length) = (segment.delivered_offset(self.sink_index), segment.length());
                let may_contain_duplicates = segment.is_adopted();
                // Not under the lock: a slow disk must not block the writer.
                drop(state);
                match segment::read_frames(&file, start, length, max_bytes) {
                    Ok(bytes) if !bytes.is_empty() => {
                        let end_offset = start + bytes.len() as u64;
                        return SpoolRead::Batch(RecordBatch {
                            segment_name: name,
                            end_offset,
                            may_contain_duplicates,
                            record_count: frame::records(&bytes).count() as u64,
                            bytes,
                        });
                    }
                    problem => {
                        let problem =
                            problem.err().map_or_else(|| "the file is damaged".to_owned(), |e| describe(&e));
                        error!("spool: cannot read the rest of segment {name}, which is skipped: {problem}");
                        self.save_position_and_delete_delivered(&name, length, 0);
                    }
                }
                state = self.shared.lock();
                continue;
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            if state.is_closed || remaining.is_zero() {
                return if state.is_closed { SpoolRead::Closed } else { SpoolRead::TimedOut };
            }
            let wait_result = self.shared.state_changed.wait_timeout(state, remaining);
            state = wait_result.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Marks these records as delivered by this sink.
    pub fn mark_delivered(&self, batch: &RecordBatch) {
        self.save_position_and_delete_delivered(&batch.segment_name, batch.end_offset, batch.record_count);
    }

    /// Bytes that this sink has not delivered yet.
    pub fn undelivered_bytes(&self) -> u64 {
        self.shared.lock().segments.values().map(|segment| segment.undelivered_bytes(self.sink_index)).sum()
    }

    /// Counts the records that this sink has to deliver of segments that another process wrote.
    fn count_records_of_earlier_processes<'s>(
        &'s self,
        mut state: MutexGuard<'s, SpoolState>,
    ) -> MutexGuard<'s, SpoolState> {
        let is_uncounted = |segment: &&Segment| segment.undelivered_records(self.sink_index).is_none();
        while let Some(segment) = state.segments.values().find(is_uncounted) {
            let (name, file) = (segment.name().to_owned(), segment.file());
            let (start, length) = (segment.delivered_offset(self.sink_index), segment.length());
            // Not under the lock: a slow disk must not block the writer. Only this thread changes the position.
            drop(state);
            let count = segment::count_records(&file, start, length);
            state = self.shared.lock();
            if let Some(segment) = state.segments.get_mut(&name) {
                segment.set_undelivered_records(self.sink_index, count);
            }
        }
        state
    }

    /// Saves the position of this sink in a segment and deletes segments that are now delivered to every
    /// sink.
    fn save_position_and_delete_delivered(&self, segment_name: &str, offset: u64, records: u64) {
        let mut state = self.shared.lock();
        if let Some(segment) = state.segments.get_mut(segment_name) {
            segment.save_position(self.sink_index, &self.shared.directory, offset, records);
        }
        drop(state);
        self.shared.remove_delivered_segments();
    }
}
