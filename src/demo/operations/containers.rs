//! Containers, in which code runs, and their files.

use bytes::Bytes;
use serde_json::{Value, json};

use super::files::find_file;
use super::shared::listing::list_response;
use crate::demo::api::error_response::{invalid_parameter, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::http::multipart::MultipartForm;
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::{text_list, text_member};
use crate::demo::util::locking::lock_ignoring_poison;

const KIND: &str = "container";
const FILE_KIND: &str = "container.file";

/// Who has put a file into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerFileSource {
    User,
    Assistant,
}

/// All operations under `/containers`; `path` is what follows it.
pub(super) fn handle_containers(request: &SimulatedRequest, method: &str, path: &[&str]) -> OperationResult {
    match (method, path) {
        ("POST", []) => {
            let body = request.json_body()?;
            let Some(name) = text_member(&body, "name") else {
                return Err(invalid_parameter("name", "Missing required parameter: 'name'."));
            };
            let id = create_container(request, name, &text_list(&body, "file_ids"))?;
            Ok(SimulatedResponse::from_json(200, &find_container(request, &id)?))
        }
        ("GET", []) => list_response(request, "Container", stored(request, KIND, "")),
        ("GET", [id]) => Ok(SimulatedResponse::from_json(200, &find_container(request, id)?)),
        ("DELETE", [id]) => {
            find_container(request, id)?;
            lock_ignoring_poison(&request.resource.objects).remove(KIND, "", id);
            let deleted = json!({"id": id, "object": "container.deleted", "deleted": true});
            Ok(SimulatedResponse::from_json(200, &deleted))
        }
        (method, [id, "files", path @ ..]) => {
            find_container(request, id)?;
            handle_container_files(request, method, id, path)
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

/// Creates a container with copies of these files. Returns its id.
///
/// # Errors
/// 404 for an unknown file.
pub(super) fn create_container(
    request: &SimulatedRequest,
    name: &str,
    file_ids: &[&str],
) -> Result<String, ErrorResponse> {
    let files =
        file_ids.iter().map(|id| find_file(request, id)).collect::<Result<Vec<_>, ErrorResponse>>()?;
    let id = request.resource.id_generator.new_timed_id("cntr_", 48);
    let now = unix_seconds_now();
    let container = json!({
        "id": id, "object": KIND, "created_at": now, "status": "running", "name": name, "last_active_at": now,
        "expires_after": {"anchor": "last_active_at", "minutes": 20}, "memory_limit": "1g",
    });
    lock_ignoring_poison(&request.resource.objects).insert(KIND, &id, container);
    for file in files {
        let name = text_member(&file.metadata, "filename").unwrap_or("file");
        store_container_file(request, &id, name, ContainerFileSource::User, file.content);
    }
    Ok(id)
}

/// Puts a file into a container, and returns its file object.
pub(super) fn store_container_file(
    request: &SimulatedRequest,
    container_id: &str,
    name: &str,
    source: ContainerFileSource,
    content: Bytes,
) -> Value {
    let id = request.resource.id_generator.new_timed_id("cfile_", 32);
    let source = if source == ContainerFileSource::User { "user" } else { "assistant" };
    let file = json!({
        "id": id, "object": FILE_KIND, "created_at": unix_seconds_now(), "bytes": content.len(),
        "container_id": container_id, "path": format!("/mnt/data/{name}"), "source": source,
    });
    let mut objects = lock_ignoring_poison(&request.resource.objects);
    objects.insert_child(FILE_KIND, container_id, &id, file.clone(), content);
    file
}

/// # Errors
/// 404 if this resource has no such container.
pub(super) fn find_container(request: &SimulatedRequest, id: &str) -> Result<Value, ErrorResponse> {
    let objects = lock_ignoring_poison(&request.resource.objects);
    objects.get(KIND, id).cloned().ok_or_else(|| not_found("Container", id))
}

fn handle_container_files(
    request: &SimulatedRequest,
    method: &str,
    container_id: &str,
    path: &[&str],
) -> OperationResult {
    let find = |id: &str| {
        let objects = lock_ignoring_poison(&request.resource.objects);
        objects.child(FILE_KIND, container_id, id).cloned().ok_or_else(|| not_found("Container file", id))
    };
    match (method, path) {
        ("POST", []) => add_file(request, container_id),
        ("GET", []) => list_response(request, "Container file", stored(request, FILE_KIND, container_id)),
        ("GET", [id]) => Ok(SimulatedResponse::from_json(200, &find(id)?.json)),
        ("GET", [id, "content"]) => {
            Ok(SimulatedResponse::from_body(200, "application/octet-stream", find(id)?.content))
        }
        ("DELETE", [id]) => {
            find(id)?;
            lock_ignoring_poison(&request.resource.objects).remove(FILE_KIND, container_id, id);
            let deleted = json!({"id": id, "object": "container.file.deleted", "deleted": true});
            Ok(SimulatedResponse::from_json(200, &deleted))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

/// The file comes as a form, or as the id of a file of the resource.
fn add_file(request: &SimulatedRequest, container_id: &str) -> OperationResult {
    let source = ContainerFileSource::User;
    let file = if let Some(form) = MultipartForm::parse(request.head, request.body) {
        let Some(part) = form.part("file") else {
            return Err(invalid_parameter("file", "Missing required parameter: 'file'."));
        };
        let content = Bytes::copy_from_slice(part.content);
        store_container_file(
            request,
            container_id,
            part.filename.as_deref().unwrap_or("file"),
            source,
            content,
        )
    } else {
        let body = request.json_body()?;
        let Some(id) = text_member(&body, "file_id") else {
            return Err(invalid_parameter("file_id", "Missing required parameter: 'file_id'."));
        };
        let file = find_file(request, id)?;
        let name = text_member(&file.metadata, "filename").unwrap_or("file");
        store_container_file(request, container_id, name, source, file.content)
    };
    Ok(SimulatedResponse::from_json(200, &file))
}

fn stored(request: &SimulatedRequest, kind: &str, parent_id: &str) -> Vec<Value> {
    let objects = lock_ignoring_poison(&request.resource.objects);
    objects.list(kind, parent_id).into_iter().map(|object| object.json.clone()).collect()
}
