//! Where traces go: what waits, and how the delivery goes.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::admin::wall_clock::format_rfc3339;
use crate::record::TracesState;

/// The exporter of traces.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/traces.md has them")]
pub struct TracesStatus {
    /// Requests that wait to be exported.
    pub queued: u64,
    pub last_delivery: Option<String>,
    /// `null` if delivery works.
    pub failing_since: Option<String>,
    /// It stays when delivery works again.
    pub last_error: Option<String>,
    pub last_error_at: Option<String>,
    /// Spans that were dropped since the start.
    pub dropped_spans: u64,
    pub dropped_spans_last_15_minutes: u64,
}

/// The status of the exporter; `None` without a `traces` block.
pub(in crate::admin) fn traces_status(traces: Option<TracesState>, now: SystemTime) -> Option<TracesStatus> {
    let TracesState { queued, delivery } = traces?;
    let dropped_spans_last_15_minutes = delivery.recently_dropped(now);
    Some(TracesStatus {
        queued: queued as u64,
        last_delivery: delivery.last_delivery.map(format_rfc3339),
        failing_since: delivery.failing_since.map(format_rfc3339),
        last_error_at: delivery.last_error.as_ref().map(|error| format_rfc3339(error.at)),
        last_error: delivery.last_error.map(|error| error.message),
        dropped_spans: delivery.dropped,
        dropped_spans_last_15_minutes,
    })
}
