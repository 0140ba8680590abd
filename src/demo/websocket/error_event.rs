//! Errors as events of a Responses WebSocket.
//!
//! Where the headers of the error response are in the event is not documented for Azure. It is assumed to be
//! `error.headers`, as in the types of openai-python and as in the errors of Azure's streams over HTTP.

use serde_json::{Value, json};

use crate::demo::api::response::SimulatedResponse;

/// The event in place of an error response.
pub(super) fn error_event(response: &SimulatedResponse) -> Value {
    let body = response.json_body_or_null();
    let mut error = body.get("error").cloned().unwrap_or_else(|| plain_error(response.status, &body));
    let headers = response.headers.iter().filter(|(name, _)| *name != "content-type");
    let headers: serde_json::Map<String, Value> =
        headers.map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    if let Some(error) = error.as_object_mut() {
        error.entry("type").or_insert_with(|| json!(error_type(response.status)));
        error.entry("param").or_insert(Value::Null);
        if !headers.is_empty() {
            error.insert("headers".to_owned(), Value::Object(headers));
        }
    }
    json!({"type": "error", "status": response.status, "error": error})
}

/// The event with which the server refuses a message that is none of a client. Its wording is assumed.
pub(super) fn invalid_message_event(code: &str, message: &str, param: Option<&str>) -> Value {
    let error = json!({"type": "invalid_request_error", "code": code, "message": message, "param": param});
    json!({"type": "error", "status": 400, "error": error})
}

/// The event after which a WebSocket is closed because it has been open for too long.
pub(super) fn limit_reached_event() -> Value {
    let message = "Your session hit the maximum duration of 60 minutes.";
    invalid_message_event("websocket_connection_limit_reached", message, None)
}

/// An error for a response whose body is none, as over HTTP from a gateway in front of the service.
fn plain_error(status: u16, body: &Value) -> Value {
    let message = body.get("message").and_then(Value::as_str);
    let message =
        message.unwrap_or("The server had an error while processing your request. Sorry about that!");
    json!({"type": error_type(status), "code": error_type(status), "message": message, "param": null})
}

fn error_type(status: u16) -> &'static str {
    match status {
        429 => "too_many_requests",
        ..500 => "invalid_request_error",
        _ => "server_error",
    }
}
