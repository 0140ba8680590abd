//! Legacy completions: one text for each prompt, complete or streamed.

use serde_json::{Value, json};

use super::shared::parameters::{positive_integer, unsupported_operation_response};
use super::shared::stream_options::{check_stream_options, stream_option_flag};
use super::shared::text_model::{
    count_tokens, count_tokens_up_to, dated_model_name, echo_text, split_into_deltas, truncate_to_tokens,
};
use super::shared::usage::completion_usage;
use crate::demo::api::content_filter::passed_filter_results;
use crate::demo::api::error_response::invalid_parameter;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{
    ErrorResponse, EventRole, OperationResult, SimulatedResponse, StreamFormat,
};
use crate::demo::api::sse::{self, EVENT_STREAM_CONTENT_TYPE};
use crate::demo::resource::prompt_cache::CachedPrompt;
use crate::demo::resource::rate_limiter::RequestCost;
use crate::demo::util::clock::unix_seconds_now;

/// What Azure assumes if a request does not say `max_tokens`.
const RATE_LIMIT_DEFAULT_MAX_TOKENS: u64 = 16;

/// `POST /completions`
pub(super) fn create_completion(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let deployment = request.requested_deployment(body.get("model").and_then(Value::as_str))?;
    if deployment.model.contains("embedding") {
        return Err(Box::new(unsupported_operation_response("completion", &deployment.model)));
    }
    let prompts = parse_prompts(&body)?;
    let is_streaming = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
    check_stream_options(request, &body, is_streaming)?;
    let max_tokens = positive_integer(&body, "max_tokens")?;
    let completions_per_prompt =
        positive_integer(&body, "best_of")?.max(positive_integer(&body, "n")?).unwrap_or(1);
    let cost = RequestCost {
        prompt_characters: prompts.iter().map(|prompt| prompt.len() as u64).sum(),
        cached_prompt_tokens: 0,
        max_output_tokens: max_tokens.unwrap_or(RATE_LIMIT_DEFAULT_MAX_TOKENS) * completions_per_prompt,
    };
    let admission = request.admit_to_deployment(deployment, cost)?;

    let texts: Vec<(String, bool)> =
        prompts.iter().map(|prompt| truncate_to_tokens(&echo_text(prompt), max_tokens)).collect();
    let input_tokens = prompts.iter().map(|prompt| count_tokens(prompt)).sum();
    let output_tokens = texts.iter().map(|(text, _)| count_tokens_up_to(text, max_tokens)).sum();
    let completion = TextCompletion {
        id: request.resource.id_generator.new_alphanumeric_id("cmpl-", 29),
        created_at: unix_seconds_now(),
        model: dated_model_name(&deployment.model),
        texts_with_truncation_flags: texts,
        usage: completion_usage(input_tokens, CachedPrompt::default(), output_tokens, 0),
    };
    let response = if is_streaming {
        completion.to_stream(stream_option_flag(&body, "include_usage", false))
    } else {
        SimulatedResponse::from_json(200, &completion.to_json())
    };
    Ok(admission.add_headers_and_charge(response, input_tokens, output_tokens))
}

/// One text, or a list of texts or token numbers.
fn parse_prompts(body: &Value) -> Result<Vec<String>, ErrorResponse> {
    match body.get("prompt") {
        Some(Value::String(prompt)) => Ok(vec![prompt.clone()]),
        Some(Value::Array(prompts)) => Ok(prompts
            .iter()
            .map(|prompt| prompt.as_str().map_or_else(|| prompt.to_string(), str::to_owned))
            .collect()),
        _ => Err(invalid_parameter("prompt", "Missing required parameter: 'prompt'.")),
    }
}

struct TextCompletion {
    id: String,
    created_at: u64,
    model: String,
    /// The text for each prompt, and whether it was truncated.
    texts_with_truncation_flags: Vec<(String, bool)>,
    usage: Value,
}

impl TextCompletion {
    fn to_json(&self) -> Value {
        let choices: Vec<Value> = self
            .texts_with_truncation_flags
            .iter()
            .enumerate()
            .map(|(index, (text, is_truncated))| {
                choice_object(index, text, Some(finish_reason(*is_truncated)))
            })
            .collect();
        self.completion_object(&json!(choices), Some(self.usage.clone()))
    }

    fn to_stream(&self, wants_usage: bool) -> SimulatedResponse {
        let usage_placeholder = wants_usage.then_some(Value::Null);
        let mut events = Vec::new();
        let mut push = |choices: Value, usage: Option<Value>| {
            events.push(sse::data_event(EventRole::Content, &self.completion_object(&choices, usage)));
        };
        for (index, (text, is_truncated)) in self.texts_with_truncation_flags.iter().enumerate() {
            for delta in split_into_deltas(text) {
                push(json!([choice_object(index, delta, None)]), usage_placeholder.clone());
            }
            let last = json!([choice_object(index, "", Some(finish_reason(*is_truncated)))]);
            push(last, usage_placeholder.clone());
        }
        if wants_usage {
            push(json!([]), Some(self.usage.clone()));
        }
        events.push(sse::done_event());
        SimulatedResponse::from_events(StreamFormat::Chat, EVENT_STREAM_CONTENT_TYPE, events)
    }

    /// The object of a response, or of a chunk.
    fn completion_object(&self, choices: &Value, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id, "object": "text_completion", "created": self.created_at, "model": self.model,
            "choices": choices,
        });
        if let (Some(map), Some(usage)) = (object.as_object_mut(), usage) {
            map.insert("usage".to_owned(), usage);
        }
        object
    }
}

fn choice_object(index: usize, text: &str, finish_reason: Option<&str>) -> Value {
    json!({
        "text": text, "index": index, "finish_reason": finish_reason, "logprobs": null,
        "content_filter_results": passed_filter_results(false),
    })
}

fn finish_reason(is_truncated: bool) -> &'static str {
    if is_truncated { "length" } else { "stop" }
}
