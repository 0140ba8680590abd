//! References of a request to what a resource has given out earlier: responses, items, files and encrypted
//! reasoning. Those of another resource are refused.

use serde_json::Value;

use crate::demo::api::error_response::{invalid_request_error, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::ErrorResponse;
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::resource::response_store::ResponseStore;
use crate::demo::resource::state::ResourceState;
use crate::demo::util::encoding::base64_encode;
use crate::demo::util::locking::lock_ignoring_poison;

/// Checks that this resource knows all that the input items refer to.
///
/// # Errors
/// 400 for reasoning that another resource encrypted, 404 for an unknown item or file.
pub(super) fn check_references(request: &SimulatedRequest, items: &[Value]) -> Result<(), ErrorResponse> {
    for item in items {
        if let Some(encrypted) = item.get("encrypted_content").and_then(Value::as_str)
            && !encrypted.starts_with(&encrypted_content_prefix(request.resource))
        {
            return Err(SimulatedError::InvalidEncryptedContent.into());
        }
        if item.get("type").and_then(Value::as_str) == Some("item_reference") {
            let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
            if !lock_ignoring_poison(&request.resource.responses).has_output_item(id) {
                return Err(not_found("Item", id));
            }
        }
        let parts = item.get("content").and_then(Value::as_array).into_iter().flatten();
        for id in parts.filter_map(|part| part.get("file_id").and_then(Value::as_str)) {
            if lock_ignoring_poison(&request.resource.files).file(id).is_none() {
                return Err(not_found("File", id));
            }
        }
    }
    Ok(())
}

/// The conversation up to the response that `previous_response_id` names; empty if the request names none.
///
/// # Errors
/// 400 if neither the WebSocket nor the resource knows the response.
pub(super) fn previous_conversation(
    request: &SimulatedRequest,
    body: &Value,
    connection_store: Option<&ResponseStore>,
) -> Result<String, ErrorResponse> {
    let Some(id) = body.get("previous_response_id").and_then(Value::as_str) else { return Ok(String::new()) };
    let conversation = |store: &ResponseStore| store.get(id).map(|stored| stored.conversation_text.clone());
    connection_store
        .and_then(conversation)
        .or_else(|| conversation(&lock_ignoring_poison(&request.resource.responses)))
        .ok_or_else(|| {
            let message = format!("Previous response with id '{id}' not found.");
            Box::new(invalid_request_error(
                400,
                &message,
                Some("previous_response_id"),
                Some("previous_response_not_found"),
            ))
        })
}

/// The beginning of everything that this resource encrypts, by which it recognizes its own.
pub(super) fn encrypted_content_prefix(resource: &ResourceState) -> String {
    format!("gAAAAAB{}", base64_encode(resource.reasoning_key_id.as_bytes()).trim_end_matches('='))
}
