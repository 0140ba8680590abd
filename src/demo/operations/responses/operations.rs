//! The operations on responses: create, get, resume a stream, cancel, delete, compact.

use serde_json::{Value, json};

use super::create::{create_response, prepare_request};
use super::references::{encrypt_content, response_not_found};
use crate::demo::api::error_response::{error_with_code, invalid_parameter, invalid_request_error};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{
    ErrorResponse, EventRole, OperationResult, SimulatedResponse, StreamEvent, StreamFormat,
};
use crate::demo::api::route::ApiDialect;
use crate::demo::api::sse::{self, EVENT_STREAM_CONTENT_TYPE};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::operations::shared::listing::list_response;
use crate::demo::operations::shared::text_model::count_tokens;
use crate::demo::resource::response_store::{BackgroundStatus, ResponseStore, StoredResponse, is_reference};
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::{set_member, text_member};
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
        build_stream_response(&created.stream_events).with_streamed_response(created.streamed.clone())
    } else {
        SimulatedResponse::from_json(200, &created.response_json)
    };
    Ok(created.admission.add_headers_and_charge(response, created.billed_input_tokens, created.output_tokens))
}

/// Creates a response on a WebSocket, whose store is given. The response is always a stream.
///
/// # Errors
/// 400, 404 or 429.
pub(in crate::demo) fn create_on_websocket(
    request: &SimulatedRequest,
    message: &Value,
    store: &mut ResponseStore,
) -> OperationResult {
    let created = create_response(request, message, Some(store))?;
    let response =
        build_stream_response(&created.stream_events).with_streamed_response(created.streamed.clone());
    Ok(created.admission.add_headers_and_charge(response, created.billed_input_tokens, created.output_tokens))
}

/// The response object for one line of a batch.
pub(in crate::demo::operations) fn response_for_batch_line(
    request: &SimulatedRequest,
    body: &Value,
) -> Result<Value, ErrorResponse> {
    Ok(create_response(request, body, None)?.response_json)
}

/// The response object, or the rest of its stream.
fn get_or_resume_response(request: &SimulatedRequest, id: &str) -> OperationResult {
    if request.head.query_parameter("stream").as_deref() == Some("true") {
        return resume_stream(request, id);
    }
    let stored = find_response(request, id)?;
    Ok(SimulatedResponse::from_json(200, &current_json(&stored, request)))
}

/// The events after the last one that the client has seen. They are sent without a pause, so that a background
/// response is complete from then on.
fn resume_stream(request: &SimulatedRequest, id: &str) -> OperationResult {
    let start = match request.head.query_parameter("starting_after").map(|text| text.parse::<usize>()) {
        None => 0,
        Some(Ok(last_seen)) => last_seen.saturating_add(1),
        Some(Err(_)) => {
            let message = "Invalid 'starting_after': expected the sequence number of an event.";
            return Err(invalid_parameter("starting_after", message));
        }
    };
    let mut store = lock_ignoring_poison(&request.resource.responses);
    let stored = store.get_mut(id, request.received_at).ok_or_else(|| response_not_found(id))?;
    if !stored.is_cancelled {
        stored.finishes_at = stored.finishes_at.min(request.received_at);
    }
    Ok(build_stream_response(stored.stream_events.get(start..).unwrap_or_default()))
}

/// The response object as it is now.
fn current_json(stored: &StoredResponse, request: &SimulatedRequest) -> Value {
    match stored.background_status(request.received_at) {
        BackgroundStatus::Done => stored.finished_json.clone(),
        BackgroundStatus::InProgress => stored.pending_json.clone(),
        BackgroundStatus::Queued => {
            let mut queued = stored.pending_json.clone();
            set_member(&mut queued, "status", json!("queued"));
            queued
        }
    }
}

fn list_input_items(request: &SimulatedRequest, id: &str) -> OperationResult {
    let items = find_response(request, id)?.input_items;
    let store = lock_ignoring_poison(&request.resource.responses);
    let resolved = |item: Value| match text_member(&item, "id").filter(|_| is_reference(&item)) {
        Some(id) => store.item(id, request.received_at).cloned().unwrap_or(item),
        None => item,
    };
    let items = items.into_iter().map(resolved).collect();
    drop(store);
    list_response(request, "Item", items)
}

fn cancel_response(request: &SimulatedRequest, id: &str) -> OperationResult {
    let now = request.received_at;
    let mut store = lock_ignoring_poison(&request.resource.responses);
    let stored = store.get_mut(id, now).ok_or_else(|| response_not_found(id))?;
    if stored.finished_json.get("background").and_then(Value::as_bool) != Some(true) {
        let message = "Cannot cancel a synchronous response.";
        return Err(Box::new(invalid_request_error(400, message, None, None)));
    }
    if stored.background_status(now) != BackgroundStatus::Done {
        stored.is_cancelled = true;
        stored.finished_json = stored.pending_json.clone();
        set_member(&mut stored.finished_json, "status", json!("cancelled"));
        // Nothing was generated.
        stored.stream_events.retain(|event| is_before_output(text_member(event, "type").unwrap_or_default()));
    }
    Ok(SimulatedResponse::from_json(200, &stored.finished_json))
}

/// Replaces a conversation by one encrypted item.
fn compact_conversation(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let prepared = prepare_request(request, &body, None)?;
    let ids = &request.resource.id_generator;
    let text = prepared.history.to_compact_text();
    let output_tokens = count_tokens(&text);
    let item = json!({
        "id": ids.new_chained_id("cmp_", &prepared.chain_key), "type": "compaction",
        "encrypted_content": encrypt_content(request, &text)?,
    });
    let compacted = json!({
        "id": ids.new_chained_id("resp_", &prepared.chain_key), "object": "response.compaction",
        "created_at": unix_seconds_now(), "output": [item], "usage": prepared.usage(output_tokens, 0),
    });
    let response = SimulatedResponse::from_json(200, &compacted);
    let billed_input_tokens = prepared.input_tokens - prepared.cached_prompt.cached_tokens;
    Ok(prepared.admission.add_headers_and_charge(response, billed_input_tokens, output_tokens))
}

fn find_response(request: &SimulatedRequest, id: &str) -> Result<StoredResponse, ErrorResponse> {
    lock_ignoring_poison(&request.resource.responses)
        .get(id, request.received_at)
        .cloned()
        .ok_or_else(|| response_not_found(id))
}

fn is_before_output(event_type: &str) -> bool {
    matches!(event_type, "response.created" | "response.queued" | "response.in_progress")
}

fn build_stream_response(events: &[Value]) -> SimulatedResponse {
    let role = |event: &Value| match event.get("type").and_then(Value::as_str).unwrap_or_default() {
        event_type if is_before_output(event_type) => EventRole::Preamble,
        "response.output_item.added" | "response.content_part.added" => EventRole::Preamble,
        "response.completed" | "response.incomplete" | "response.failed" => EventRole::Terminal,
        _ => EventRole::Content,
    };
    let events: Vec<StreamEvent> = events.iter().map(|event| sse::named_event(role(event), event)).collect();
    SimulatedResponse::from_events(StreamFormat::Responses, EVENT_STREAM_CONTENT_TYPE, events)
}
