//! The Responses API over a WebSocket: one `response.create` after the other.

use std::time::Instant;

use serde_json::{Value, json};

use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::SimulatedResponse;
use crate::demo::operations::responses::create_response;
use crate::demo::resource::response_store::ResponseStore;
use crate::demo::resource::stream_end::StreamEnd;

/// A WebSocket on which the client creates responses.
pub(super) struct ResponsesSession<'a> {
    upgrade_request: SimulatedRequest<'a>,
    /// The responses that were created on this WebSocket, also those that are not stored.
    websocket_responses: ResponseStore,
}

impl<'a> ResponsesSession<'a> {
    pub(super) fn new(request: &SimulatedRequest<'a>) -> Self {
        Self { upgrade_request: *request, websocket_responses: ResponseStore::of_websocket() }
    }

    /// The events that a message of the client leads to, and what is to be held until they have been sent.
    pub(super) fn handle_message(
        &mut self,
        message: &Value,
        now: Instant,
    ) -> (Vec<Value>, Option<StreamEnd<'a>>) {
        if message.get("type").and_then(Value::as_str) != Some("response.create") {
            let message = "Only 'response.create' is understood here.";
            let error = json!({"type": "invalid_request_error", "code": "invalid_value", "message": message, "param": "type"});
            return (vec![json!({"type": "error", "status": 400, "error": error})], None);
        }
        let resource = self.upgrade_request.resource;
        let request =
            SimulatedRequest { received_at: now, read_lag: resource.read_lag(), ..self.upgrade_request };
        match create_response(&request, message, Some(&mut self.websocket_responses)) {
            Ok(created) => (created.stream_events, created.streamed.map(|streamed| streamed.begin(resource))),
            Err(error) => (vec![to_error_event(&error)], None),
        }
    }
}

fn to_error_event(error: &SimulatedResponse) -> Value {
    json!({"type": "error", "status": error.status, "error": error.json_body_or_null().get("error")})
}
