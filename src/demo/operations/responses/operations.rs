//! The operations on responses: create, get, resume a stream, cancel, delete, compact.

use serde_json::{Value, json};

use super::create::create_response;
use super::references::encrypted_content_prefix;
use crate::demo::api::error_response::{error_with_code, invalid_request_error, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{
    ErrorResponse, EventRole, OperationResult, SimulatedResponse, StreamEvent, StreamFormat,
};
use crate::demo::api::route::ApiDialect;
use crate::demo::api::sse::{self, EVENT_STREAM_CONTENT_TYPE};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::resource::response_store::{ResponseStore, StoredResponse};
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::locking::lock_ignoring_poison;

/// The first `api-version` of the classic dialect with this API.
const RESPONSES_MIN_API_VERSION: &str = "2025-03-01";

/// All operations under `/responses`; `path` is what follows it.
pub(in crate::demo::operations) fn handle_responses(
    request: &SimulatedRequest,
    method: &str,
    path: &[&str],
) -> OperationResult {
    if let ApiDialect::Classic { api_version } = &request.route.dialect
        && api_version.as_str() < RESPONSES_MIN_API_VERSION
    {
        let message =
            "Azure OpenAI Responses API is enabled only for api-version 2025-03-01-preview and later";
        return Err(Box::new(error_with_code(400, "BadRequest", message)));
    }
    match (method, path) {
        ("POST", []) => handle_create(request),
        ("POST", ["compact"]) if request.route.dialect == ApiDialect::V1 => compact_conversation(request),
        ("GET", [id]) => get_or_resume_response(request, id),
        ("GET", [id, "input_items"]) => list_input_items(request, id),
        ("DELETE", [id]) => {
            find_response(request, id)?;
            lock_ignoring_poison(&request.resource.responses).remove(id);
            let deleted = json!({"id": id, "object": "response", "deleted": true});
            Ok(SimulatedResponse::from_json(200, &deleted))
        }
        ("POST", [id, "cancel"]) => cancel_response(request, id),
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

fn handle_create(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let created = create_response(request, &body, None)?;
    let response = if body.get("stream").and_then(Value::as_bool).unwrap_or(false) {
        build_stream_response(&created.stream_events)
    } else {
        SimulatedResponse::from_json(200, &created.response_json)
    };
    Ok(created.admission.add_headers_and_charge(response, created.billed_input_tokens, created.output_tokens))
}

/// The response object, or the rest of its stream.
fn get_or_resume_response(request: &SimulatedRequest, id: &str) -> OperationResult {
    let stored = find_response(request, id)?;
    if request.head.query_parameter("stream").as_deref() == Some("true") {
        let starting_after = request.head.query_parameter("starting_after");
        let last_seen = starting_after.and_then(|text| text.parse::<usize>().ok());
        let start = last_seen.map_or(0, |number| number.saturating_add(1));
        return Ok(build_stream_response(stored.stream_events.get(start..).unwrap_or_default()));
    }
    let is_done = stored.is_cancelled || request.received_at >= stored.finishes_at;
    Ok(SimulatedResponse::from_json(200, if is_done { &stored.finished_json } else { &stored.pending_json }))
}

/// The newest item comes first.
fn list_input_items(request: &SimulatedRequest, id: &str) -> OperationResult {
    let data: Vec<Value> = find_response(request, id)?.input_items.into_iter().rev().collect();
    let id = |item: Option<&Value>| item.and_then(|item| item.get("id")).cloned();
    let list = json!({
        "object": "list", "data": data, "has_more": false,
        "first_id": id(data.first()), "last_id": id(data.last()),
    });
    Ok(SimulatedResponse::from_json(200, &list))
}

fn cancel_response(request: &SimulatedRequest, id: &str) -> OperationResult {
    let mut store = lock_ignoring_poison(&request.resource.responses);
    let Some(stored) = store.get_mut(id) else { return Err(not_found("Response", id)) };
    if stored.finished_json.get("background").and_then(Value::as_bool) != Some(true) {
        let message = "Cannot cancel a synchronous response.";
        return Err(Box::new(invalid_request_error(400, message, None, None)));
    }
    if !stored.is_cancelled && request.received_at < stored.finishes_at {
        stored.is_cancelled = true;
        stored.finished_json = stored.pending_json.clone();
        if let Some(map) = stored.finished_json.as_object_mut() {
            map.insert("status".to_owned(), json!("cancelled"));
        }
    }
    Ok(SimulatedResponse::from_json(200, &stored.finished_json))
}

/// Replaces a conversation by one encrypted item.
fn compact_conversation(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let created = create_response(request, &body, Some(&mut ResponseStore::default()))?;
    let ids = &request.resource.id_generator;
    let item = json!({
        "id": ids.new_hex_id("cmp_", 48), "type": "compaction",
        "encrypted_content": format!("{}{}", encrypted_content_prefix(request.resource), ids.new_alphanumeric_id("", 64)),
    });
    let compacted = json!({
        "id": ids.new_hex_id("resp_", 48), "object": "response.compaction", "created_at": unix_seconds_now(),
        "output": [item], "usage": created.response_json.get("usage"),
    });
    let response = SimulatedResponse::from_json(200, &compacted);
    Ok(created.admission.add_headers_and_charge(response, created.billed_input_tokens, created.output_tokens))
}

fn find_response(request: &SimulatedRequest, id: &str) -> Result<StoredResponse, ErrorResponse> {
    lock_ignoring_poison(&request.resource.responses)
        .get(id)
        .cloned()
        .ok_or_else(|| not_found("Response", id))
}

fn build_stream_response(events: &[Value]) -> SimulatedResponse {
    let role = |event: &Value| match event.get("type").and_then(Value::as_str).unwrap_or_default() {
        "response.created" | "response.queued" | "response.in_progress" => EventRole::Preamble,
        "response.output_item.added" | "response.content_part.added" => EventRole::Preamble,
        "response.completed" | "response.incomplete" | "response.failed" => EventRole::Terminal,
        _ => EventRole::Content,
    };
    let events: Vec<StreamEvent> = events.iter().map(|event| sse::named_event(role(event), event)).collect();
    SimulatedResponse::from_events(StreamFormat::Responses, EVENT_STREAM_CONTENT_TYPE, events)
}
