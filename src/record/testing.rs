//! Exchanges for the tests of this module.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::client_headers::ClientHeaders;
use super::exchange::{CapturedResponse, ExchangeOutcome, FinishedExchange};

/// An exchange that was answered with 200, of no client and without content.
pub(super) fn answered_exchange() -> FinishedExchange {
    FinishedExchange {
        received_at: SystemTime::UNIX_EPOCH,
        request_id: Arc::from("019"),
        socket_id: None,
        client_headers: ClientHeaders::default(),
        client: None,
        client_ip: None,
        peer_ip: None,
        method: "POST".to_owned(),
        target: None,
        unparsed_path: None,
        api_version: None,
        requested_deployment: None,
        is_deployment_known: true,
        balancer_overhead: Duration::ZERO,
        is_stream_requested: Some(true),
        client_status: Some(200),
        outcome: ExchangeOutcome::Answered,
        refusal_code: None,
        answering_backend: None,
        upstream_deployment: None,
        region: None,
        apim_request_id: None,
        affinity: None,
        attempts: Vec::new(),
        duration: Duration::ZERO,
        waited: Duration::ZERO,
        time_to_first_body_byte: None,
        request_bytes: None,
        response_bytes: 0,
        captured_request: None,
        extracted_prompt: None,
        prompt_sample: None,
        captured_response: CapturedResponse::NotCaptured,
        is_content_dropped: false,
    }
}
