//! Creates a response: complete, streamed or in the background, over HTTP or on a WebSocket.

use std::time::Duration;

use serde_json::{Value, json};

use super::output::{GeneratedOutput, generate_output};
use super::output_context::OutputContext;
use super::references::{check_tools, conversation_id, resolve_history};
use super::response_object::ResponseObject;
use crate::demo::api::error_response::invalid_parameter;
use crate::demo::api::request::{DeploymentAdmission, SimulatedRequest};
use crate::demo::api::response::ErrorResponse;
use crate::demo::operations::conversations::append_items;
use crate::demo::operations::shared::parameters::{positive_integer, unsupported_operation_response};
use crate::demo::operations::shared::service_tier::ServiceTier;
use crate::demo::operations::shared::stream_options::{obfuscation_padding, stream_option_flag};
use crate::demo::operations::shared::text_model::{count_tokens, count_tokens_up_to};
use crate::demo::operations::shared::usage::input_details;
use crate::demo::resource::conversation_history::ConversationHistory;
use crate::demo::resource::definition::SimulatedDeployment;
use crate::demo::resource::prompt_cache::CachedPrompt;
use crate::demo::resource::rate_limiter::RequestCost;
use crate::demo::resource::response_store::{Readability, ResponseStore, StoredResponse};
use crate::demo::resource::stream_end::StreamedResponse;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::ids::{ChainKey, IdGenerator};
use crate::demo::util::json::{content_text, expand_content, text_member};
use crate::demo::util::locking::lock_ignoring_poison;

/// A response that was created.
pub(super) struct CreatedResponse<'a> {
    pub(super) stream_events: Vec<Value>,
    /// Set if the response is streamed.
    pub(super) streamed: Option<StreamedResponse>,
    pub(super) response_json: Value,
    pub(super) admission: DeploymentAdmission<'a>,
    pub(super) billed_input_tokens: u64,
    pub(super) output_tokens: u64,
}

/// A request that was admitted, with its whole conversation.
pub(super) struct PreparedRequest<'a> {
    pub(super) deployment: &'a SimulatedDeployment,
    pub(super) admission: DeploymentAdmission<'a>,
    pub(super) chain_key: ChainKey,
    pub(super) items: Vec<Value>,
    pub(super) history: ConversationHistory,
    pub(super) input_tokens: u64,
    pub(super) cached_prompt: CachedPrompt,
    max_output_tokens: Option<u64>,
    service_tier: ServiceTier,
}

/// Creates a response.
///
/// `websocket_store` is that of a WebSocket: it knows the responses that were created on it, also those that
/// are not stored, as long as the WebSocket is open. With `generate: false`, a response that is created there has no
/// output: it only warms up what the next turn needs.
///
/// # Errors
/// 400, 404 or 429.
pub(super) fn create_response<'a>(
    request: &SimulatedRequest<'a>,
    body: &Value,
    websocket_store: Option<&mut ResponseStore>,
) -> Result<CreatedResponse<'a>, ErrorResponse> {
    let flag = |name: &str, default: bool| body.get(name).and_then(Value::as_bool).unwrap_or(default);
    let is_background = flag("background", false);
    if is_background && !flag("store", true) {
        return Err(invalid_parameter("background", "Background mode requires 'store' to be true."));
    }
    if is_background && websocket_store.is_some() {
        return Err(invalid_parameter("background", "Background mode is not supported over WebSocket."));
    }
    let is_warm_up = websocket_store.is_some() && !flag("generate", true);
    let mut prepared = prepare_request(request, body, websocket_store.as_deref())?;
    let output = if is_warm_up {
        GeneratedOutput::default()
    } else {
        generate_output(&OutputContext {
            request,
            body,
            deployment: prepared.deployment,
            chain_key: &prepared.chain_key,
            items: &prepared.items,
            history: &prepared.history,
            max_output_tokens: prepared.max_output_tokens,
        })?
    };
    let output_tokens =
        count_tokens_up_to(&output.text_or_arguments, prepared.max_output_tokens) + output.reasoning_tokens;
    let ids = &request.resource.id_generator;
    let object = ResponseObject {
        id: ids.new_chained_id("resp_", &prepared.chain_key),
        created_at: unix_seconds_now(),
        deployment_name: prepared.deployment.name.clone(),
        output_items: output.items.clone(),
        is_truncated: output.is_truncated,
        usage: prepared.usage(output_tokens, output.reasoning_tokens),
        service_tier: prepared.service_tier,
    };
    let obfuscates = stream_option_flag(body, "include_obfuscation", true);
    let stream_events = object.to_stream_events(body, || obfuscates.then(|| obfuscation_padding(ids)));
    let finished_json = object.to_finished_json(body);
    let response_json =
        if is_background { object.to_pending_json(body, "queued") } else { finished_json.clone() };
    let is_streamed = flag("stream", false) || websocket_store.is_some();
    let streamed =
        is_streamed.then(|| StreamedResponse { id: object.id.clone(), read_lag: request.read_lag });
    // Clients read a background response while it is streamed, to go on with its stream.
    let is_lagging = is_streamed && !is_background && !request.read_lag.is_zero();
    remember_output(&mut prepared.history, &output);
    let background_duration = request.resource.definition.background_response_duration;
    let stored = StoredResponse {
        id: object.id.clone(),
        finished_json,
        pending_json: object.to_pending_json(body, "in_progress"),
        history: prepared.history,
        input_items: prepared.items.clone(),
        stream_events: stream_events.clone(),
        created_at: request.received_at,
        finishes_at: request.received_at + if is_background { background_duration } else { Duration::ZERO },
        is_cancelled: false,
        readability: if is_lagging { Readability::WhileStreamed } else { Readability::Immediate },
    };
    if request.keeps_responses {
        if let Some(id) = conversation_id(body) {
            append_items(request, id, prepared.items.iter().chain(&output.items));
        }
        if let Some(store) = websocket_store {
            store.insert(StoredResponse { readability: Readability::Immediate, ..stored.clone() });
        }
        let mut store = lock_ignoring_poison(&request.resource.responses);
        if flag("store", true) {
            store.insert(stored);
        } else {
            store.note_unstored_items(&output.items);
        }
    }
    Ok(CreatedResponse {
        stream_events,
        streamed,
        response_json,
        admission: prepared.admission,
        billed_input_tokens: prepared.input_tokens - prepared.cached_prompt.cached_tokens,
        output_tokens,
    })
}

/// Checks a request, finds all that it refers to, and asks the rate limiter.
///
/// # Errors
/// 400, 404 or 429.
pub(super) fn prepare_request<'a>(
    request: &SimulatedRequest<'a>,
    body: &Value,
    websocket_store: Option<&ResponseStore>,
) -> Result<PreparedRequest<'a>, ErrorResponse> {
    let deployment = request.requested_deployment(text_member(body, "model"))?;
    if deployment.model.contains("embedding") {
        return Err(Box::new(unsupported_operation_response("responses", &deployment.model)));
    }
    let max_output_tokens = positive_integer(body, "max_output_tokens")?;
    let service_tier = ServiceTier::from_body(body)?;
    let ids = &request.resource.id_generator;
    let chain_key = ids.new_chain_key();
    let items = parse_input_items(ids, &chain_key, body)?;
    check_tools(request, body)?;
    let history = resolve_history(request, body, &items, websocket_store)?;
    let prompt = prompt_text(body, &history);
    let cache_key = text_member(body, "prompt_cache_key").unwrap_or_default();
    let input_tokens = count_tokens(&prompt);
    let cached_prompt = request
        .resource
        .look_up_and_cache_prompt(deployment, cache_key, &prompt, request.received_at)
        .within(input_tokens);
    let cost = RequestCost {
        prompt_characters: prompt.len() as u64,
        cached_prompt_tokens: cached_prompt.cached_tokens,
        max_output_tokens: max_output_tokens.unwrap_or(0),
    };
    let admission = request.admit_to_deployment(deployment, cost)?;
    Ok(PreparedRequest {
        deployment,
        admission,
        chain_key,
        items,
        history,
        input_tokens,
        cached_prompt,
        service_tier,
        max_output_tokens,
    })
}

impl PreparedRequest<'_> {
    pub(super) fn usage(&self, output_tokens: u64, reasoning_tokens: u64) -> Value {
        json!({
            "input_tokens": self.input_tokens, "input_tokens_details": input_details(self.cached_prompt),
            "output_tokens": output_tokens, "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": self.input_tokens + output_tokens,
        })
    }
}

/// The output becomes part of the conversation. Its items answer no calls, so that none can be unknown.
fn remember_output(history: &mut ConversationHistory, output: &GeneratedOutput) {
    for item in &output.items {
        if history.add_item(item).is_err() {
            log::warn!("simulate: the output of a response answers a call that nobody made");
        }
    }
}

/// The input as a list of items, each with a type and an id.
fn parse_input_items(
    ids: &IdGenerator,
    chain_key: &ChainKey,
    body: &Value,
) -> Result<Vec<Value>, ErrorResponse> {
    let refers_to_earlier =
        body.get("previous_response_id").is_some_and(Value::is_string) || conversation_id(body).is_some();
    let items = match body.get("input") {
        Some(Value::String(text)) => {
            vec![
                json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}),
            ]
        }
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => items.clone(),
        None | Some(Value::Null) if refers_to_earlier => Vec::new(),
        _ => return Err(invalid_parameter("input", "Missing required parameter: 'input'.")),
    };
    let with_id = |mut item: Value| {
        if let Some(map) = item.as_object_mut() {
            // An item with an id and nothing else is a reference, too.
            let is_reference = !map.contains_key("role") && !map.contains_key("content");
            let kind =
                map.entry("type").or_insert(json!(if is_reference { "item_reference" } else { "message" }));
            if *kind != "item_reference" && *kind != "reasoning" {
                map.entry("id").or_insert_with(|| json!(ids.new_chained_id("msg_", chain_key)));
            }
        }
        expand_content(&mut item);
        item
    };
    Ok(items.into_iter().map(with_id).collect())
}

/// All that the model would read as one text: instructions, tools, the conversation.
fn prompt_text(body: &Value, history: &ConversationHistory) -> String {
    let mut prompt = history.text.clone();
    let tools = body.get("tools").map(Value::to_string);
    let instructions = body.get("instructions").map(content_text);
    for part in [tools, instructions].into_iter().flatten() {
        prompt.insert_str(0, &format!("{part}\n"));
    }
    prompt
}
