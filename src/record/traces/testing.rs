//! Traced requests for the tests of this module.

use std::time::Duration;

use super::spans::{AnswerFacts, TracedRequest};
use crate::azure::response::verdict::Verdict;
use crate::names::BackendName;
use crate::record::exchange::AttemptRecord;
use crate::record::testing::answered_exchange;
use crate::record::trace_context::TraceId;

/// An attempt that took no time.
pub(super) fn attempt(backend: &str, status: Option<u16>, error: Option<&'static str>) -> AttemptRecord {
    AttemptRecord {
        backend: BackendName::new(backend),
        status,
        error_code: error,
        start: Duration::ZERO,
        time_to_response_head: None,
        duration_ms: 0,
        retry_after_ms: None,
        verdict: status.map(|status| if status < 400 { Verdict::Success } else { Verdict::ClientError }),
        span_id: None,
    }
}

/// A request with so many attempts.
pub(super) fn traced_request(attempts: usize) -> TracedRequest {
    let mut exchange = answered_exchange();
    exchange.attempts = (0..attempts).map(|_| attempt("east", Some(200), None)).collect();
    let exchange = Box::new(exchange);
    TracedRequest { trace_id: TraceId::of_request("019"), exchange, answer: AnswerFacts::default() }
}
