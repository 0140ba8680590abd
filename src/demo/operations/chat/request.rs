//! The body of a chat request, and the output that the model gives to it.

use serde_json::Value;

use crate::demo::api::error_response::invalid_parameter;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::ErrorResponse;
use crate::demo::operations::files::find_file;
use crate::demo::operations::shared::json_output::chat_json_output;
use crate::demo::operations::shared::parameters::{positive_integer, unsupported_operation_response};
use crate::demo::operations::shared::service_tier::ServiceTier;
use crate::demo::operations::shared::stream_options::check_stream_options;
use crate::demo::operations::shared::text_model::{
    REASONING_TOKENS, echo_text, function_arguments, tool_to_call,
};
use crate::demo::resource::definition::SimulatedDeployment;
use crate::demo::resource::prompt_cache::CachedPrompt;
use crate::demo::util::json::{content_text, text_member};

const MAX_CHOICES: u64 = 128;

/// A checked chat request.
pub(super) struct ChatRequest {
    /// All that the model would read, tools first, as one text.
    pub(super) prompt: String,
    pub(super) output: ChatOutput,
    pub(super) choice_count: u64,
    /// The limit for each choice.
    pub(super) max_tokens_per_choice: Option<u64>,
    pub(super) reasoning_tokens: u64,
    pub(super) is_streaming: bool,
    /// The tier that serves it, if it names one.
    pub(super) named_service_tier: Option<ServiceTier>,
}

/// What the model generates for one choice.
#[derive(Clone)]
pub(super) enum ChatOutput {
    Text(String),
    /// A JSON document, the same for every choice.
    Json(String),
    ToolCall {
        name: String,
        arguments: String,
    },
}

impl ChatRequest {
    /// # Errors
    /// 400 if the model does not support chat, or if a parameter is missing or invalid; 404 for an unknown file.
    pub(super) fn from_body(
        request: &SimulatedRequest,
        deployment: &SimulatedDeployment,
        body: &Value,
    ) -> Result<Self, ErrorResponse> {
        if deployment.model.contains("embedding") {
            return Err(Box::new(unsupported_operation_response("chatCompletion", &deployment.model)));
        }
        let messages = body.get("messages").and_then(Value::as_array).filter(|messages| !messages.is_empty());
        let Some(messages) = messages else {
            return Err(invalid_parameter("messages", "Missing required parameter: 'messages'."));
        };
        check_files(request, messages)?;
        let is_streaming = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
        check_stream_options(request, body, is_streaming)?;
        let is_reasoning =
            body.get("reasoning_effort").and_then(Value::as_str).is_some_and(|effort| effort != "none");
        let service_tier = ServiceTier::from_body(body)?;
        let prompt = prompt_text(messages, body);
        Ok(Self {
            output: generate_output(messages, body, &prompt)?,
            prompt,
            choice_count: positive_integer(body, "n")?.unwrap_or(1).min(MAX_CHOICES),
            max_tokens_per_choice: positive_integer(body, "max_completion_tokens")?
                .or(positive_integer(body, "max_tokens")?),
            reasoning_tokens: if is_reasoning { REASONING_TOKENS } else { 0 },
            is_streaming,
            named_service_tier: body.get("service_tier").map(|_| service_tier),
        })
    }

    /// What the prompt cache has of the prompt. The whole prompt is cached from now on.
    pub(super) fn look_up_and_cache_prompt(
        &self,
        request: &SimulatedRequest,
        deployment: &SimulatedDeployment,
        body: &Value,
    ) -> CachedPrompt {
        let cache_key = body.get("prompt_cache_key").and_then(Value::as_str).unwrap_or_default();
        request.resource.look_up_and_cache_prompt(deployment, cache_key, &self.prompt, request.received_at)
    }
}

fn prompt_text(messages: &[Value], body: &Value) -> String {
    let mut prompt = body.get("tools").map(Value::to_string).unwrap_or_default();
    for message in messages {
        prompt.push('\n');
        prompt.push_str(message.get("role").and_then(Value::as_str).unwrap_or("user"));
        prompt.push(' ');
        prompt.push_str(&message.get("content").map(content_text).unwrap_or_default());
    }
    prompt
}

/// A tool call if one is called for, or else a text about the last message.
///
/// # Errors
/// 400 for an invalid JSON schema.
fn generate_output(messages: &[Value], body: &Value, prompt: &str) -> Result<ChatOutput, ErrorResponse> {
    let role = |message: &Value| message.get("role").and_then(Value::as_str).map(str::to_owned);
    let last_content_of = |wanted: &str| {
        let message = messages.iter().rev().find(|message| role(message).as_deref() == Some(wanted));
        message.and_then(|message| message.get("content")).map(content_text).unwrap_or_default()
    };
    let user_text = last_content_of("user");
    let is_tool_result = messages.last().and_then(role).as_deref() == Some("tool");
    let text = match tool_to_call(body, &user_text) {
        Some(function) if !is_tool_result => {
            let name = text_member(function, "name").unwrap_or_default().to_owned();
            return Ok(ChatOutput::ToolCall { name, arguments: function_arguments(function, &user_text) });
        }
        _ if is_tool_result => format!("The tool said: {}", last_content_of("tool")),
        _ => echo_text(&user_text),
    };
    let document = chat_json_output(body, prompt, &text)?;
    Ok(document.map_or(ChatOutput::Text(text), ChatOutput::Json))
}

/// Checks that this resource has the files that messages refer to.
fn check_files(request: &SimulatedRequest, messages: &[Value]) -> Result<(), ErrorResponse> {
    let parts = messages.iter().filter_map(|message| message.get("content")?.as_array()).flatten();
    for id in parts.filter_map(|part| text_member(part.get("file")?, "file_id")) {
        find_file(request, id)?;
    }
    Ok(())
}
