//! References of a request to what a resource has given out earlier: responses, conversations, items, files,
//! stores, containers and encrypted content. Those of another resource are refused.

use serde_json::Value;

use crate::demo::api::error_response::{invalid_parameter, invalid_request_error, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::ErrorResponse;
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::operations::containers::find_container;
use crate::demo::operations::conversations::conversation_items;
use crate::demo::operations::files::find_file;
use crate::demo::operations::vector_stores::find_vector_store;
use crate::demo::resource::conversation_history::{ConversationHistory, UnknownCall};
use crate::demo::resource::response_store::ResponseStore;
use crate::demo::util::json::{text_list, text_member};
use crate::demo::util::locking::lock_ignoring_poison;

/// Characters of a token at its beginning and end that an error message quotes.
const QUOTED_CHARACTERS: usize = 4;
/// How deep `encrypted_content` may be nested in an item.
const MAX_NESTING: usize = 8;

/// The conversation up to and including the input.
///
/// # Errors
/// 400 or 404 if the request refers to something that this resource (or this WebSocket) does not have.
pub(super) fn resolve_history(
    request: &SimulatedRequest,
    body: &Value,
    items: &[Value],
    websocket_store: Option<&ResponseStore>,
) -> Result<ConversationHistory, ErrorResponse> {
    let mut history = earlier_history(request, body, websocket_store)?;
    for item in items {
        let encrypted = decrypt_content(request, item, 0)?;
        for file_id in content_file_ids(item) {
            find_file(request, file_id)?;
        }
        match (text_member(item, "type"), encrypted) {
            (Some("compaction"), Some(text)) => history.add_compact_text(&text),
            (Some("reasoning"), Some(text)) => history.thoughts.push(text),
            // A client that leaves the content of reasoning away wants it to be found.
            (Some("item_reference" | "reasoning"), None) => {
                if let Some(id) = text_member(item, "id") {
                    let known = find_item(request, body, id, websocket_store)?;
                    history.add_item(&known).map_err(|unknown| no_such_call(&unknown))?;
                }
            }
            (Some("mcp_approval_response"), _) => {
                let id = text_member(item, "approval_request_id").unwrap_or_default();
                let is_given = items.iter().any(|other| text_member(other, "id") == Some(id));
                if !is_given {
                    find_item(request, body, id, websocket_store)?;
                }
            }
            _ => history.add_item(item).map_err(|unknown| no_such_call(&unknown))?,
        }
    }
    if let Some(call_id) = history.unanswered_call_id() {
        let message = format!("No tool output found for function call {call_id}.");
        return Err(invalid_parameter("input", &message));
    }
    Ok(history)
}

/// Checks that this resource has what the tools of a request refer to.
///
/// # Errors
/// 404 for an unknown vector store, container or file.
pub(super) fn check_tools(request: &SimulatedRequest, body: &Value) -> Result<(), ErrorResponse> {
    let tools = body.get("tools").and_then(Value::as_array);
    for tool in tools.into_iter().flatten() {
        for id in text_list(tool, "vector_store_ids") {
            find_vector_store(request, id)?;
        }
        let places = [tool.get("container"), tool.get("environment")];
        for place in places.into_iter().flatten() {
            if let Some(id) = place.as_str().or_else(|| text_member(place, "container_id")) {
                find_container(request, id)?;
            }
            for id in text_list(place, "file_ids") {
                find_file(request, id)?;
            }
        }
    }
    Ok(())
}

/// The ids of the files that the content of a message refers to.
pub(super) fn content_file_ids(item: &Value) -> impl Iterator<Item = &str> {
    let parts = item.get("content").and_then(Value::as_array);
    parts.into_iter().flatten().filter_map(|part| text_member(part, "file_id"))
}

/// What came before the input.
fn earlier_history(
    request: &SimulatedRequest,
    body: &Value,
    websocket_store: Option<&ResponseStore>,
) -> Result<ConversationHistory, ErrorResponse> {
    let previous_id = text_member(body, "previous_response_id");
    match (previous_id, conversation_id(body)) {
        (Some(_), Some(_)) => {
            let message = "Mutually exclusive parameters: Ensure you are only providing one of: 'previous_response_id' or \
                           'conversation'.";
            let code = Some("mutually_exclusive_parameters");
            Err(Box::new(invalid_request_error(400, message, Some("previous_response_id"), code)))
        }
        (Some(id), None) => {
            let now = request.received_at;
            let history = |store: &ResponseStore| store.get(id, now).map(|stored| stored.history.clone());
            websocket_store
                .and_then(history)
                .or_else(|| history(&lock_ignoring_poison(&request.resource.responses)))
                .ok_or_else(|| {
                    let message = format!("Previous response with id '{id}' not found.");
                    let code = Some("previous_response_not_found");
                    Box::new(invalid_request_error(400, &message, Some("previous_response_id"), code))
                })
        }
        (None, Some(id)) => {
            let mut history = ConversationHistory::default();
            for item in conversation_items(request, id)? {
                history.add_item(&item).map_err(|unknown| no_such_call(&unknown))?;
            }
            Ok(history)
        }
        (None, None) => Ok(ConversationHistory::default()),
    }
}

/// The conversation that a request names, as text or as an object.
pub(super) fn conversation_id(body: &Value) -> Option<&str> {
    let conversation = body.get("conversation")?;
    conversation.as_str().or_else(|| text_member(conversation, "id"))
}

/// An item of an earlier response, or of the conversation.
fn find_item(
    request: &SimulatedRequest,
    body: &Value,
    id: &str,
    websocket_store: Option<&ResponseStore>,
) -> Result<Value, ErrorResponse> {
    let item = |store: &ResponseStore| store.item(id, request.received_at).cloned();
    let in_conversation = || {
        let items = conversation_items(request, conversation_id(body)?).ok()?;
        items.into_iter().find(|item| text_member(item, "id") == Some(id))
    };
    let store = lock_ignoring_poison(&request.resource.responses);
    let found = websocket_store.and_then(item).or_else(|| item(&store));
    let is_unstored = store.is_unstored_item(id) || body.get("store").and_then(Value::as_bool) == Some(false);
    drop(store);
    found.or_else(in_conversation).ok_or_else(|| {
        let reason = if is_unstored {
            " Items are not persisted when `store` is set to false. Try again with `store` set to true, or remove this \
             item from your input."
        } else {
            ""
        };
        let message = format!("Item with id '{id}' not found.{reason}");
        Box::new(invalid_request_error(404, &message, Some("input"), None))
    })
}

/// The text that was encrypted into an item, if any; nested tokens are only verified.
fn decrypt_content(
    request: &SimulatedRequest,
    value: &Value,
    nesting: usize,
) -> Result<Option<String>, ErrorResponse> {
    let mut own_text = None;
    match value {
        Value::Object(members) if nesting < MAX_NESTING => {
            for (name, member) in members {
                match member {
                    Value::String(token) if name == "encrypted_content" => {
                        let text = request.resource.encryption_key.decrypt(token);
                        own_text = Some(text.ok_or_else(|| not_verified(token))?);
                    }
                    member => _ = decrypt_content(request, member, nesting + 1)?,
                }
            }
        }
        Value::Array(elements) if nesting < MAX_NESTING => {
            for element in elements {
                decrypt_content(request, element, nesting + 1)?;
            }
        }
        _ => {}
    }
    Ok(own_text)
}

/// Encrypts a text so that only this resource can read it.
///
/// # Errors
/// 500 if OpenSSL cannot.
pub(super) fn encrypt_content(request: &SimulatedRequest, text: &str) -> Result<String, ErrorResponse> {
    let resource = request.resource;
    resource
        .encryption_key
        .encrypt(&resource.id_generator, text)
        .map_err(|_| SimulatedError::ServerError.into())
}

fn not_verified(token: &str) -> ErrorResponse {
    let characters: Vec<char> = token.chars().collect();
    let start: String = characters.iter().take(QUOTED_CHARACTERS).collect();
    let end: String = characters.iter().skip(characters.len().saturating_sub(QUOTED_CHARACTERS)).collect();
    let message = format!(
        "The encrypted content {start}...{end} could not be verified. Reason: Encrypted content could not be decrypted or \
         parsed."
    );
    Box::new(invalid_request_error(400, &message, None, Some("invalid_encrypted_content")))
}

fn no_such_call(unknown: &UnknownCall) -> ErrorResponse {
    let message = format!("No tool call found for function call output with call_id {}.", unknown.call_id);
    invalid_parameter("input", &message)
}

/// 404 for a response that this resource does not have, or that cannot be read yet.
pub(super) fn response_not_found(id: &str) -> ErrorResponse {
    not_found("Response", id)
}
