//! Where records go: the spool and each sink, with its backlog and how its delivery goes.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::admin::wall_clock::format_rfc3339;
use crate::record::SinkState;

/// The spool or a sink.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/operations.md has them")]
pub struct SinkStatus {
    /// `spool`, `jsonl` or `log_analytics`.
    pub sink: String,
    /// `null` while records of an earlier process are not counted.
    pub backlog_records: Option<u64>,
    pub backlog_bytes: u64,
    /// The age of the oldest record that is not delivered; `null` if there is none, or if it is not known.
    pub backlog_seconds: Option<u64>,
    pub last_delivery: Option<String>,
    /// `null` if delivery works.
    pub failing_since: Option<String>,
    /// It stays when delivery works again.
    pub last_error: Option<String>,
    pub last_error_at: Option<String>,
    /// Records that were dropped since the start.
    pub dropped: u64,
    pub dropped_last_15_minutes: u64,
    /// Records that the sink rejected, and that are in the dead letter file.
    pub dead_letters: u64,
}

/// The status of the spool and each sink; none without a `record` block.
pub(in crate::admin) fn sink_statuses(sinks: &[SinkState], now: SystemTime) -> Vec<SinkStatus> {
    let sinks = sinks.iter().map(|SinkState { name, backlog, delivery }| SinkStatus {
        sink: (*name).to_owned(),
        backlog_records: backlog.records,
        backlog_bytes: backlog.bytes,
        backlog_seconds: backlog.oldest.map(|oldest| age(oldest, now).as_secs()),
        last_delivery: delivery.last_delivery.map(format_rfc3339),
        failing_since: delivery.failing_since.map(format_rfc3339),
        last_error: delivery.last_error.as_ref().map(|error| error.message.clone()),
        last_error_at: delivery.last_error.as_ref().map(|error| format_rfc3339(error.at)),
        dropped: delivery.dropped,
        dropped_last_15_minutes: delivery.recently_dropped(now),
        dead_letters: delivery.dead_letters,
    });
    sinks.collect()
}

/// The seconds of the metric: 0 without a backlog, `None` if the age of the backlog is not known.
pub(in crate::admin) fn backlog_age_seconds(sink: &SinkState, now: SystemTime) -> Option<f64> {
    match sink.backlog.oldest {
        Some(oldest) => Some(age(oldest, now).as_secs_f64()),
        None => (sink.backlog.bytes == 0).then_some(0.0),
    }
}

/// How long ago this was; nothing if the clock was set back.
fn age(oldest: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(oldest).unwrap_or_default()
}
