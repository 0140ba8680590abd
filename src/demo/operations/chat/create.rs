//! `POST /chat/completions`, and the same for a line of a batch.

use serde_json::Value;

use super::completion::ChatCompletion;
use super::request::ChatRequest;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse, StreamFormat};
use crate::demo::api::sse::EVENT_STREAM_CONTENT_TYPE;
use crate::demo::resource::definition::SimulatedDeployment;
use crate::demo::resource::prompt_cache::CachedPrompt;
use crate::demo::resource::rate_limiter::RequestCost;

/// `POST /chat/completions`
pub(in crate::demo::operations) fn create_chat_completion(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let deployment = request.requested_deployment(body.get("model").and_then(Value::as_str))?;
    let chat_request = ChatRequest::from_body(request, deployment, &body)?;
    let cached_prompt = chat_request.look_up_and_cache_prompt(request, deployment, &body);
    let cost = RequestCost {
        prompt_characters: chat_request.prompt.len() as u64,
        cached_prompt_tokens: cached_prompt.cached_tokens,
        max_output_tokens: chat_request.max_tokens_per_choice.unwrap_or(0) * chat_request.choice_count,
    };
    let admission = request.admit_to_deployment(deployment, cost)?;
    let ids = &request.resource.id_generator;
    let completion = ChatCompletion::generate(ids, deployment, &chat_request, cached_prompt);
    let response = if chat_request.is_streaming {
        let events = completion.to_events(ids, &body);
        SimulatedResponse::from_events(StreamFormat::Chat, EVENT_STREAM_CONTENT_TYPE, events)
    } else {
        SimulatedResponse::from_json(200, &completion.to_json())
    };
    let billed_input_tokens = completion.input_tokens.saturating_sub(cached_prompt.cached_tokens);
    Ok(admission.add_headers_and_charge(response, billed_input_tokens, completion.output_tokens))
}

/// The response body for one line of a batch.
pub(in crate::demo::operations) fn chat_completion_for_batch_line(
    request: &SimulatedRequest,
    deployment: &SimulatedDeployment,
    body: &Value,
) -> Result<Value, ErrorResponse> {
    let chat_request = ChatRequest::from_body(request, deployment, body)?;
    let cached_prompt = CachedPrompt::default();
    let ids = &request.resource.id_generator;
    Ok(ChatCompletion::generate(ids, deployment, &chat_request, cached_prompt).to_json())
}
