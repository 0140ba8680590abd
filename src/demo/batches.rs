//! Batches: worked off at once when created, reported as `validating` first and as done afterwards.

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Body, Reply};
use super::azure::Call;
use super::chat;
use super::files::store;
use super::live::{hold, unix_now};
use super::refusal::{Refusal, bad_parameter, no_such};

/// `/batches`
pub(super) fn operate(call: &Call, method: &str, rest: &[&str]) -> Reply {
    match (method, rest) {
        ("POST", []) => create(call),
        ("GET", []) => {
            let objects = hold(&call.live.objects);
            Ok(Answer::json(
                200,
                &json!({"object": "list", "data": objects.of_kind("batch"), "has_more": false}),
            ))
        }
        ("GET", [id]) => find(call, id).map(|batch| Answer::json(200, &batch)),
        ("POST", [id, "cancel"]) => {
            let mut batch = find(call, id)?;
            if let Some(map) = batch.as_object_mut() {
                map.insert("status".to_owned(), json!("cancelling"));
            }
            hold(&call.live.objects).put(id, "batch", batch.clone());
            Ok(Answer::json(200, &batch))
        }
        _ => Err(Refusal::ResourceNotFound.into()),
    }
}

fn create(call: &Call) -> Reply {
    let body = call.json()?;
    let Some(input_id) = body.get("input_file_id").and_then(Value::as_str) else {
        return Err(bad_parameter("input_file_id", "Missing required parameter: 'input_file_id'."));
    };
    let input = hold(&call.live.shelf).content(input_id).ok_or_else(|| no_such("File", input_id))?;
    let lines: Vec<Value> =
        input.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let results: Vec<Result<Value, Value>> = lines.iter().map(|line| work(call, line)).collect();
    let written = |lines: Vec<&Value>, name: &str| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let file = store(call, name, "batch_output", Bytes::from(text));
        file.get("id").cloned().unwrap_or_default()
    };
    let good: Vec<&Value> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    let bad: Vec<&Value> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    let counts = json!({"total": lines.len(), "completed": good.len(), "failed": bad.len()});
    let failed = good.is_empty();
    let id = format!("batch_{}", call.live.ids.uuid());
    let now = unix_now();
    let mut batch = json!({
        "id": id, "object": "batch", "endpoint": body.get("endpoint"), "input_file_id": input_id,
        "completion_window": body.get("completion_window"), "metadata": body.get("metadata"),
        "created_at": now, "expires_at": now + 86_400, "errors": null,
        "status": if failed { "failed" } else { "completed" },
        "in_progress_at": now, "completed_at": now, "request_counts": counts,
        "output_file_id": if failed { json!(null) } else { written(good, "results.jsonl") },
        "error_file_id": if bad.is_empty() { json!(null) } else { written(bad, "errors.jsonl") },
    });
    hold(&call.live.objects).put(&id, "batch", batch.clone());
    if let Some(map) = batch.as_object_mut() {
        map.insert("status".to_owned(), json!("validating"));
        map.insert("request_counts".to_owned(), json!({"total": 0, "completed": 0, "failed": 0}));
        for unknown in ["in_progress_at", "completed_at", "output_file_id", "error_file_id"] {
            map.insert(unknown.to_owned(), Value::Null);
        }
    }
    Ok(Answer::json(200, &batch))
}

/// One line of the input: the answer to it, or why there is none.
fn work(call: &Call, line: &Value) -> Result<Value, Value> {
    let custom_id = line.get("custom_id").cloned().unwrap_or_default();
    let body = line.get("body").unwrap_or(&Value::Null);
    let name = body.get("model").and_then(Value::as_str).unwrap_or_default();
    let result = match call.live.deployment(name) {
        Some(own) => chat::answer_line(call, own, body),
        None => Err(Refusal::DeploymentNotFound.into()),
    };
    let request_id = call.live.ids.uuid();
    let wrapped = |status: u16, body: &Value| {
        json!({
            "id": call.live.ids.hex("batch_req_", 24), "custom_id": custom_id, "error": null,
            "response": {"status_code": status, "request_id": request_id, "body": body},
        })
    };
    result.map(|body| wrapped(200, &body)).map_err(|refusal| {
        let body: Value = match &refusal.body {
            Body::Whole(bytes) => serde_json::from_slice(bytes).unwrap_or_default(),
            _ => Value::Null,
        };
        wrapped(refusal.status, &body)
    })
}

fn find(call: &Call, id: &str) -> Result<Value, Box<Answer>> {
    hold(&call.live.objects).find(id, "batch").cloned().ok_or_else(|| no_such("Batch", id))
}
