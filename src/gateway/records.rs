//! What is counted and recorded of requests.

use std::sync::atomic::Ordering;

use super::Gateway;
use crate::admission::client::Client;
use crate::config::{RecordedContent, TracesConfig};
use crate::record::delivery::WriteReceipt;
use crate::record::exchange::{CapturePolicy, FinishedExchange};

/// How much text is captured beyond the limit of a record, so that a pattern to redact is found whole if
/// it crosses the limit.
const EXTRA_CAPTURE_FOR_REDACTION_BYTES: usize = 16 * 1024;

impl Gateway {
    /// What is captured for the record of a request of this client.
    pub fn capture_policy(&self, client: Option<&Client>) -> CapturePolicy {
        let Some(record) = &self.record_config else { return CapturePolicy::default() };
        let content =
            client.and_then(|client| client.recorded_content_override).unwrap_or(record.recorded_content);
        let max_bytes = usize::try_from(record.max_content_bytes).unwrap_or(usize::MAX);
        let overlap =
            if record.redaction_patterns.is_empty() { 0 } else { EXTRA_CAPTURE_FOR_REDACTION_BYTES };
        CapturePolicy {
            captures_prompt: content != RecordedContent::None,
            captures_completion: content == RecordedContent::Full,
            max_text_bytes: max_bytes,
            max_buffered_text_bytes: max_bytes.saturating_add(overlap),
            estimates_tokens: true,
        }
    }

    /// Whether a record is kept of each request.
    pub fn keeps_records(&self) -> bool {
        self.record_config.is_some()
    }

    /// How traces are made; `None` if there are none.
    pub fn traces_config(&self) -> Option<&TracesConfig> {
        self.traces_config.as_ref()
    }

    /// Counts a finished request and, if records are kept, makes its record, or has the writer make it. Call it once for
    /// each request. If there is a receipt, it resolves when the record is in the kernel; call
    /// [`Gateway::wake_record_writer`] before waiting for it.
    pub fn count_and_record(
        &self,
        exchange: Box<FinishedExchange>,
        policy: CapturePolicy,
    ) -> Option<WriteReceipt> {
        self.process_state.requests_finished.fetch_add(1, Ordering::Relaxed);
        self.process_state.recorder.record(exchange, policy)
    }

    /// Has the queued records written.
    pub fn wake_record_writer(&self) {
        self.process_state.recorder.wake_writer();
    }

    /// Counts a request whose framing or header fields are malformed.
    pub fn count_malformed_request(&self) {
        self.process_state.recorder.metrics().malformed_requests.inc();
    }

    /// Counts a response whose last bytes were sent before its record was written.
    pub fn count_late_record(&self) {
        self.process_state.recorder.metrics().count_records("spool", "late", 1);
    }

    /// Ends a request: the client has its whole response, or has gone.
    pub fn on_request_finished(&self) {
        self.wake_record_writer();
        self.process_state.requests_in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
