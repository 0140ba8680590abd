//! Batches. A batch is processed at once when it is created; its first response says `validating`, and every
//! later one that it is done.

use bytes::Bytes;
use serde_json::{Value, json};

use super::chat::chat_completion_for_batch_line;
use super::files::store_file;
use crate::demo::api::error_response::{invalid_parameter, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::locking::lock_ignoring_poison;

/// The `object` of a batch, and its kind in the object store.
const BATCH_KIND: &str = "batch";
const REPORTED_BATCH_LIFETIME_SECONDS: u64 = 86_400;

/// All operations under `/batches`; `path` is what follows it.
pub(super) fn handle_batches(request: &SimulatedRequest, method: &str, path: &[&str]) -> OperationResult {
    match (method, path) {
        ("POST", []) => create_and_process_batch(request),
        ("GET", []) => {
            let objects = lock_ignoring_poison(&request.resource.objects);
            let list = json!({"object": "list", "data": objects.list_of_kind(BATCH_KIND), "has_more": false});
            Ok(SimulatedResponse::from_json(200, &list))
        }
        ("GET", [id]) => find_batch(request, id).map(|batch| SimulatedResponse::from_json(200, &batch)),
        ("POST", [id, "cancel"]) => {
            let mut batch = find_batch(request, id)?;
            if let Some(map) = batch.as_object_mut() {
                map.insert("status".to_owned(), json!("cancelling"));
            }
            lock_ignoring_poison(&request.resource.objects).insert(id, BATCH_KIND, batch.clone());
            Ok(SimulatedResponse::from_json(200, &batch))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

fn create_and_process_batch(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let Some(input_file_id) = body.get("input_file_id").and_then(Value::as_str) else {
        return Err(invalid_parameter("input_file_id", "Missing required parameter: 'input_file_id'."));
    };
    let input =
        lock_ignoring_poison(&request.resource.files).file(input_file_id).map(|file| file.content.clone());
    let input = input.ok_or_else(|| not_found("File", input_file_id))?;
    let lines: Vec<Value> =
        input.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let results: Vec<Result<Value, Value>> =
        lines.iter().map(|line| process_batch_line(request, line)).collect();
    let succeeded: Vec<&Value> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    let failed: Vec<&Value> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    let counts = json!({"total": lines.len(), "completed": succeeded.len(), "failed": failed.len()});
    let has_only_failures = succeeded.is_empty();
    let id = format!("batch_{}", request.resource.id_generator.new_uuid_v4());
    let now = unix_seconds_now();
    let mut batch = json!({
        "id": id, "object": BATCH_KIND, "endpoint": body.get("endpoint"), "input_file_id": input_file_id,
        "completion_window": body.get("completion_window"), "metadata": body.get("metadata"),
        "created_at": now, "expires_at": now + REPORTED_BATCH_LIFETIME_SECONDS, "errors": null,
        "status": if has_only_failures { "failed" } else { "completed" },
        "in_progress_at": now, "completed_at": now, "request_counts": counts,
        "output_file_id": if has_only_failures { json!(null) } else { store_lines_as_file(request, &succeeded, "results.jsonl") },
        "error_file_id": if failed.is_empty() { json!(null) } else { store_lines_as_file(request, &failed, "errors.jsonl") },
    });
    lock_ignoring_poison(&request.resource.objects).insert(&id, BATCH_KIND, batch.clone());
    // Only the object store knows yet that the batch is done.
    if let Some(map) = batch.as_object_mut() {
        map.insert("status".to_owned(), json!("validating"));
        map.insert("request_counts".to_owned(), json!({"total": 0, "completed": 0, "failed": 0}));
        for name in ["in_progress_at", "completed_at", "output_file_id", "error_file_id"] {
            map.insert(name.to_owned(), Value::Null);
        }
    }
    Ok(SimulatedResponse::from_json(200, &batch))
}

/// Stores the lines as a file, and returns its id.
fn store_lines_as_file(request: &SimulatedRequest, lines: &[&Value], name: &str) -> Value {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let file = store_file(request, name, "batch_output", Bytes::from(text));
    file.get("id").cloned().unwrap_or_default()
}

/// Processes one line of the input. Both results are lines of an output file.
fn process_batch_line(request: &SimulatedRequest, line: &Value) -> Result<Value, Value> {
    let custom_id = line.get("custom_id").cloned().unwrap_or_default();
    let body = line.get("body").unwrap_or(&Value::Null);
    let name = body.get("model").and_then(Value::as_str).unwrap_or_default();
    let result = match request.resource.deployment(name) {
        Some(deployment) => chat_completion_for_batch_line(request, deployment, body),
        None => Err(SimulatedError::DeploymentNotFound.into()),
    };
    let request_id = request.resource.id_generator.new_uuid_v4();
    let output_line = |status: u16, body: &Value| {
        json!({
            "id": request.resource.id_generator.new_hex_id("batch_req_", 24), "custom_id": custom_id, "error": null,
            "response": {"status_code": status, "request_id": request_id, "body": body},
        })
    };
    result
        .map(|body| output_line(200, &body))
        .map_err(|error| output_line(error.status, &error.json_body_or_null()))
}

fn find_batch(request: &SimulatedRequest, id: &str) -> Result<Value, ErrorResponse> {
    lock_ignoring_poison(&request.resource.objects)
        .get(id, BATCH_KIND)
        .cloned()
        .ok_or_else(|| not_found("Batch", id))
}
