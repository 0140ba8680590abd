//! The output of a response: reasoning if it is asked for, then a message or a tool call.

use serde_json::{Value, json};

use super::references::encrypted_content_prefix;
use crate::demo::operations::shared::text_model::{
    REASONING_TOKENS, content_text, echo_text, name_of_tool_to_call, truncate_to_tokens,
};
use crate::demo::resource::state::ResourceState;

/// What the model generates for a request.
pub(super) struct GeneratedOutput {
    pub(super) items: Vec<Value>,
    /// The text of the message, or the arguments of the tool call.
    pub(super) text_or_arguments: String,
    pub(super) is_truncated: bool,
    pub(super) reasoning_tokens: u64,
}

/// Generates the output for the given input items.
pub(super) fn generate_output(
    resource: &ResourceState,
    body: &Value,
    input_items: &[Value],
    max_output_tokens: Option<u64>,
) -> GeneratedOutput {
    let ids = &resource.id_generator;
    let user_text = last_user_text(input_items);
    let mut items: Vec<Value> = reasoning_item_if_requested(resource, body).into_iter().collect();
    let reasoning_tokens = if items.is_empty() { 0 } else { REASONING_TOKENS };
    let tool_result = input_items
        .last()
        .filter(|item| item.get("type").and_then(Value::as_str) == Some("function_call_output"));
    if let Some(name) = name_of_tool_to_call(body, &user_text).filter(|_| tool_result.is_none()) {
        let arguments = json!({"input": user_text}).to_string();
        items.push(json!({
            "id": ids.new_hex_id("fc_", 48), "type": "function_call", "status": "completed",
            "call_id": ids.new_alphanumeric_id("call_", 24), "name": name, "arguments": arguments,
        }));
        return GeneratedOutput {
            items,
            text_or_arguments: arguments,
            is_truncated: false,
            reasoning_tokens,
        };
    }
    let text = match tool_result {
        Some(item) => {
            format!("The tool said: {}", item.get("output").map(content_text).unwrap_or_default())
        }
        None => echo_text(&user_text),
    };
    let (text, is_truncated) = truncate_to_tokens(&text, max_output_tokens);
    items.push(json!({
        "id": ids.new_hex_id("msg_", 48), "type": "message", "role": "assistant",
        "status": if is_truncated { "incomplete" } else { "completed" },
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }));
    GeneratedOutput { items, text_or_arguments: text, is_truncated, reasoning_tokens }
}

fn last_user_text(items: &[Value]) -> String {
    let is_of_user = |item: &&Value| item.get("role").and_then(Value::as_str) == Some("user");
    let item = items.iter().rev().find(is_of_user);
    item.and_then(|item| item.get("content")).map(content_text).unwrap_or_default()
}

/// A reasoning item, if the request asks for an effort or for encrypted reasoning.
fn reasoning_item_if_requested(resource: &ResourceState, body: &Value) -> Option<Value> {
    let wants_encrypted_content = body.get("include").and_then(Value::as_array).is_some_and(|include| {
        include.iter().any(|name| name.as_str() == Some("reasoning.encrypted_content"))
    });
    let has_effort =
        body.pointer("/reasoning/effort").and_then(Value::as_str).is_some_and(|effort| effort != "none");
    if !wants_encrypted_content && !has_effort {
        return None;
    }
    let ids = &resource.id_generator;
    let mut item = json!({"id": ids.new_hex_id("rs_", 48), "type": "reasoning", "summary": []});
    if let Some(map) = item.as_object_mut().filter(|_| wants_encrypted_content) {
        let encrypted = format!("{}{}", encrypted_content_prefix(resource), ids.new_alphanumeric_id("", 64));
        map.insert("encrypted_content".to_owned(), json!(encrypted));
    }
    Some(item)
}
