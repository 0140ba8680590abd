//! All other collections of objects, as far as a load balancer is concerned: objects are created, found on
//! the resource that created them, listed and deleted. Nothing is computed.

use bytes::Bytes;
use serde_json::{Value, json};

use super::files::find_file;
use super::shared::listing::list_response;
use crate::demo::api::error_response::not_found;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::{set_member, text_member};
use crate::demo::util::locking::lock_ignoring_poison;

/// A collection of the service, or one within an object, such as the messages of a thread.
struct Collection {
    path: &'static [&'static str],
    id_prefix: &'static str,
    /// The `object` field of its objects.
    object_kind: &'static str,
    /// What `POST` to an action of an object makes its status.
    actions: &'static [(&'static str, &'static str)],
}

const fn collection(
    path: &'static [&'static str],
    id_prefix: &'static str,
    object_kind: &'static str,
) -> Collection {
    Collection { path, id_prefix, object_kind, actions: &[("cancel", "cancelled")] }
}

const TOP_LEVEL_COLLECTIONS: [Collection; 5] = [
    collection(&["assistants"], "asst_", "assistant"),
    collection(&["threads"], "thread_", "thread"),
    collection(&["evals"], "eval_", "eval"),
    Collection {
        actions: &[("cancel", "cancelled"), ("pause", "paused"), ("resume", "running")],
        ..collection(&["fine_tuning", "jobs"], "ftjob-", "fine_tuning.job")
    },
    collection(&["videos"], "video_", "video"),
];

/// Each by the kind of the object that it is within.
const NESTED_COLLECTIONS: [(&str, Collection); 5] = [
    ("thread", collection(&["messages"], "msg_", "thread.message")),
    ("thread", collection(&["runs"], "run_", "thread.run")),
    ("eval", collection(&["runs"], "evalrun_", "eval.run")),
    ("fine_tuning.job", collection(&["events"], "ftevent-", "fine_tuning.job.event")),
    ("fine_tuning.job", collection(&["checkpoints"], "ftckpt-", "fine_tuning.job.checkpoint")),
];

/// Any path that belongs to no other operation.
pub(super) fn handle_other_collections(
    request: &SimulatedRequest,
    method: &str,
    path: &[&str],
) -> OperationResult {
    let matching = TOP_LEVEL_COLLECTIONS
        .iter()
        .find_map(|collection| Some((path.strip_prefix(collection.path)?, collection)));
    let Some((path, collection)) = matching else { return Err(SimulatedError::ResourceNotFound.into()) };
    if let [id, nested_name, nested_path @ ..] = path
        && let Some((_, nested)) = NESTED_COLLECTIONS
            .iter()
            .find(|(parent, nested)| *parent == collection.object_kind && nested.path == [*nested_name])
    {
        find_object(request, collection, "", id)?;
        return handle_collection(request, nested, method, id, nested_path);
    }
    handle_collection(request, collection, method, "", path)
}

/// The operations on one collection; `path` is what follows its name.
fn handle_collection(
    request: &SimulatedRequest,
    collection: &Collection,
    method: &str,
    parent_id: &str,
    path: &[&str],
) -> OperationResult {
    match (method, path) {
        ("POST", []) => create_object(request, collection, parent_id),
        ("GET", []) => {
            let objects = lock_ignoring_poison(&request.resource.objects);
            let list = objects.list(collection.object_kind, parent_id);
            let list = list.into_iter().map(|object| object.json.clone()).collect();
            drop(objects);
            list_response(request, collection.object_kind, list)
        }
        ("GET" | "POST", [id]) => {
            Ok(SimulatedResponse::from_json(200, &find_object(request, collection, parent_id, id)?))
        }
        ("POST", [id, action]) => {
            let found = collection.actions.iter().find(|(name, _)| name == action);
            let Some((_, status)) = found else { return Err(SimulatedError::ResourceNotFound.into()) };
            let mut object = find_object(request, collection, parent_id, id)?;
            set_member(&mut object, "status", json!(status));
            store_object(request, collection, parent_id, id, &object);
            Ok(SimulatedResponse::from_json(200, &object))
        }
        ("DELETE", [id]) => {
            find_object(request, collection, parent_id, id)?;
            lock_ignoring_poison(&request.resource.objects).remove(collection.object_kind, parent_id, id);
            let kind = format!("{}.deleted", collection.object_kind);
            Ok(SimulatedResponse::from_json(200, &json!({"id": id, "object": kind, "deleted": true})))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

fn create_object(request: &SimulatedRequest, collection: &Collection, parent_id: &str) -> OperationResult {
    let mut object = if request.body.is_empty() { json!({}) } else { request.json_body()? };
    for name in ["training_file", "validation_file"] {
        if let Some(file_id) = text_member(&object, name) {
            find_file(request, file_id)?;
        }
    }
    let id = request.resource.id_generator.new_alphanumeric_id(collection.id_prefix, 24);
    if let Some(map) = object.as_object_mut() {
        map.insert("id".to_owned(), json!(id));
        map.insert("object".to_owned(), json!(collection.object_kind));
        map.insert("created_at".to_owned(), json!(unix_seconds_now()));
        map.entry("status").or_insert(json!("completed"));
    }
    store_object(request, collection, parent_id, &id, &object);
    Ok(SimulatedResponse::from_json(200, &object))
}

fn store_object(
    request: &SimulatedRequest,
    collection: &Collection,
    parent_id: &str,
    id: &str,
    object: &Value,
) {
    let mut objects = lock_ignoring_poison(&request.resource.objects);
    objects.insert_child(collection.object_kind, parent_id, id, object.clone(), Bytes::new());
}

fn find_object(
    request: &SimulatedRequest,
    collection: &Collection,
    parent_id: &str,
    id: &str,
) -> Result<Value, ErrorResponse> {
    let objects = lock_ignoring_poison(&request.resource.objects);
    let found = objects.child(collection.object_kind, parent_id, id).map(|object| object.json.clone());
    found.ok_or_else(|| not_found(collection.object_kind, id))
}
