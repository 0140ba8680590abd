//! How a request ended, as far as that is known.

use std::time::{Duration, Instant};

use crate::record::exchange::ExchangeOutcome;
use crate::refusal::RefusalReason;

/// What the client got, and how the request ended.
#[derive(Default)]
pub(super) struct RequestEnding {
    /// The status of the final response head; `None` until the client is shown one.
    pub(super) status: Option<u16>,
    /// The reason, if the final response is a refusal of the balancer.
    pub(super) refusal: Option<RefusalReason>,
    pub(super) client_gone: bool,
    /// The response broke off or ended in an error.
    pub(super) failed: bool,
    /// From arrival to the first byte of the response body.
    pub(super) first_byte: Option<Duration>,
    /// Bytes of the response body.
    pub(super) response_bytes: u64,
    /// The record has been handed over.
    pub(super) is_settled: bool,
    /// The request is no longer counted as in flight.
    pub(super) has_left: bool,
}

impl RequestEnding {
    /// Counts bytes of the response body that go to the client.
    pub(super) fn note_body_bytes(&mut self, bytes: usize, arrival: Instant) {
        if bytes > 0 && self.first_byte.is_none() {
            self.first_byte = Some(arrival.elapsed());
        }
        self.response_bytes += bytes as u64;
    }

    /// The outcome for the record.
    pub(super) fn outcome(&self) -> ExchangeOutcome {
        match () {
            () if self.client_gone => ExchangeOutcome::ClientGone,
            () if self.failed || self.status.is_none() => ExchangeOutcome::Failed,
            () => match self.refusal {
                Some(reason) if reason.is_upstream_failure() => ExchangeOutcome::Failed,
                Some(_) => ExchangeOutcome::Refused,
                None => ExchangeOutcome::Answered,
            },
        }
    }
}
