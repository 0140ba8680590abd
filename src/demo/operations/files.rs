//! Files, which only the resource that stored them knows.

use bytes::Bytes;
use serde_json::{Value, json};

use super::shared::listing::{MAX_LISTED_FILES, list_page};
use crate::demo::api::error_response::{invalid_parameter, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::resource::file_store::StoredFile;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::text_member;
use crate::demo::util::locking::lock_ignoring_poison;

const PURPOSES: [&str; 6] = ["assistants", "batch", "evals", "fine-tune", "user_data", "vision"];

/// All operations under `/files`; `path` is what follows it.
pub(super) fn handle_files(request: &SimulatedRequest, method: &str, path: &[&str]) -> OperationResult {
    match (method, path) {
        ("POST", []) => upload_file(request),
        ("GET", []) => list_files(request),
        ("GET", [id]) => Ok(SimulatedResponse::from_json(200, &find_file(request, id)?.metadata)),
        ("GET", [id, "content"]) => {
            let content = find_file(request, id)?.content;
            Ok(SimulatedResponse::from_body(200, "application/octet-stream", content))
        }
        ("DELETE", [id]) => {
            find_file(request, id)?;
            lock_ignoring_poison(&request.resource.files).remove_file(id);
            Ok(SimulatedResponse::from_json(200, &json!({"id": id, "object": "file", "deleted": true})))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

/// Stores a file, and returns its file object.
pub(super) fn store_file(request: &SimulatedRequest, name: &str, purpose: &str, content: Bytes) -> Value {
    let ids = &request.resource.id_generator;
    let id = if purpose == "assistants" {
        ids.new_alphanumeric_id("assistant-", 22)
    } else {
        ids.new_untimed_id("file-", 32)
    };
    let metadata = json!({
        "id": id, "object": "file", "bytes": content.len(), "created_at": unix_seconds_now(), "filename": name,
        "purpose": purpose, "status": "processed", "status_details": null,
    });
    lock_ignoring_poison(&request.resource.files).insert_file(StoredFile {
        id,
        metadata: metadata.clone(),
        content,
    });
    metadata
}

/// # Errors
/// 400 if it is none of the purposes of files.
pub(super) fn check_purpose(purpose: &str) -> Result<(), ErrorResponse> {
    if PURPOSES.contains(&purpose) {
        return Ok(());
    }
    let message = format!("'{purpose}' is not one of ['{}'] - 'purpose'", PURPOSES.join("', '"));
    Err(invalid_parameter("purpose", &message))
}

fn upload_file(request: &SimulatedRequest) -> OperationResult {
    let form = request.multipart_body()?;
    let Some(file) = form.part("file") else {
        return Err(invalid_parameter("file", "Missing required parameter: 'file'."));
    };
    let Some(purpose) = form.text("purpose") else {
        return Err(invalid_parameter("purpose", "Missing required parameter: 'purpose'."));
    };
    check_purpose(&purpose)?;
    let name = file.filename.as_deref().unwrap_or("file");
    let metadata = store_file(request, name, &purpose, Bytes::copy_from_slice(file.content));
    Ok(SimulatedResponse::from_json(201, &metadata))
}

/// The newest file comes first.
fn list_files(request: &SimulatedRequest) -> OperationResult {
    let purpose = request.head.query_parameter("purpose");
    let has_purpose = |file: &&StoredFile| {
        purpose.is_none() || text_member(&file.metadata, "purpose") == purpose.as_deref()
    };
    let store = lock_ignoring_poison(&request.resource.files);
    let files = store.files().filter(has_purpose).map(|file| file.metadata.clone()).collect();
    drop(store);
    list_page(request, "File", files, MAX_LISTED_FILES, MAX_LISTED_FILES)
}

/// # Errors
/// 404 if this resource has no such file.
pub(super) fn find_file(request: &SimulatedRequest, id: &str) -> Result<StoredFile, ErrorResponse> {
    lock_ignoring_poison(&request.resource.files).file(id).cloned().ok_or_else(|| not_found("File", id))
}
