//! Uploads of large files in parts, which become a file when they are completed.

use bytes::Bytes;
use serde_json::{Value, json};

use super::files::{check_purpose, store_file};
use crate::demo::api::error_response::{invalid_parameter, invalid_request_error, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::resource::file_store::{FileStore, MultipartUpload};
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::text_member;
use crate::demo::util::locking::lock_ignoring_poison;

/// Seconds after which an upload is said to expire. Nothing is deleted then.
const REPORTED_UPLOAD_LIFETIME_SECONDS: u64 = 3600;

/// All operations under `/uploads`; `path` is what follows it.
pub(super) fn handle_uploads(request: &SimulatedRequest, method: &str, path: &[&str]) -> OperationResult {
    match (method, path) {
        ("POST", []) => create_upload(request),
        ("POST", [id, "parts"]) => add_part(request, id),
        ("POST", [id, "cancel"]) => {
            let mut store = lock_ignoring_poison(&request.resource.files);
            let cancelled = pending_upload(&mut store, id)?.set_status("cancelled");
            Ok(SimulatedResponse::from_json(200, &cancelled))
        }
        ("POST", [id, "complete"]) => complete_upload(request, id),
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

fn create_upload(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    check_purpose(text_member(&body, "purpose").unwrap_or_default())?;
    let id = request.resource.id_generator.new_untimed_id("upload_", 24);
    let metadata = json!({
        "id": id, "object": "upload", "status": "pending", "bytes": body.get("bytes"), "created_at": unix_seconds_now(),
        "filename": body.get("filename"), "purpose": body.get("purpose"),
        "expires_at": unix_seconds_now() + REPORTED_UPLOAD_LIFETIME_SECONDS,
    });
    let upload = MultipartUpload { id, metadata: metadata.clone(), parts: Vec::new() };
    lock_ignoring_poison(&request.resource.files).insert_upload(upload);
    Ok(SimulatedResponse::from_json(200, &metadata))
}

fn add_part(request: &SimulatedRequest, id: &str) -> OperationResult {
    let form = request.multipart_body()?;
    let Some(data) = form.part("data") else {
        return Err(invalid_parameter("data", "Missing required parameter: 'data'."));
    };
    let part_id = request.resource.id_generator.new_untimed_id("part_", 24);
    let mut store = lock_ignoring_poison(&request.resource.files);
    pending_upload(&mut store, id)?;
    store.add_part(id, &part_id, Bytes::copy_from_slice(data.content));
    let part =
        json!({"id": part_id, "object": "upload.part", "created_at": unix_seconds_now(), "upload_id": id});
    Ok(SimulatedResponse::from_json(200, &part))
}

fn complete_upload(request: &SimulatedRequest, id: &str) -> OperationResult {
    let body = request.json_body()?;
    let part_ids = body.get("part_ids").and_then(Value::as_array).into_iter().flatten();
    let part_ids: Vec<&str> = part_ids.filter_map(Value::as_str).collect();
    // The lock is released before `store_file` takes it again.
    let (mut metadata, content) = {
        let mut store = lock_ignoring_poison(&request.resource.files);
        let upload = pending_upload(&mut store, id)?;
        let mut content = Vec::new();
        for part_id in part_ids {
            let part = upload.parts.iter().find(|(known, _)| known == part_id);
            let (_, bytes) = part.ok_or_else(|| not_found("Part", part_id))?;
            content.extend_from_slice(bytes);
        }
        (upload.set_status("completed"), content)
    };
    let text = |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or("file");
    let file = store_file(request, text("filename"), text("purpose"), Bytes::from(content));
    if let Some(map) = metadata.as_object_mut() {
        map.insert("file".to_owned(), file);
    }
    Ok(SimulatedResponse::from_json(200, &metadata))
}

/// # Errors
/// 404 if this resource has no such upload, 400 if it has ended.
fn pending_upload<'s>(store: &'s mut FileStore, id: &str) -> Result<&'s mut MultipartUpload, ErrorResponse> {
    let upload = store.upload_mut(id).ok_or_else(|| not_found("Upload", id))?;
    if upload.is_pending() {
        return Ok(upload);
    }
    let status = text_member(&upload.metadata, "status").unwrap_or_default();
    let message = format!("Upload with id '{id}' is {status} already.");
    Err(Box::new(invalid_request_error(400, &message, None, None)))
}
