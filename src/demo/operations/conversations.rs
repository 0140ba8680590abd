//! Conversations, to which responses add their input and output.

use bytes::Bytes;
use serde_json::{Value, json};

use super::shared::listing::list_response;
use crate::demo::api::error_response::{invalid_parameter, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::{expand_content, set_member, text_member};
use crate::demo::util::locking::lock_ignoring_poison;

const KIND: &str = "conversation";
const ITEM_KIND: &str = "conversation.item";
const MAX_ITEMS_AT_ONCE: usize = 20;

/// All operations under `/conversations`; `path` is what follows it.
pub(super) fn handle_conversations(
    request: &SimulatedRequest,
    method: &str,
    path: &[&str],
) -> OperationResult {
    match (method, path) {
        ("POST", []) => create_conversation(request),
        ("GET", [id]) => Ok(SimulatedResponse::from_json(200, &find_conversation(request, id)?)),
        ("POST", [id]) => {
            find_conversation(request, id)?;
            let metadata = request.json_body()?.get("metadata").cloned().unwrap_or(json!({}));
            if let Some(conversation) = lock_ignoring_poison(&request.resource.objects).get_mut(KIND, id) {
                set_member(conversation, "metadata", metadata);
            }
            Ok(SimulatedResponse::from_json(200, &find_conversation(request, id)?))
        }
        ("DELETE", [id]) => {
            find_conversation(request, id)?;
            lock_ignoring_poison(&request.resource.objects).remove(KIND, "", id);
            let deleted = json!({"id": id, "object": "conversation.deleted", "deleted": true});
            Ok(SimulatedResponse::from_json(200, &deleted))
        }
        ("GET", [id, "items"]) => list_response(request, "Item", conversation_items(request, id)?),
        ("POST", [id, "items"]) => {
            find_conversation(request, id)?;
            let items = items_of_body(request, &request.json_body()?)?;
            append_items(request, id, &items);
            let item_id = |item: Option<&Value>| item.and_then(|item| item.get("id")).cloned();
            let list = json!({
                "object": "list", "data": items, "has_more": false,
                "first_id": item_id(items.first()), "last_id": item_id(items.last()),
            });
            Ok(SimulatedResponse::from_json(200, &list))
        }
        ("GET", [id, "items", item_id]) => {
            let items = conversation_items(request, id)?;
            let item = items.into_iter().find(|item| text_member(item, "id") == Some(*item_id));
            item.map(|item| SimulatedResponse::from_json(200, &item))
                .ok_or_else(|| not_found("Item", item_id))
        }
        ("DELETE", [id, "items", item_id]) => {
            let conversation = find_conversation(request, id)?;
            let mut objects = lock_ignoring_poison(&request.resource.objects);
            objects.child(ITEM_KIND, id, item_id).ok_or_else(|| not_found("Item", item_id))?;
            objects.remove(ITEM_KIND, id, item_id);
            Ok(SimulatedResponse::from_json(200, &conversation))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

/// The items of a conversation, oldest first.
///
/// # Errors
/// 404 if this resource has no such conversation.
pub(super) fn conversation_items(request: &SimulatedRequest, id: &str) -> Result<Vec<Value>, ErrorResponse> {
    find_conversation(request, id)?;
    let objects = lock_ignoring_poison(&request.resource.objects);
    Ok(objects.list(ITEM_KIND, id).into_iter().map(|object| object.json.clone()).collect())
}

/// Adds items that have ids. References add nothing: the conversation has what they refer to.
pub(super) fn append_items<'i>(
    request: &SimulatedRequest,
    id: &str,
    items: impl IntoIterator<Item = &'i Value>,
) {
    let mut objects = lock_ignoring_poison(&request.resource.objects);
    for item in items {
        if let Some(item_id) = text_member(item, "id")
            && text_member(item, "type") != Some("item_reference")
        {
            objects.insert_child(ITEM_KIND, id, item_id, item.clone(), Bytes::new());
        }
    }
}

fn find_conversation(request: &SimulatedRequest, id: &str) -> Result<Value, ErrorResponse> {
    let objects = lock_ignoring_poison(&request.resource.objects);
    objects.get(KIND, id).cloned().ok_or_else(|| not_found("Conversation", id))
}

fn create_conversation(request: &SimulatedRequest) -> OperationResult {
    let body = if request.body.is_empty() { json!({}) } else { request.json_body()? };
    let items = if body.get("items").is_some_and(|items| !items.is_null()) {
        items_of_body(request, &body)?
    } else {
        Vec::new()
    };
    let id = request.resource.id_generator.new_timed_id("conv_", 48);
    let conversation = json!({
        "id": id, "object": KIND, "created_at": unix_seconds_now(),
        "metadata": body.get("metadata").cloned().unwrap_or(json!({})),
    });
    lock_ignoring_poison(&request.resource.objects).insert(KIND, &id, conversation.clone());
    append_items(request, &id, &items);
    Ok(SimulatedResponse::from_json(200, &conversation))
}

/// The `items` of a body, each with an id.
fn items_of_body(request: &SimulatedRequest, body: &Value) -> Result<Vec<Value>, ErrorResponse> {
    let items = body.get("items").and_then(Value::as_array);
    let Some(items) =
        items.filter(|items| items.len() <= MAX_ITEMS_AT_ONCE && items.iter().all(Value::is_object))
    else {
        let message = format!("Invalid 'items': expected a list of at most {MAX_ITEMS_AT_ONCE} items.");
        return Err(invalid_parameter("items", &message));
    };
    let ids = &request.resource.id_generator;
    let chain_key = ids.new_chain_key();
    let with_id = |item: &Value| {
        let mut item = item.clone();
        if let Some(map) = item.as_object_mut() {
            map.entry("type").or_insert(json!("message"));
            map.entry("id").or_insert_with(|| json!(ids.new_chained_id("msg_", &chain_key)));
            map.entry("status").or_insert(json!("completed"));
        }
        expand_content(&mut item);
        item
    };
    Ok(items.iter().map(with_id).collect())
}
