//! Creates a response: complete, streamed or in the background, over HTTP or on a WebSocket.

use serde_json::{Value, json};

use super::output::generate_output;
use super::references::{check_references, previous_conversation};
use super::response_object::ResponseObject;
use crate::demo::api::error_response::invalid_parameter;
use crate::demo::api::request::{DeploymentAdmission, SimulatedRequest};
use crate::demo::api::response::ErrorResponse;
use crate::demo::operations::shared::parameters::{positive_integer, unsupported_operation_response};
use crate::demo::operations::shared::stream_options::{obfuscation_padding, stream_option_flag};
use crate::demo::operations::shared::text_model::{content_text, count_tokens, count_tokens_up_to};
use crate::demo::resource::rate_limiter::RequestCost;
use crate::demo::resource::response_store::{ResponseStore, StoredResponse};
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::ids::IdGenerator;
use crate::demo::util::locking::lock_ignoring_poison;

/// A response that was created.
pub(in crate::demo::operations) struct CreatedResponse<'a> {
    pub(in crate::demo::operations) stream_events: Vec<Value>,
    pub(super) response_json: Value,
    pub(super) admission: DeploymentAdmission<'a>,
    /// Input tokens that were not cached.
    pub(super) billed_input_tokens: u64,
    pub(super) output_tokens: u64,
}

/// Creates a response.
///
/// `connection_store` is that of a WebSocket: it keeps the responses that are not to be stored, as long as
/// the WebSocket is open.
///
/// # Errors
/// 400, 404 or 429.
pub(in crate::demo::operations) fn create_response<'a>(
    request: &SimulatedRequest<'a>,
    body: &Value,
    connection_store: Option<&mut ResponseStore>,
) -> Result<CreatedResponse<'a>, ErrorResponse> {
    let deployment = request.requested_deployment(body.get("model").and_then(Value::as_str))?;
    if deployment.model.contains("embedding") {
        return Err(Box::new(unsupported_operation_response("responses", &deployment.model)));
    }
    let flag = |name: &str, default: bool| body.get(name).and_then(Value::as_bool).unwrap_or(default);
    let (is_stored, is_background) = (flag("store", true), flag("background", false));
    if is_background && !is_stored {
        return Err(invalid_parameter("background", "Background mode requires 'store' to be true."));
    }
    let max_output_tokens = positive_integer(body, "max_output_tokens")?;
    let items = parse_input_items(&request.resource.id_generator, body)?;
    check_references(request, &items)?;
    let previous = previous_conversation(request, body, connection_store.as_deref())?;
    let mut conversation = conversation_text(previous, body, &items);
    let cache_key = body.get("prompt_cache_key").and_then(Value::as_str).unwrap_or_default();
    let input_tokens = count_tokens(&conversation);
    let cached_tokens = request
        .resource
        .count_cached_tokens_and_insert_prompt(
            &deployment.name,
            cache_key,
            &conversation,
            request.received_at,
        )
        .min(input_tokens);
    let cost = RequestCost {
        prompt_characters: conversation.len() as u64,
        cached_prompt_tokens: cached_tokens,
        max_output_tokens: max_output_tokens.unwrap_or(0),
    };
    let admission = request.admit_to_deployment(deployment, cost)?;

    let output = generate_output(request.resource, body, &items, max_output_tokens);
    let output_tokens =
        count_tokens_up_to(&output.text_or_arguments, max_output_tokens) + output.reasoning_tokens;
    let object = ResponseObject {
        id: request.resource.id_generator.new_hex_id("resp_", 48),
        created_at: unix_seconds_now(),
        deployment_name: deployment.name.clone(),
        output_items: output.items,
        is_truncated: output.is_truncated,
        usage: json!({
            "input_tokens": input_tokens, "input_tokens_details": {"cached_tokens": cached_tokens},
            "output_tokens": output_tokens, "output_tokens_details": {"reasoning_tokens": output.reasoning_tokens},
            "total_tokens": input_tokens + output_tokens,
        }),
    };
    let obfuscates = stream_option_flag(body, "include_obfuscation", true);
    let padding = || obfuscates.then(|| obfuscation_padding(&request.resource.id_generator));
    let stream_events = object.to_stream_events(body, padding);
    let finished_json = object.to_finished_json(body);
    let response_json =
        if is_background { object.to_pending_json(body, "queued") } else { finished_json.clone() };
    conversation.push_str(&format!("assistant {}\n", output.text_or_arguments));
    if is_stored || connection_store.is_some() {
        let background_duration = request.resource.definition.background_response_duration;
        let stored = StoredResponse {
            finished_json,
            pending_json: object.to_pending_json(body, "in_progress"),
            conversation_text: conversation,
            input_items: items,
            stream_events: stream_events.clone(),
            finishes_at: if is_background {
                request.received_at + background_duration
            } else {
                request.received_at
            },
            is_cancelled: false,
        };
        match connection_store {
            Some(store) if !is_stored => store.insert(&object.id, stored),
            _ => lock_ignoring_poison(&request.resource.responses).insert(&object.id, stored),
        }
    }
    let billed_input_tokens = input_tokens - cached_tokens;
    Ok(CreatedResponse { stream_events, response_json, admission, billed_input_tokens, output_tokens })
}

/// The input as a list of items, each with a type and an id.
fn parse_input_items(ids: &IdGenerator, body: &Value) -> Result<Vec<Value>, ErrorResponse> {
    let items = match body.get("input") {
        Some(Value::String(text)) => {
            vec![
                json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}),
            ]
        }
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => items.clone(),
        None if body.get("previous_response_id").is_some_and(Value::is_string) => Vec::new(),
        _ => return Err(invalid_parameter("input", "Missing required parameter: 'input'.")),
    };
    let with_id = |mut item: Value| {
        if let Some(map) = item.as_object_mut() {
            map.entry("type").or_insert(json!("message"));
            map.entry("id").or_insert_with(|| json!(ids.new_hex_id("msg_", 48)));
        }
        item
    };
    Ok(items.into_iter().map(with_id).collect())
}

/// All that the model would read as one text: instructions, tools, the previous conversation, the input.
fn conversation_text(previous: String, body: &Value, items: &[Value]) -> String {
    let mut conversation = previous;
    let tools = body.get("tools").map(Value::to_string);
    let instructions = body.get("instructions").map(content_text);
    for part in [tools, instructions].into_iter().flatten() {
        conversation.insert_str(0, &format!("{part}\n"));
    }
    for item in items {
        let text = item.get("content").or_else(|| item.get("output")).map(content_text).unwrap_or_default();
        let role = item.get("role").and_then(Value::as_str).unwrap_or("item");
        conversation.push_str(&format!("{role} {text}\n"));
    }
    conversation
}
