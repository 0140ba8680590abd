//! A sink's side of the spool: it reads records in batches and marks what it has delivered.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use log::error;

use super::frame::{self, ParsedFrame};
use super::segment;
use super::shared::SharedSpool;

/// A sink's side.
#[derive(Debug)]
pub struct SpoolReader {
    pub(super) shared: Arc<SharedSpool>,
    pub(super) sink_index: usize,
}

/// What there is for a sink.
pub enum SpoolRead {
    /// Records.
    Batch(RecordBatch),
    /// Nothing in the time given.
    TimedOut,
    /// Nothing, and nothing will come.
    Closed,
}

/// What a sink is given at a time.
pub struct RecordBatch {
    segment_name: String,
    end_offset: u64,
    /// Records of a process that is gone: the last of them may have been delivered before.
    pub may_contain_duplicates: bool,
    bytes: Vec<u8>,
}

impl RecordBatch {
    /// The segment that they lie in.
    pub fn segment_name(&self) -> &str {
        &self.segment_name
    }

    /// The records.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || match frame::parse_frame(rest) {
            ParsedFrame::Record(record, length) => {
                rest = rest.get(length..).unwrap_or_default();
                Some(record)
            }
            ParsedFrame::Incomplete(_) | ParsedFrame::Corrupt => None,
        })
    }
}

impl SpoolReader {
    /// Whose it is.
    pub fn sink_name(&self) -> &'static str {
        self.shared.sink_names.get(self.sink_index).copied().unwrap_or("")
    }

    /// The next records, at most about so many bytes but one at least; waits for them for a while.
    pub fn next_batch(&self, max_bytes: usize, timeout: Duration) -> SpoolRead {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            let next_segment =
                state.segments.values().find(|segment| segment.undelivered_bytes(self.sink_index) > 0);
            if let Some(segment) = next_segment {
                let (name, file) = (segment.name().to_owned(), segment.file());
                let (start, length) = (segment.delivered_offset(self.sink_index), segment.length());
                let may_contain_duplicates = segment.is_adopted();
                drop(state);
                match segment::read_frames(&file, start, length, max_bytes) {
                    Ok(bytes) if !bytes.is_empty() => {
                        let end_offset = start + bytes.len() as u64;
                        return SpoolRead::Batch(RecordBatch {
                            segment_name: name,
                            end_offset,
                            may_contain_duplicates,
                            bytes,
                        });
                    }
                    problem => {
                        let problem =
                            problem.err().map_or_else(|| "it is damaged".to_owned(), |e| e.to_string());
                        error!("spool: the rest of {name} cannot be read and is left out: {problem}");
                        self.advance_to(&name, length);
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

    /// This sink has these records.
    pub fn mark_delivered(&self, batch: &RecordBatch) {
        self.advance_to(&batch.segment_name, batch.end_offset);
    }

    /// Bytes that this sink has not read yet.
    pub fn undelivered_bytes(&self) -> u64 {
        self.shared.lock().segments.values().map(|segment| segment.undelivered_bytes(self.sink_index)).sum()
    }

    fn advance_to(&self, segment_name: &str, offset: u64) {
        let mut state = self.shared.lock();
        if let Some(segment) = state.segments.get_mut(segment_name) {
            segment.save_position(self.sink_index, &self.shared.directory, offset);
        }
        drop(state);
        self.shared.remove_delivered_segments();
    }
}
