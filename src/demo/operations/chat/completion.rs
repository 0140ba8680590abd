//! A chat completion as an object, and as the events of a stream with the quirks of Azure's.

use serde_json::{Map, Value, json};

use super::request::{ChatOutput, ChatRequest};
use crate::demo::api::content_filter::passed_filter_results;
use crate::demo::api::response::{EventRole, StreamEvent};
use crate::demo::api::sse;
use crate::demo::operations::shared::service_tier::ServiceTier;
use crate::demo::operations::shared::stream_options::{obfuscation_padding, stream_option_flag};
use crate::demo::operations::shared::text_model::{
    count_tokens, count_tokens_up_to, dated_model_name, split_into_deltas, truncate_to_tokens,
};
use crate::demo::operations::shared::usage::completion_usage;
use crate::demo::resource::definition::SimulatedDeployment;
use crate::demo::resource::prompt_cache::CachedPrompt;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::ids::IdGenerator;
use crate::demo::util::json::set_member;

/// What the model has generated for a chat request.
pub(super) struct ChatCompletion {
    id: String,
    created_at: u64,
    model: String,
    choices: Vec<ChatChoice>,
    pub(super) input_tokens: u64,
    cached_prompt: CachedPrompt,
    /// Tokens of all choices, and of the reasoning.
    pub(super) output_tokens: u64,
    reasoning_tokens: u64,
    /// Present only if the request names a tier.
    service_tier: Option<ServiceTier>,
}

struct ChatChoice {
    output: ChatOutput,
    tool_call_id: String,
    finish_reason: &'static str,
}

impl ChatCompletion {
    pub(super) fn generate(
        ids: &IdGenerator,
        deployment: &SimulatedDeployment,
        chat_request: &ChatRequest,
        cached_prompt: CachedPrompt,
    ) -> Self {
        let mut output_tokens = 0;
        let mut choices = Vec::new();
        for index in 0..chat_request.choice_count {
            let (choice, tokens) = ChatChoice::generate(ids, chat_request, index);
            output_tokens += tokens;
            choices.push(choice);
        }
        let input_tokens = count_tokens(&chat_request.prompt);
        Self {
            id: ids.new_alphanumeric_id("chatcmpl-", 29),
            created_at: unix_seconds_now(),
            model: dated_model_name(&deployment.model),
            choices,
            input_tokens,
            cached_prompt: cached_prompt.within(input_tokens),
            output_tokens: output_tokens + chat_request.reasoning_tokens,
            reasoning_tokens: chat_request.reasoning_tokens,
            service_tier: chat_request.named_service_tier,
        }
    }

    fn usage(&self) -> Value {
        completion_usage(self.input_tokens, self.cached_prompt, self.output_tokens, self.reasoning_tokens)
    }

    /// The body of a response that is not streamed.
    pub(super) fn to_json(&self) -> Value {
        let choices: Vec<Value> =
            self.choices.iter().enumerate().map(|(index, choice)| choice.to_json(index)).collect();
        let mut object = json!({
            "id": self.id, "object": "chat.completion", "created": self.created_at, "model": self.model,
            "choices": choices, "usage": self.usage(), "system_fingerprint": "fp_b54fe76834",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": passed_filter_results(true)}],
        });
        if let Some(tier) = self.service_tier {
            set_member(&mut object, "service_tier", json!(tier.as_str()));
        }
        object
    }

    /// The events of a stream.
    ///
    /// Azure begins with a chunk that has no choices, only the filter results of the prompt, and in which id
    /// and model are empty.
    pub(super) fn to_events(&self, ids: &IdGenerator, body: &Value) -> Vec<StreamEvent> {
        let wants_usage = stream_option_flag(body, "include_usage", false);
        let obfuscates = stream_option_flag(body, "include_obfuscation", true);
        let padding = || obfuscates.then(|| obfuscation_padding(ids));
        let mut prompt_results = json!({
            "choices": [], "created": 0, "id": "", "model": "", "object": "",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": passed_filter_results(true)}],
        });
        if let Some(map) = prompt_results.as_object_mut().filter(|_| wants_usage) {
            map.insert("usage".to_owned(), Value::Null);
        }
        let mut events = vec![sse::data_event(EventRole::Preamble, &prompt_results)];
        for (index, choice) in self.choices.iter().enumerate() {
            for (role, delta) in choice.choices_for_each_chunk(index) {
                events.push(sse::data_event(role, &self.to_chunk(delta, padding(), wants_usage)));
            }
        }
        if wants_usage {
            let mut usage_chunk = self.to_chunk(json!([]), None, true);
            if let Some(map) = usage_chunk.as_object_mut() {
                map.insert("usage".to_owned(), self.usage());
            }
            events.push(sse::data_event(EventRole::Content, &usage_chunk));
        }
        events.push(sse::done_event());
        events
    }

    /// One chunk. If the client wants the usage at the end, all chunks before it say `"usage": null`.
    fn to_chunk(&self, choices: Value, padding: Option<String>, has_usage_field: bool) -> Value {
        let mut chunk = Map::new();
        chunk.insert("choices".to_owned(), choices);
        chunk.insert("created".to_owned(), json!(self.created_at));
        chunk.insert("id".to_owned(), json!(self.id));
        chunk.insert("model".to_owned(), json!(self.model));
        if let Some(padding) = padding {
            chunk.insert("obfuscation".to_owned(), json!(padding));
        }
        chunk.insert("object".to_owned(), json!("chat.completion.chunk"));
        if let Some(tier) = self.service_tier {
            chunk.insert("service_tier".to_owned(), json!(tier.as_str()));
        }
        chunk.insert("system_fingerprint".to_owned(), json!("fp_b54fe76834"));
        if has_usage_field {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        Value::Object(chunk)
    }
}

impl ChatChoice {
    /// A choice, and the tokens of its output.
    fn generate(ids: &IdGenerator, chat_request: &ChatRequest, index: u64) -> (Self, u64) {
        let tool_call_id = ids.new_alphanumeric_id("call_", 24);
        match &chat_request.output {
            ChatOutput::ToolCall { arguments, .. } => {
                let tokens = count_tokens(arguments);
                let output = chat_request.output.clone();
                (Self { output, tool_call_id, finish_reason: "tool_calls" }, tokens)
            }
            ChatOutput::Text(text) | ChatOutput::Json(text) => {
                let is_json = matches!(chat_request.output, ChatOutput::Json(_));
                let text =
                    if index == 0 || is_json { text.clone() } else { format!("{text} (choice {index})") };
                let (text, is_truncated) = truncate_to_tokens(&text, chat_request.max_tokens_per_choice);
                let tokens = count_tokens_up_to(&text, chat_request.max_tokens_per_choice);
                let finish_reason = if is_truncated { "length" } else { "stop" };
                (Self { output: ChatOutput::Text(text), tool_call_id, finish_reason }, tokens)
            }
        }
    }

    fn to_json(&self, index: usize) -> Value {
        let message = match &self.output {
            ChatOutput::Text(text) | ChatOutput::Json(text) => {
                json!({"role": "assistant", "content": text, "refusal": null, "annotations": []})
            }
            ChatOutput::ToolCall { name, arguments } => json!({
                "role": "assistant", "content": null, "refusal": null, "annotations": [],
                "tool_calls": [{
                    "id": self.tool_call_id, "type": "function", "function": {"name": name, "arguments": arguments},
                }],
            }),
        };
        let is_tool_call = matches!(self.output, ChatOutput::ToolCall { .. });
        let filter_results = if is_tool_call { json!({}) } else { passed_filter_results(false) };
        json!({
            "index": index, "finish_reason": self.finish_reason, "logprobs": null,
            "content_filter_results": filter_results, "message": message,
        })
    }

    /// The `choices` of the chunks of this choice: the role of the speaker, the output, the finish reason.
    fn choices_for_each_chunk(&self, index: usize) -> Vec<(EventRole, Value)> {
        let choices = |filter_results: Value, delta: Value, finish_reason: Option<&str>| {
            json!([{
                "content_filter_results": filter_results, "delta": delta, "finish_reason": finish_reason,
                "index": index, "logprobs": null,
            }])
        };
        let role_delta = json!({"content": "", "refusal": null, "role": "assistant"});
        let mut all = vec![(EventRole::Preamble, choices(json!({}), role_delta, None))];
        for delta in self.output_deltas() {
            let filter_results =
                if delta.get("content").is_some() { passed_filter_results(false) } else { json!({}) };
            all.push((EventRole::Content, choices(filter_results, delta, None)));
        }
        all.push((EventRole::Content, choices(json!({}), json!({}), Some(self.finish_reason))));
        all
    }

    fn output_deltas(&self) -> Vec<Value> {
        match &self.output {
            ChatOutput::Text(text) | ChatOutput::Json(text) => {
                split_into_deltas(text).into_iter().map(|delta| json!({"content": delta})).collect()
            }
            ChatOutput::ToolCall { name, arguments } => {
                let first = json!({"tool_calls": [{
                    "index": 0, "id": self.tool_call_id, "type": "function", "function": {"name": name, "arguments": ""},
                }]});
                let argument_deltas = split_into_deltas(arguments)
                    .into_iter()
                    .map(|delta| json!({"tool_calls": [{"index": 0, "function": {"arguments": delta}}]}));
                std::iter::once(first).chain(argument_deltas).collect()
            }
        }
    }
}
