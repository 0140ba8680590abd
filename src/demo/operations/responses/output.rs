//! The output of a response: reasoning, calls of hosted tools, then a message or the call of a function.

use serde_json::{Value, json};

use super::hosted_tools::run_hosted_tools;
use super::output_context::OutputContext;
use super::references::{content_file_ids, encrypt_content};
use crate::demo::api::response::ErrorResponse;
use crate::demo::operations::files::find_file;
use crate::demo::operations::shared::json_output::responses_json_output;
use crate::demo::operations::shared::text_model::{
    REASONING_TOKENS, continued_text, echo_text, function_arguments, is_reasoning_model, tool_to_call,
    truncate_to_tokens,
};
use crate::demo::util::json::{content_text, text_member};

/// What the model generates for a request.
#[derive(Default)]
pub(super) struct GeneratedOutput {
    pub(super) items: Vec<Value>,
    /// The text of the message, or the arguments of the tool call.
    pub(super) text_or_arguments: String,
    pub(super) is_truncated: bool,
    pub(super) reasoning_tokens: u64,
}

/// Generates the output of a response.
///
/// # Errors
/// 400 for an invalid JSON schema.
pub(super) fn generate_output(context: &OutputContext) -> Result<GeneratedOutput, ErrorResponse> {
    let user_text = user_text(context);
    let mut items: Vec<Value> = reasoning_item_if_requested(context, &user_text)?.into_iter().collect();
    let reasoning_tokens = if items.is_empty() { 0 } else { REASONING_TOKENS };
    let last_item = context.items.last();
    let is_tool_result = last_item.and_then(|item| text_member(item, "type")) == Some("function_call_output");
    if let Some(tool) = tool_to_call(context.body, &user_text).filter(|_| !is_tool_result) {
        let arguments = function_arguments(tool, &user_text);
        let ids = &context.request.resource.id_generator;
        items.push(json!({
            "id": context.new_item_id("fc_"), "type": "function_call", "status": "completed",
            "call_id": ids.new_alphanumeric_id("call_", 24), "name": text_member(tool, "name"), "arguments": arguments,
        }));
        return Ok(GeneratedOutput {
            items,
            text_or_arguments: arguments,
            is_truncated: false,
            reasoning_tokens,
        });
    }
    let plain_text = message_text(context, &user_text);
    if let Some(document) = responses_json_output(context.body, &context.history.text, &plain_text)? {
        return Ok(with_message(context, items, &document, &[], reasoning_tokens));
    }
    let (mut text, mut annotations) = (plain_text, Vec::new());
    for outcome in run_hosted_tools(context, &user_text)? {
        items.push(outcome.item);
        if outcome.awaits_client {
            let text_or_arguments = String::new();
            return Ok(GeneratedOutput { items, text_or_arguments, is_truncated: false, reasoning_tokens });
        }
        text.push(' ');
        let start = text.chars().count();
        annotations.extend(outcome.annotations.into_iter().map(|annotation| moved_by(annotation, start)));
        text.push_str(&outcome.sentence);
    }
    Ok(with_message(context, items, &text, &annotations, reasoning_tokens))
}

/// The output that ends in a message.
fn with_message(
    context: &OutputContext,
    mut items: Vec<Value>,
    text: &str,
    annotations: &[Value],
    reasoning_tokens: u64,
) -> GeneratedOutput {
    let (text, is_truncated) = truncate_to_tokens(text, context.max_output_tokens);
    let annotations = if is_truncated { &[] } else { annotations };
    items.push(json!({
        "id": context.new_item_id("msg_"), "type": "message", "role": "assistant",
        "status": if is_truncated { "incomplete" } else { "completed" },
        "content": [{"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}],
    }));
    GeneratedOutput { items, text_or_arguments: text, is_truncated, reasoning_tokens }
}

/// What the message says, without what hosted tools add.
fn message_text(context: &OutputContext, user_text: &str) -> String {
    let last_item = context.items.last();
    let last_type = last_item.and_then(|item| text_member(item, "type")).unwrap_or_default();
    let mut text = match (last_type, last_item) {
        ("function_call_output", Some(item)) => {
            format!("The tool said: {}", item.get("output").map(content_text).unwrap_or_default())
        }
        ("mcp_approval_response", Some(item)) => {
            let is_approved = item.get("approve").and_then(Value::as_bool).unwrap_or(false);
            format!("The tool was {}.", if is_approved { "approved" } else { "denied" })
        }
        _ if !context.history.thoughts.is_empty() && asks(user_text, "what did you think") => {
            format!("I thought: {}", context.history.thoughts.join(" | "))
        }
        _ if asks(user_text, "what did i say") => {
            let earlier = context.history.user_texts.split_last().map(|(_, earlier)| earlier);
            format!("You said: {}", earlier.unwrap_or_default().join(" | "))
        }
        _ => echo_text(user_text),
    };
    for file_id in context.items.iter().flat_map(content_file_ids) {
        if let Ok(file) = find_file(context.request, file_id) {
            let name = text_member(&file.metadata, "filename").unwrap_or_default();
            text.push_str(&format!(" I read {name}, {} bytes.", file.content.len()));
        }
    }
    continued_text(text, &context.history.user_texts)
}

fn asks(user_text: &str, question: &str) -> bool {
    user_text.to_ascii_lowercase().contains(question)
}

/// What the user said last: in the input, or else earlier in the conversation.
fn user_text(context: &OutputContext) -> String {
    let is_of_user = |item: &&Value| text_member(item, "role") == Some("user");
    let item = context.items.iter().rev().find(is_of_user);
    let text = item.and_then(|item| item.get("content")).map(content_text);
    text.or_else(|| context.history.user_texts.last().cloned()).unwrap_or_default()
}

/// A reasoning item, if the request asks for an effort or for encrypted reasoning, or if a reasoning model
/// has to return its reasoning because nothing is stored.
fn reasoning_item_if_requested(
    context: &OutputContext,
    user_text: &str,
) -> Result<Option<Value>, ErrorResponse> {
    let body = context.body;
    let effort = body.pointer("/reasoning/effort").and_then(Value::as_str);
    let is_unstored = body.get("store").and_then(Value::as_bool) == Some(false);
    let is_encrypted = context.includes("reasoning.encrypted_content")
        || (is_unstored && effort != Some("none") && is_reasoning_model(&context.deployment.model));
    if !is_encrypted && effort.is_none_or(|effort| effort == "none") {
        return Ok(None);
    }
    let mut item = json!({"id": context.new_item_id("rs_"), "type": "reasoning", "summary": []});
    if let Some(map) = item.as_object_mut().filter(|_| is_encrypted) {
        map.insert("encrypted_content".to_owned(), json!(encrypt_content(context.request, user_text)?));
    }
    Ok(Some(item))
}

/// An annotation whose sentence begins at this character of the message.
fn moved_by(mut annotation: Value, start: usize) -> Value {
    for name in ["index", "start_index", "end_index"] {
        if let Some(index) = annotation.get_mut(name) {
            *index = json!(index.as_u64().unwrap_or(0) + start as u64);
        }
    }
    annotation
}
