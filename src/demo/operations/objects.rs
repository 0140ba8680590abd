//! All other collections of objects, as far as a load balancer is concerned: objects are created, found on
//! the resource that created them, listed and deleted. Nothing is computed.

use serde_json::json;

use crate::demo::api::error_response::not_found;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::locking::lock_ignoring_poison;

/// A collection of the service.
struct TopLevelCollection {
    path: &'static [&'static str],
    id_prefix: &'static str,
    /// The `object` field of its objects.
    object_kind: &'static str,
}

/// A collection within an object, such as the messages of a thread.
struct NestedCollection {
    name: &'static str,
    id_prefix: &'static str,
    /// The `object` field of its objects.
    object_kind: &'static str,
}

const TOP_LEVEL_COLLECTIONS: [TopLevelCollection; 8] = [
    TopLevelCollection { path: &["assistants"], id_prefix: "asst_", object_kind: "assistant" },
    TopLevelCollection { path: &["threads"], id_prefix: "thread_", object_kind: "thread" },
    TopLevelCollection { path: &["vector_stores"], id_prefix: "vs_", object_kind: "vector_store" },
    TopLevelCollection { path: &["conversations"], id_prefix: "conv_", object_kind: "conversation" },
    TopLevelCollection { path: &["containers"], id_prefix: "cntr_", object_kind: "container" },
    TopLevelCollection { path: &["evals"], id_prefix: "eval_", object_kind: "eval" },
    TopLevelCollection {
        path: &["fine_tuning", "jobs"],
        id_prefix: "ftjob-",
        object_kind: "fine_tuning.job",
    },
    TopLevelCollection { path: &["videos"], id_prefix: "video_", object_kind: "video" },
];

const NESTED_COLLECTIONS: [NestedCollection; 6] = [
    NestedCollection { name: "messages", id_prefix: "msg_", object_kind: "thread.message" },
    NestedCollection { name: "runs", id_prefix: "run_", object_kind: "thread.run" },
    NestedCollection { name: "files", id_prefix: "file-", object_kind: "vector_store.file" },
    NestedCollection { name: "file_batches", id_prefix: "vsfb_", object_kind: "vector_store.file_batch" },
    NestedCollection { name: "items", id_prefix: "msg_", object_kind: "conversation.item" },
    NestedCollection { name: "events", id_prefix: "ftevent-", object_kind: "fine_tuning.job.event" },
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
    match path {
        [] => create_or_list_objects(request, method, collection.id_prefix, collection.object_kind),
        [id] => get_or_delete_object(request, method, id, collection.object_kind),
        [id, nested_name, nested_path @ ..] => {
            let kind = collection.object_kind;
            lock_ignoring_poison(&request.resource.objects)
                .get(id, kind)
                .ok_or_else(|| not_found(kind, id))?;
            let nested = NESTED_COLLECTIONS.iter().find(|nested| nested.name == *nested_name);
            match (nested, nested_path) {
                (Some(nested), []) => {
                    create_or_list_objects(request, method, nested.id_prefix, nested.object_kind)
                }
                (Some(nested), [id]) => get_or_delete_object(request, method, id, nested.object_kind),
                _ => Err(SimulatedError::ResourceNotFound.into()),
            }
        }
    }
}

fn create_or_list_objects(
    request: &SimulatedRequest,
    method: &str,
    id_prefix: &str,
    object_kind: &str,
) -> OperationResult {
    match method {
        "POST" => {
            let mut object = if request.body.is_empty() { json!({}) } else { request.json_body()? };
            let id = request.resource.id_generator.new_alphanumeric_id(id_prefix, 24);
            if let Some(map) = object.as_object_mut() {
                map.insert("id".to_owned(), json!(id));
                map.insert("object".to_owned(), json!(object_kind));
                map.insert("created_at".to_owned(), json!(unix_seconds_now()));
                map.entry("status").or_insert(json!("completed"));
            }
            lock_ignoring_poison(&request.resource.objects).insert(&id, object_kind, object.clone());
            Ok(SimulatedResponse::from_json(200, &object))
        }
        "GET" => {
            let objects = lock_ignoring_poison(&request.resource.objects);
            let list =
                json!({"object": "list", "data": objects.list_of_kind(object_kind), "has_more": false});
            Ok(SimulatedResponse::from_json(200, &list))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

fn get_or_delete_object(
    request: &SimulatedRequest,
    method: &str,
    id: &str,
    object_kind: &str,
) -> OperationResult {
    let mut objects = lock_ignoring_poison(&request.resource.objects);
    let object = objects.get(id, object_kind).cloned().ok_or_else(|| not_found(object_kind, id))?;
    match method {
        "GET" | "POST" => Ok(SimulatedResponse::from_json(200, &object)),
        "DELETE" => {
            objects.remove(id);
            let deleted = json!({"id": id, "object": format!("{object_kind}.deleted"), "deleted": true});
            Ok(SimulatedResponse::from_json(200, &deleted))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}
