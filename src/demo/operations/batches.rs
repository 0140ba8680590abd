//! Batches: each line of a file is a request, and the answers become another file.
//!
//! A batch takes as long as a background response. Its lines are answered when somebody first sees that it is
//! done.

use bytes::Bytes;
use serde_json::{Value, json};

use super::chat::chat_completion_for_batch_line;
use super::embeddings::embeddings_for_batch_line;
use super::files::{find_file, store_file};
use super::responses::response_for_batch_line;
use super::shared::listing::list_response;
use crate::demo::api::error_response::{invalid_parameter, invalid_request_error, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::resource::batch_store::{BatchPhase, StoredBatch};
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::{merge_objects, text_member};
use crate::demo::util::locking::lock_ignoring_poison;

const REPORTED_BATCH_LIFETIME_SECONDS: u64 = 86_400;
const ENDPOINTS: [&str; 3] = ["/chat/completions", "/responses", "/embeddings"];

/// All operations under `/batches`; `path` is what follows it.
pub(super) fn handle_batches(request: &SimulatedRequest, method: &str, path: &[&str]) -> OperationResult {
    match (method, path) {
        ("POST", []) => create_batch(request),
        ("GET", []) => {
            let ids = lock_ignoring_poison(&request.resource.batches).ids();
            let batches = ids.iter().filter_map(|id| current_batch(request, id).ok()).collect();
            list_response(request, "Batch", batches)
        }
        ("GET", [id]) => Ok(SimulatedResponse::from_json(200, &current_batch(request, id)?)),
        ("POST", [id, "cancel"]) => {
            cancel_batch(request, id)?;
            Ok(SimulatedResponse::from_json(200, &current_batch(request, id)?))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

fn create_batch(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let Some(input_file_id) = text_member(&body, "input_file_id") else {
        return Err(invalid_parameter("input_file_id", "Missing required parameter: 'input_file_id'."));
    };
    let endpoint = text_member(&body, "endpoint").unwrap_or("/chat/completions");
    if !ENDPOINTS.contains(&without_version(endpoint)) {
        let message =
            format!("Invalid value: '{endpoint}'. Supported values are: '{}'.", ENDPOINTS.join("', '"));
        return Err(invalid_parameter("endpoint", &message));
    }
    let input = find_file(request, input_file_id)?.content;
    let id = format!("batch_{}", request.resource.id_generator.new_uuid_v4());
    let now = unix_seconds_now();
    let json = json!({
        "id": id, "object": "batch", "endpoint": endpoint, "input_file_id": input_file_id,
        "completion_window": body.get("completion_window"), "metadata": body.get("metadata"),
        "created_at": now, "expires_at": now + REPORTED_BATCH_LIFETIME_SECONDS, "errors": null,
        "in_progress_at": null, "finalizing_at": null, "completed_at": null, "failed_at": null,
        "cancelling_at": null, "cancelled_at": null, "output_file_id": null, "error_file_id": null,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    });
    lock_ignoring_poison(&request.resource.batches).insert(StoredBatch {
        id: id.clone(),
        json,
        input,
        created_at: request.received_at,
        duration: request.resource.definition.background_response_duration,
        cancelled_at: None,
        outcome: None,
    });
    Ok(SimulatedResponse::from_json(200, &current_batch(request, &id)?))
}

fn cancel_batch(request: &SimulatedRequest, id: &str) -> Result<(), ErrorResponse> {
    let mut batches = lock_ignoring_poison(&request.resource.batches);
    let batch = batches.get_mut(id).ok_or_else(|| not_found("Batch", id))?;
    match batch.phase(request.received_at) {
        BatchPhase::Done => {
            let message = "Cannot cancel a batch that has completed.";
            Err(Box::new(invalid_request_error(400, message, None, None)))
        }
        BatchPhase::Cancelling | BatchPhase::Cancelled => Ok(()),
        BatchPhase::Validating | BatchPhase::InProgress | BatchPhase::Finalizing => {
            batch.cancelled_at = Some(request.received_at);
            Ok(())
        }
    }
}

/// The batch object as it is now.
fn current_batch(request: &SimulatedRequest, id: &str) -> Result<Value, ErrorResponse> {
    let find = || {
        let batch = lock_ignoring_poison(&request.resource.batches).get(id).cloned();
        batch.ok_or_else(|| not_found("Batch", id))
    };
    let batch = find()?;
    let phase = batch.phase(request.received_at);
    // From the one time that is known, so that it is the same in each response.
    let unix_seconds_at = |instant: std::time::Instant| {
        let created = batch.json["created_at"].as_u64().unwrap_or_default();
        created + instant.saturating_duration_since(batch.created_at).as_secs()
    };
    let total = input_lines(&batch.input).count();
    let mut members = json!({"status": match phase {
        BatchPhase::Validating => "validating",
        BatchPhase::InProgress => "in_progress",
        BatchPhase::Finalizing => "finalizing",
        BatchPhase::Cancelling => "cancelling",
        BatchPhase::Cancelled => "cancelled",
        BatchPhase::Done => "completed",
    }});
    if phase != BatchPhase::Validating {
        let progress = json!({
            "in_progress_at": unix_seconds_at(batch.created_at),
            "request_counts": {"total": total, "completed": 0, "failed": 0},
        });
        members = merge_objects(members, &progress);
    }
    if let Some(cancelled_at) = batch.cancelled_at {
        let seconds = unix_seconds_at(cancelled_at);
        let is_over = phase == BatchPhase::Cancelled;
        let times = json!({"cancelling_at": seconds, "cancelled_at": is_over.then_some(seconds)});
        members = merge_objects(members, &times);
    }
    if phase == BatchPhase::Done {
        let outcome = match batch.outcome.clone() {
            Some(outcome) => outcome,
            None => process_batch(request, &batch),
        };
        members = merge_objects(members, &outcome);
    }
    Ok(merge_objects(batch.json, &members))
}

/// Answers the lines of a batch, and stores the answers. Returns the members of the batch object that say so.
fn process_batch(request: &SimulatedRequest, batch: &StoredBatch) -> Value {
    let now = unix_seconds_now();
    let results: Vec<Result<Value, Value>> = input_lines(&batch.input)
        .enumerate()
        .map(|(index, line)| answer_line(request, batch, index, line))
        .collect();
    let succeeded: Vec<&Value> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    let failed: Vec<&Value> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    let counts = json!({"total": results.len(), "completed": succeeded.len(), "failed": failed.len()});
    let mut batches = lock_ignoring_poison(&request.resource.batches);
    let Some(stored) = batches.get_mut(&batch.id) else { return json!({}) };
    // Another request may have been faster.
    if let Some(outcome) = &stored.outcome {
        return outcome.clone();
    }
    let outcome = if results.is_empty() {
        let error = json!({
            "code": "empty_file", "message": "The input file is empty.", "param": null, "line": null,
        });
        json!({"status": "failed", "failed_at": now, "errors": {"object": "list", "data": [error]}})
    } else {
        let file_id = |lines: &[&Value], name: &str| {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let file =
                (!lines.is_empty()).then(|| store_file(request, name, "batch_output", Bytes::from(text)));
            file.and_then(|file| file.get("id").cloned())
        };
        json!({
            "status": "completed", "finalizing_at": now, "completed_at": now, "request_counts": counts,
            "output_file_id": file_id(&succeeded, "results.jsonl"), "error_file_id": file_id(&failed, "errors.jsonl"),
        })
    };
    stored.outcome = Some(outcome.clone());
    outcome
}

fn input_lines(input: &Bytes) -> impl Iterator<Item = &[u8]> {
    input.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty())
}

/// Answers one line of the input. Both results are lines of an output file.
fn answer_line(
    request: &SimulatedRequest,
    batch: &StoredBatch,
    index: usize,
    line: &[u8],
) -> Result<Value, Value> {
    let ids = &request.resource.id_generator;
    let id = ids.new_hex_id("batch_req_", 24);
    let Some(line) = serde_json::from_slice::<Value>(line).ok().filter(Value::is_object) else {
        let message = format!("Line {} is not a JSON object.", index + 1);
        let error = json!({"code": "invalid_json_line", "message": message});
        return Err(json!({"id": id, "custom_id": null, "response": null, "error": error}));
    };
    let empty = json!({});
    let body = line.get("body").filter(|body| body.is_object()).unwrap_or(&empty);
    let url = text_member(&line, "url").or_else(|| text_member(&batch.json, "endpoint")).unwrap_or_default();
    let name = text_member(body, "model").unwrap_or_default();
    let result = match (request.resource.deployment(name), without_version(url)) {
        (None, _) => Err(SimulatedError::DeploymentNotFound.into()),
        (Some(_), "/responses") => response_for_batch_line(request, body),
        (Some(deployment), "/embeddings") => embeddings_for_batch_line(deployment, body),
        (Some(deployment), _) => chat_completion_for_batch_line(request, deployment, body),
    };
    let output_line = |status: u16, body: &Value| {
        json!({
            "id": id, "custom_id": line.get("custom_id"), "error": null,
            "response": {"status_code": status, "request_id": ids.new_uuid_v4(), "body": body},
        })
    };
    result
        .map(|body| output_line(200, &body))
        .map_err(|error| output_line(error.status, &error.json_body_or_null()))
}

/// An endpoint is written with and without `/v1`.
fn without_version(endpoint: &str) -> &str {
    endpoint.strip_prefix("/v1").unwrap_or(endpoint)
}
