//! What each sink has not delivered yet, for the status.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use chrono::DateTime;

use super::frame::FRAME_HEADER_BYTES;
use super::shared::SharedSpool;
use crate::record::delivery::Backlog;

/// How a record begins; its time follows.
const RECORD_START: &[u8] = b"{\"time\":\"";
/// The longest time in a record.
const MAX_TIME_BYTES: usize = 40;

/// The spool, for those that look at it. It does not keep the spool open.
#[derive(Debug)]
pub struct SpoolView {
    pub(super) shared: Weak<SharedSpool>,
}

impl SpoolView {
    /// The backlog of each sink, by name; empty once the spool is closed.
    pub fn backlogs(&self) -> Vec<(&'static str, Backlog)> {
        let Some(shared) = self.shared.upgrade() else { return Vec::new() };
        let sink_names = shared.sink_names.iter().enumerate();
        sink_names.map(|(sink_index, name)| (*name, backlog_of_sink(&shared, sink_index))).collect()
    }
}

fn backlog_of_sink(shared: &SharedSpool, sink_index: usize) -> Backlog {
    let mut backlog = Backlog { records: Some(0), ..Backlog::default() };
    let mut adopted: Vec<(Arc<File>, u64)> = Vec::new();
    let mut oldest: Option<SystemTime> = None;
    let state = shared.lock();
    for segment in state.segments.values().filter(|segment| segment.undelivered_bytes(sink_index) > 0) {
        backlog.bytes += segment.undelivered_bytes(sink_index);
        backlog.records =
            backlog.records.zip(segment.undelivered_records(sink_index)).map(|(sum, more)| sum + more);
        let offset = segment.delivered_offset(sink_index);
        match segment.append_time_at(offset) {
            Some(time) => oldest = Some(oldest.map_or(time, |oldest| oldest.min(time))),
            None => adopted.push((segment.file(), offset)),
        }
    }
    // Not under the lock: a slow disk must not block the writer.
    drop(state);
    let adopted_times = adopted.iter().filter_map(|(file, offset)| record_time_at(file, *offset));
    backlog.oldest = oldest.into_iter().chain(adopted_times).min();
    backlog
}

/// The time of the record whose frame begins at this offset: for one that an earlier process appended at a time
/// that is not known.
fn record_time_at(file: &File, offset: u64) -> Option<SystemTime> {
    let mut bytes = [0; RECORD_START.len() + MAX_TIME_BYTES];
    // A record is longer than this.
    file.read_exact_at(&mut bytes, offset + FRAME_HEADER_BYTES as u64).ok()?;
    let time = bytes.strip_prefix(RECORD_START)?.split(|byte| *byte == b'"').next()?;
    Some(DateTime::parse_from_rfc3339(std::str::from_utf8(time).ok()?).ok()?.into())
}
