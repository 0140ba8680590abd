//! How a request ended: what the client got, and the outcome for the record.

use std::time::{Duration, Instant};

use crate::admission::limits::LimitKey;
use crate::record::exchange::ExchangeOutcome;
use crate::refusal::RefusalReason;

/// How a request ended, as far as that is known yet.
#[derive(Default)]
pub(super) struct RequestEnding {
    /// The status of the final response head; `None` until one is about to be sent.
    pub(super) client_status: Option<u16>,
    /// The reason, if the balancer refused the request itself.
    pub(super) refusal_reason: Option<RefusalReason>,
    /// The limit of the client that refused it.
    pub(super) limited_by: Option<LimitKey>,
    /// The client disconnected before its response was complete.
    pub(super) is_client_gone: bool,
    /// The response was incomplete or ended with an error.
    pub(super) has_response_failed: bool,
    /// From the arrival of the request to the first byte of the response body.
    pub(super) time_to_first_body_byte: Option<Duration>,
    /// Length of the response body so far.
    pub(super) response_bytes: u64,
    pub(super) is_record_submitted: bool,
    /// The record is written, and the request does not count as in flight.
    pub(super) is_finished: bool,
    /// The request does not count as in flight, whether or not its record is written.
    pub(super) has_left_in_flight: bool,
}

impl RequestEnding {
    /// Counts bytes of the response body that are about to be sent to the client.
    pub(super) fn note_response_body_bytes(&mut self, bytes: usize, received_instant: Instant) {
        if bytes > 0 && self.time_to_first_body_byte.is_none() {
            self.time_to_first_body_byte = Some(received_instant.elapsed());
        }
        self.response_bytes += bytes as u64;
    }

    /// The outcome for the record.
    pub(super) fn outcome(&self) -> ExchangeOutcome {
        match () {
            () if self.is_client_gone => ExchangeOutcome::ClientGone,
            () if self.has_response_failed || self.client_status.is_none() => ExchangeOutcome::Failed,
            () => match self.refusal_reason {
                Some(reason) if reason.is_upstream_failure() => ExchangeOutcome::Failed,
                Some(_) => ExchangeOutcome::Refused,
                None => ExchangeOutcome::Answered,
            },
        }
    }
}
