//! Captures for the record what a response contains: model, finish reason, usage, text, and whether it
//! ended normally. Takes a JSON body at once or a stream event by event.

mod images;
mod output;
mod realtime;

use super::captured_text::{CapturedChoices, CompletionText, TextBudget, truncate_label, truncate_text};
use super::error_body::ErrorBody;
use super::sse::SseEvent;
use super::stored_object::StoredObject;
use super::usage::TokenUsage;
use crate::azure::json;
use crate::azure::json::JsonCursor;
use crate::azure::json_text::text_from_bytes;
use crate::azure::request::operation::Operation;

pub use self::output::OutputSample;
pub use self::realtime::RealtimeResponseEnd;

/// What was captured from a response so far.
#[derive(Debug)]
pub struct ResponseCapture {
    /// The `model` in the response: a model snapshot, or the deployment's name in Responses.
    pub model: Option<String>,
    /// The `service_tier` that served the request, such as `default`, `flex` or `priority`.
    pub service_tier: Option<String>,
    /// The `finish_reason` of the first choice that has one. For Responses, the status, or the reason if
    /// the response is incomplete.
    pub finish_reason: Option<String>,
    /// The reported tokens.
    pub usage: Option<TokenUsage>,
    /// Whether `usage` is an estimate instead.
    pub is_usage_estimated: bool,
    /// The images that were generated; `None` if that is not known, and for other operations.
    pub image_count: Option<u64>,
    /// Whether the response has its end: `[DONE]`, a final event, or complete JSON.
    pub is_response_complete: bool,
    /// The object that Azure keeps, if the response is one.
    pub stored_object: Option<StoredObject>,
    /// The code of the error that the response ended with.
    pub error_code: Option<String>,
    operation: Operation,
    text_budget: TextBudget,
    choices: CapturedChoices,
    /// The text of the choices, once it was shortened.
    shortened_text: Option<CompletionText>,
}

impl ResponseCapture {
    /// Captures up to `limit` bytes of text. With 0, text is not even decoded.
    pub fn new(operation: Operation, limit: usize) -> Self {
        Self {
            model: None,
            service_tier: None,
            finish_reason: None,
            usage: None,
            is_usage_estimated: false,
            image_count: None,
            is_response_complete: false,
            stored_object: None,
            error_code: None,
            operation,
            text_budget: TextBudget::new(limit),
            choices: CapturedChoices::default(),
            shortened_text: None,
        }
    }

    /// Takes the next event of a stream.
    pub fn capture_event(&mut self, event: &SseEvent<'_>) {
        let data = text_from_bytes(event.data);
        if event.is_oversized {
            self.note_oversized_event(event.name, &data);
        }
        if data.trim_ascii() == "[DONE]" {
            self.is_response_complete = true;
        } else if self.operation == Operation::Responses {
            self.read_responses_api_event(event.name, &data);
        } else if !data.is_empty() {
            self.read_completion_or_chunk(&data);
        }
    }

    /// Takes a JSON body. If it is incomplete, `is_response_complete` stays `false`.
    pub fn capture_json_body(&mut self, body: &[u8]) {
        let body = &*text_from_bytes(body);
        let is_response = || {
            let [object, output, status] = json::find_fields(body, &["object", "output", "status"]);
            output.is_some() || status.is_some() || object == Some("\"response\"")
        };
        self.is_response_complete |= if self.operation == Operation::Responses && is_response() {
            self.read_responses_api_object(body);
            let mut cursor = JsonCursor::new(body);
            cursor.walk_object(|_, _| {}) && cursor.has_only_whitespace_left()
        } else {
            self.read_completion_or_chunk(body)
        };
        if may_be_stored_object(self.operation) {
            let [id, status] = json::find_fields(body, &["id", "status"]);
            self.stored_object = StoredObject::from_raw(id, status);
        }
        if self.operation == Operation::Images {
            self.capture_images(body);
        }
    }

    /// Takes a text body. Transcriptions can have one (`response_format` `text`, `srt` or `vtt`).
    pub fn capture_text_body(&mut self, body: &str) {
        self.text_budget.append_text(&mut self.choices.get_or_insert_choice(0).content, body);
        self.is_response_complete = true;
    }

    /// The text, the tool calls as JSON, or the refusal. Several choices become a JSON array. `None` if
    /// there was no text. At most as long as the limit of [`ResponseCapture::new`].
    pub fn completion_text(&self) -> Option<String> {
        self.completion_text_with_cuts().map(|completion| completion.text)
    }

    /// The same, and where in it text is missing.
    pub fn completion_text_with_cuts(&self) -> Option<CompletionText> {
        self.shortened_text.clone().or_else(|| self.choices.to_text(self.text_budget.limit_bytes()))
    }

    /// Whether text is missing because of the limit.
    pub fn is_text_truncated(&self) -> bool {
        self.text_budget.is_truncated() || self.choices.is_text_longer_than(self.text_budget.limit_bytes())
    }

    /// Records that text is missing for another reason.
    pub(in crate::azure) fn mark_text_truncated(&mut self) {
        self.text_budget.mark_truncated();
    }

    /// The memory that it holds besides itself, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let labels = [&self.model, &self.service_tier, &self.finish_reason, &self.error_code];
        self.choices.memory_bytes()
            + self.shortened_text.as_ref().map_or(0, CompletionText::memory_bytes)
            + labels.iter().map(|label| label.as_ref().map_or(0, String::capacity)).sum::<usize>()
    }

    /// Shortens the text to at most `limit` bytes and frees the memory of the rest. Nothing can be captured
    /// afterwards.
    pub fn shorten_text(&mut self, limit: usize) {
        let shortened_bytes = self.shortened_text.as_ref().map_or(0, CompletionText::memory_bytes);
        if self.choices.memory_bytes() + shortened_bytes <= limit {
            return;
        }
        let Some(mut completion) = self.completion_text_with_cuts() else { return self.discard_choices() };
        if self.is_text_truncated() || completion.text.len() > limit {
            self.text_budget.mark_truncated();
        }
        completion.text.truncate(truncate_text(&completion.text, limit).len());
        completion.cut_ends.retain(|end| *end <= completion.text.len());
        completion.shrink_to_fit();
        self.discard_choices();
        self.shortened_text = Some(completion).filter(|completion| !completion.text.is_empty());
    }

    fn discard_choices(&mut self) {
        self.choices = CapturedChoices::default();
        self.shortened_text = None;
    }

    /// Frees the text. Everything else stays.
    pub fn discard_text(&mut self) {
        self.discard_choices();
        self.text_budget.mark_truncated();
    }

    /// Whether any text was captured.
    pub fn has_text(&self) -> bool {
        !self.choices.is_empty() || self.shortened_text.is_some()
    }

    /// Reads a chunk or body of any API but Responses. Returns whether it is a complete object.
    fn read_completion_or_chunk(&mut self, data: &str) -> bool {
        let (mut error, mut event_type, mut text, mut delta) = (None, None, None, None);
        let mut cursor = JsonCursor::new(data);
        let is_object = cursor.walk_object(|key, cursor| match key {
            "choices" => drop(cursor.walk_array(|cursor| self.read_choice(cursor))),
            "usage" => self.note_usage(cursor.next_value()),
            "model" => self.note_model(cursor.next_value()),
            "service_tier" => self.note_service_tier(cursor.next_value()),
            "error" => error = cursor.next_value(),
            "type" => event_type = cursor.next_value(),
            "text" => text = cursor.next_value(),
            "delta" => delta = cursor.next_value(),
            _ => {}
        });
        let event_type = event_type.and_then(json::decode_string);
        match event_type.as_deref() {
            Some("transcript.text.delta") => {
                if let Some(delta) = json::non_empty_string_content(delta) {
                    self.text_budget
                        .append_json_content(&mut self.choices.get_or_insert_choice(0).content, delta);
                }
            }
            Some(event_type) if event_type.ends_with(".done") || event_type.ends_with(".completed") => {
                self.is_response_complete = true;
                self.count_streamed_image();
                self.append_text_unless_streamed(text);
            }
            Some("error") => self.note_error_code(data),
            _ if error.is_some_and(|raw| raw != "null") => self.note_error_code(data),
            _ => self.append_text_unless_streamed(text),
        }
        is_object && cursor.has_only_whitespace_left()
    }

    /// Adds a complete text, unless its parts have been streamed before.
    fn append_text_unless_streamed(&mut self, text: Option<&str>) {
        if let Some(text) = json::non_empty_string_content(text)
            && self.choices.is_empty()
        {
            self.text_budget.append_json_content(&mut self.choices.get_or_insert_choice(0).content, text);
        }
    }

    /// Reads a choice of chat (`delta` or `message`) or of completions (`text`).
    fn read_choice(&mut self, cursor: &mut JsonCursor<'_>) {
        let (mut finish, mut index, mut delta, mut message, mut text) = (None, None, None, None, None);
        let is_whole = cursor.walk_object(|key, cursor| match key {
            "finish_reason" => finish = cursor.next_value(),
            "index" => index = cursor.next_value(),
            "delta" => delta = cursor.next_value(),
            "message" => message = cursor.next_value(),
            "text" => text = cursor.next_value(),
            _ => {}
        });
        if !is_whole && finish.or(index).or(delta).or(message).or(text).is_none() {
            return;
        }
        if self.finish_reason.is_none() {
            self.finish_reason = json::decode_non_empty_string(finish).map(|reason| truncate_label(&reason));
        }
        if self.text_budget.limit_bytes() == 0 {
            return;
        }
        let index = index.and_then(|raw| raw.parse().ok()).unwrap_or(0);
        if let Some(text) = json::non_empty_string_content(text) {
            self.text_budget.append_json_content(&mut self.choices.get_or_insert_choice(index).content, text);
        }
        let Some(message_or_delta) = delta.or(message) else { return };
        let [content, refusal, tool_calls, function, audio] = json::find_fields(
            message_or_delta,
            &["content", "refusal", "tool_calls", "function_call", "audio"],
        );
        let transcript = audio.and_then(|raw| json::find_fields(raw, &["transcript"])[0]);
        for text in [json::non_empty_string_content(content), json::non_empty_string_content(transcript)]
            .into_iter()
            .flatten()
        {
            self.text_budget.append_json_content(&mut self.choices.get_or_insert_choice(index).content, text);
        }
        if let Some(refusal) = json::non_empty_string_content(refusal) {
            self.text_budget
                .append_json_content(&mut self.choices.get_or_insert_choice(index).refusal, refusal);
        }
        if let Some(tool_calls) = tool_calls {
            let mut position = 0;
            json::for_each_array_item(tool_calls, |tool| {
                let [tool_index, id, function, custom] =
                    json::find_fields(tool, &["index", "id", "function", "custom"]);
                let tool_index = tool_index.and_then(|raw| raw.parse().ok()).unwrap_or(position);
                self.append_to_tool_call(index, tool_index, id, function.or(custom).unwrap_or_default());
                position += 1;
            });
        }
        if let Some(function) = function.filter(|raw| *raw != "null") {
            self.append_to_tool_call(index, 0, None, function);
        }
    }

    fn append_to_tool_call(&mut self, choice: u64, index: u64, id: Option<&str>, function: &str) {
        let [name, arguments, input] = json::find_fields(function, &["name", "arguments", "input"]);
        let tool_call = self.choices.get_or_insert_choice(choice).get_or_insert_tool_call(index);
        let updates = [
            (&mut tool_call.id, id),
            (&mut tool_call.name, name),
            (&mut tool_call.arguments, arguments.or(input)),
        ];
        for (target, text) in updates {
            if let Some(text) = json::non_empty_string_content(text) {
                self.text_budget.append_json_content(target, text);
            }
        }
    }

    fn read_responses_api_event(&mut self, event_name: &[u8], data: &str) {
        let keys = ["type", "response", "delta", "item", "output_index", "content_index", "error"];
        let [event_type, response, delta, item, output_index, content_index, error] =
            json::find_fields(data, &keys);
        let number = |raw: Option<&str>| raw.and_then(|raw| raw.parse().ok()).unwrap_or(0);
        let (output_index, content_index) = (number(output_index), number(content_index));
        let event_name = text_from_bytes(event_name);
        let event_type = event_type.and_then(json::decode_string).unwrap_or(event_name);
        match &*event_type {
            "response.completed" | "response.incomplete" | "response.done" => {
                self.is_response_complete = true;
                if let Some(response) = response {
                    self.read_responses_api_object(response);
                }
            }
            "response.failed" | "error" => {
                self.is_response_complete = true;
                if let Some(response) = response {
                    self.read_responses_api_object(response);
                }
                self.note_error_code(data);
            }
            "response.created" if self.model.is_none() => {
                let [id, status, model] =
                    response.map_or([None; 3], |raw| json::find_fields(raw, &["id", "status", "model"]));
                self.stored_object = StoredObject::from_raw(id, status);
                self.note_model(model);
            }
            _ if self.text_budget.limit_bytes() == 0 => {}
            "response.output_text.delta" | "response.refusal.delta" => {
                let Some(delta) = json::non_empty_string_content(delta) else { return };
                let choice = self.choices.get_or_insert_choice(0);
                let target = if &*event_type == "response.refusal.delta" {
                    &mut choice.refusal
                } else {
                    choice.switch_to_part((output_index, content_index), &mut self.text_budget)
                };
                self.text_budget.append_json_content(target, delta);
            }
            "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" => {
                if let Some(delta) = json::non_empty_string_content(delta) {
                    self.text_budget.append_json_content(
                        &mut self
                            .choices
                            .get_or_insert_choice(0)
                            .get_or_insert_tool_call(output_index)
                            .arguments,
                        delta,
                    );
                }
            }
            "response.output_item.added" | "response.output_item.done" => {
                if let Some(item) = item.filter(|_| !self.choices.has_tool_arguments(output_index)) {
                    self.read_tool_call_item(output_index, item);
                }
            }
            _ if error.is_some_and(|raw| raw != "null") => self.note_error_code(data),
            _ => {}
        }
    }

    /// Reads a complete response object, from a body or from the final event of a stream.
    fn read_responses_api_object(&mut self, response: &str) {
        let [id, model, service_tier, usage, status, details, error, output] = json::find_fields(
            response,
            &["id", "model", "service_tier", "usage", "status", "incomplete_details", "error", "output"],
        );
        self.stored_object = StoredObject::from_raw(id, status);
        self.note_model(model);
        self.note_service_tier(service_tier);
        self.note_usage(usage);
        let reason = details.and_then(|raw| json::find_fields(raw, &["reason"])[0]);
        if let Some(reason) =
            json::decode_non_empty_string(reason).or_else(|| json::decode_non_empty_string(status))
        {
            self.finish_reason = Some(truncate_label(&reason));
        }
        if error.is_some_and(|raw| raw != "null") || status == Some("\"failed\"") {
            self.note_error_code(response);
        }
        if self.text_budget.limit_bytes() > 0
            && self.choices.is_empty()
            && let Some(output) = output
        {
            let mut index = 0;
            json::for_each_array_item(output, |item| {
                self.read_output_item(index, item);
                index += 1;
            });
        }
    }

    fn read_output_item(&mut self, output_index: u64, item: &str) {
        let [content] = json::find_fields(item, &["content"]);
        let mut content_index = 0;
        let is_message = json::find_fields(item, &["type"]) == [Some("\"message\"")];
        json::for_each_array_item(content.filter(|_| is_message).unwrap_or_default(), |part| {
            let [text, refusal] = json::find_fields(part, &["text", "refusal"]);
            let choice = self.choices.get_or_insert_choice(0);
            if let Some(text) = json::non_empty_string_content(text) {
                let target = choice.switch_to_part((output_index, content_index), &mut self.text_budget);
                self.text_budget.append_json_content(target, text);
            }
            if let Some(refusal) = json::non_empty_string_content(refusal) {
                self.text_budget
                    .append_json_content(&mut self.choices.get_or_insert_choice(0).refusal, refusal);
            }
            content_index += 1;
        });
        self.read_tool_call_item(output_index, item);
    }

    /// Reads a function call or a custom tool call. Other items, such as web searches, are not calls to
    /// the client's tools.
    fn read_tool_call_item(&mut self, output_index: u64, item: &str) {
        let [item_type, id, name, arguments, input] =
            json::find_fields(item, &["type", "call_id", "name", "arguments", "input"]);
        if !matches!(item_type, Some("\"function_call\"" | "\"custom_tool_call\"")) {
            return;
        }
        let tool_call = self.choices.get_or_insert_choice(0).get_or_insert_tool_call(output_index);
        let updates = [
            (&mut tool_call.id, id),
            (&mut tool_call.name, name),
            (&mut tool_call.arguments, arguments.or(input)),
        ];
        for (target, text) in updates {
            if let Some(text) = json::non_empty_string_content(text)
                && target.is_empty()
            {
                self.text_budget.append_json_content(target, text);
            }
        }
    }

    /// Records that text is missing if an oversized event can have had text that is not known yet.
    fn note_oversized_event(&mut self, name: &[u8], outline: &str) {
        let [event_type] = json::find_fields(outline, &["type"]);
        let event_type = event_type.and_then(json::decode_string).unwrap_or(text_from_bytes(name));
        let has_new_text = match &*event_type {
            // These only echo the request.
            "response.created" | "response.in_progress" | "response.queued" => false,
            // These repeat what was streamed before.
            "response.completed" | "response.incomplete" | "response.failed" | "response.done" => {
                self.choices.is_empty()
            }
            // Streamed pictures are not recorded, of whatever size.
            "image_generation.completed" | "image_edit.completed" => false,
            event_type => !event_type.ends_with(".partial_image"),
        };
        if has_new_text {
            self.text_budget.mark_truncated();
        }
    }

    fn note_error_code(&mut self, data: &str) {
        let error = ErrorBody::parse(data.as_bytes());
        let code = error.code.or(error.error_type).map(|code| truncate_label(&code));
        match (&self.error_code, code) {
            (Some(recorded), Some(code)) if recorded == "error" => self.error_code = Some(code),
            (None, code) => self.error_code = Some(code.unwrap_or_else(|| "error".to_owned())),
            _ => {}
        }
        if self.operation == Operation::Responses {
            self.is_response_complete = true;
        }
    }

    fn note_model(&mut self, raw: Option<&str>) {
        if let Some(model) = json::decode_non_empty_string(raw)
            && self.model.as_deref() != Some(&*model)
        {
            self.model = Some(truncate_label(&model));
        }
    }

    /// `auto` is what a request asks for, and is repeated in responses that have not been served yet.
    fn note_service_tier(&mut self, raw: Option<&str>) {
        if let Some(tier) = json::decode_non_empty_string(raw)
            && tier != "auto"
            && self.service_tier.as_deref() != Some(&*tier)
        {
            self.service_tier = Some(truncate_label(&tier));
        }
    }

    fn note_usage(&mut self, raw: Option<&str>) {
        if let Some(usage) = raw.filter(|raw| raw.starts_with('{')).and_then(TokenUsage::from_usage_object) {
            self.usage = Some(usage);
        }
    }
}

/// Whether the response to an operation other than Responses can be an object that runs for a while.
fn may_be_stored_object(operation: Operation) -> bool {
    use Operation::{Batches, Evals, FineTuning, Threads, Videos};
    matches!(operation, Threads | Batches | Evals | FineTuning | Videos)
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
