//! The record's half of an answer: model, finish reason, usage, text, and whether it ended in
//! good order, gathered from a JSON reply or event by event. Keeps at most `limit` bytes of
//! text and never looks at an event twice.

use super::answer_text::{Choices, Room, short};
use super::sse::Event;
use super::usage::Usage;
use super::verdict::ApiError;
use crate::azure::json;
use crate::azure::json::Cursor;
use crate::azure::request::operation::Operation;
use crate::azure::request::prompt::without_binary;

/// What an answer told so far.
#[derive(Debug)]
pub struct Answer {
    /// The model that answered, as it calls itself.
    pub model: Option<String>,
    /// `finish_reason` of the first choice that has one; for Responses `completed`, or why it
    /// is incomplete.
    pub finish_reason: Option<String>,
    /// The tokens reported.
    pub usage: Option<Usage>,
    /// They are not reported, but an estimate.
    pub is_estimated: bool,
    /// Whether the answer said that it is over.
    pub terminal: bool,
    /// The code of the error the answer ended in.
    pub failed: Option<String>,
    operation: Operation,
    room: Room,
    choices: Choices,
}

impl Answer {
    /// Gathers up to `limit` bytes of text; 0 gathers none, and costs less.
    pub fn new(operation: Operation, limit: usize) -> Self {
        Self {
            model: None,
            finish_reason: None,
            usage: None,
            is_estimated: false,
            terminal: false,
            failed: None,
            operation,
            room: Room::new(limit),
            choices: Choices::default(),
        }
    }

    /// Takes the next event of a stream. Of an oversized one only the name counts.
    pub fn event(&mut self, event: &Event<'_>) {
        if event.oversized {
            return self.oversized(event);
        }
        let Ok(data) = std::str::from_utf8(event.data) else { return };
        if data.trim_ascii() == "[DONE]" {
            self.terminal = true;
        } else if self.operation == Operation::Responses {
            self.response_event(event.name, data);
        } else if !data.is_empty() {
            self.chunk(data);
        }
    }

    /// Takes a whole JSON reply; one that breaks off is not terminal.
    pub fn reply(&mut self, body: &[u8]) {
        let Ok(body) = std::str::from_utf8(body) else { return };
        let is_response = || {
            let [object, output, status] = json::fields(body, &["object", "output", "status"]);
            output.is_some() || status.is_some() || object == Some("\"response\"")
        };
        self.terminal |= if self.operation == Operation::Responses && is_response() {
            self.response(body);
            let mut cursor = Cursor::new(body);
            cursor.object(|_, _| {}) && cursor.is_at_end()
        } else {
            self.chunk(body)
        };
        if self.operation == Operation::Images {
            self.pictures(body);
        }
    }

    /// Pictures are told by size and digest.
    fn pictures(&mut self, body: &str) {
        if self.room.limit() > 0
            && let [Some(data)] = json::fields(body, &["data"])
        {
            self.room.add(&mut self.choices.at(0).content, &without_binary(data));
        }
    }

    /// Takes a reply that is text, as transcriptions can be (`text`, `srt`, `vtt`).
    pub fn plain_reply(&mut self, body: &str) {
        self.room.add(&mut self.choices.at(0).content, body);
        self.terminal = true;
    }

    /// Assistant text, tool calls as JSON, or a refusal; several choices as a JSON array;
    /// `None` if there was nothing of it. With the limit of [`Answer::new`].
    pub fn completion(&self) -> Option<String> {
        self.choices.text(self.room.limit())
    }

    /// Whether text was left out because of the limit.
    pub fn is_cut(&self) -> bool {
        self.room.is_full() || self.choices.exceed(self.room.limit())
    }

    /// Notes that text was lost elsewhere.
    pub(in crate::azure) fn mark_cut(&mut self) {
        self.room.close();
    }

    /// Bytes of text that were gathered.
    pub fn kept(&self) -> usize {
        self.room.used()
    }

    /// Lets go of the text; what else was told stays.
    pub fn forget_text(&mut self) {
        self.choices = Choices::default();
        self.room.close();
    }

    /// Whether any text was gathered.
    pub fn has_text(&self) -> bool {
        !self.choices.is_empty()
    }

    /// A chunk or reply of any API but Responses; says whether it is whole.
    fn chunk(&mut self, data: &str) -> bool {
        let (mut error, mut kind, mut text, mut delta) = (None, None, None, None);
        let mut cursor = Cursor::new(data);
        let is_object = cursor.object(|key, cursor| match key {
            "choices" => drop(cursor.array(|cursor| self.choice(cursor))),
            "usage" => self.note_usage(cursor.value()),
            "model" => self.note_model(cursor.value()),
            "error" => error = cursor.value(),
            "type" => kind = cursor.value(),
            "text" => text = cursor.value(),
            "delta" => delta = cursor.value(),
            _ => {}
        });
        let kind = kind.and_then(json::string);
        match kind.as_deref() {
            Some("transcript.text.delta") => {
                if let Some(delta) = json::text(delta) {
                    self.room.add(&mut self.choices.at(0).content, &delta);
                }
            }
            Some(kind) if kind.ends_with(".done") || kind.ends_with(".completed") => {
                self.terminal = true;
                self.text_unless_streamed(text);
            }
            Some("error") => self.fail(data),
            _ if error.is_some_and(|raw| raw != "null") => self.fail(data),
            _ => self.text_unless_streamed(text),
        }
        is_object && cursor.is_at_end()
    }

    fn text_unless_streamed(&mut self, text: Option<&str>) {
        if let Some(text) = json::text(text)
            && self.choices.is_empty()
        {
            self.room.add(&mut self.choices.at(0).content, &text);
        }
    }

    /// A choice of chat (`delta` or `message`) or of completions (`text`).
    fn choice(&mut self, cursor: &mut Cursor<'_>) {
        let (mut finish, mut index, mut delta, mut message, mut text) = (None, None, None, None, None);
        let is_whole = cursor.object(|key, cursor| match key {
            "finish_reason" => finish = cursor.value(),
            "index" => index = cursor.value(),
            "delta" => delta = cursor.value(),
            "message" => message = cursor.value(),
            "text" => text = cursor.value(),
            _ => {}
        });
        if !is_whole && finish.or(index).or(delta).or(message).or(text).is_none() {
            return;
        }
        if self.finish_reason.is_none() {
            self.finish_reason = json::text(finish).map(|reason| short(&reason));
        }
        if self.room.limit() == 0 {
            return;
        }
        let index = index.and_then(|raw| raw.parse().ok()).unwrap_or(0);
        if let Some(text) = json::text(text) {
            self.room.add(&mut self.choices.at(index).content, &text);
        }
        let Some(said) = delta.or(message) else { return };
        let [content, refusal, tools, function, audio] =
            json::fields(said, &["content", "refusal", "tool_calls", "function_call", "audio"]);
        let transcript = audio.and_then(|raw| json::fields(raw, &["transcript"])[0]);
        for text in [json::text(content), json::text(transcript)].into_iter().flatten() {
            self.room.add(&mut self.choices.at(index).content, &text);
        }
        if let Some(refusal) = json::text(refusal) {
            self.room.add(&mut self.choices.at(index).refusal, &refusal);
        }
        if let Some(tools) = tools {
            let mut place = 0;
            json::each_item(tools, |tool| {
                let [at, id, function, custom] = json::fields(tool, &["index", "id", "function", "custom"]);
                let at = at.and_then(|raw| raw.parse().ok()).unwrap_or(place);
                self.tool(index, at, id, function.or(custom).unwrap_or_default());
                place += 1;
            });
        }
        if let Some(function) = function.filter(|raw| *raw != "null") {
            self.tool(index, 0, None, function);
        }
    }

    fn tool(&mut self, choice: u64, index: u64, id: Option<&str>, function: &str) {
        let [name, arguments, input] = json::fields(function, &["name", "arguments", "input"]);
        let tool = self.choices.at(choice).tool(index);
        let parts = [(&mut tool.id, id), (&mut tool.name, name), (&mut tool.arguments, arguments.or(input))];
        for (to, text) in parts {
            if let Some(text) = json::text(text) {
                self.room.add(to, &text);
            }
        }
    }

    fn response_event(&mut self, name: &[u8], data: &str) {
        let keys = ["type", "response", "delta", "item", "output_index", "content_index", "error"];
        let [kind, response, delta, item, output, content, error] = json::fields(data, &keys);
        let number = |raw: Option<&str>| raw.and_then(|raw| raw.parse().ok()).unwrap_or(0);
        let (output, content) = (number(output), number(content));
        let name = std::str::from_utf8(name).unwrap_or_default();
        let kind = kind.and_then(json::string).unwrap_or(name.into());
        match &*kind {
            "response.completed" | "response.incomplete" | "response.done" => {
                self.terminal = true;
                if let Some(response) = response {
                    self.response(response);
                }
            }
            "response.failed" | "error" => {
                self.terminal = true;
                if let Some(response) = response {
                    self.response(response);
                }
                self.fail(data);
            }
            "response.created" if self.model.is_none() => {
                self.note_model(response.and_then(|raw| json::fields(raw, &["model"])[0]));
            }
            _ if self.room.limit() == 0 => {}
            "response.output_text.delta" | "response.refusal.delta" => {
                let Some(delta) = json::text(delta) else { return };
                let choice = self.choices.at(0);
                let to = if &*kind == "response.refusal.delta" {
                    &mut choice.refusal
                } else {
                    choice.part((output, content), &mut self.room)
                };
                self.room.add(to, &delta);
            }
            "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" => {
                if let Some(delta) = json::text(delta) {
                    self.room.add(&mut self.choices.at(0).tool(output).arguments, &delta);
                }
            }
            "response.output_item.added" | "response.output_item.done" => {
                if let Some(item) = item.filter(|_| !self.choices.has_arguments(output)) {
                    self.tool_item(output, item);
                }
            }
            _ if error.is_some_and(|raw| raw != "null") => self.fail(data),
            _ => {}
        }
    }

    /// A whole response object, from a reply or from the event that ends a stream.
    fn response(&mut self, response: &str) {
        let [model, usage, status, details, error, output] =
            json::fields(response, &["model", "usage", "status", "incomplete_details", "error", "output"]);
        self.note_model(model);
        self.note_usage(usage);
        let reason = details.and_then(|raw| json::fields(raw, &["reason"])[0]);
        if let Some(reason) = json::text(reason).or_else(|| json::text(status)) {
            self.finish_reason = Some(short(&reason));
        }
        if error.is_some_and(|raw| raw != "null") || status == Some("\"failed\"") {
            self.fail(response);
        }
        if self.room.limit() > 0
            && self.choices.is_empty()
            && let Some(output) = output
        {
            let mut index = 0;
            json::each_item(output, |item| {
                self.output_item(index, item);
                index += 1;
            });
        }
    }

    fn output_item(&mut self, index: u64, item: &str) {
        let [content] = json::fields(item, &["content"]);
        let mut part = 0;
        let is_message = json::fields(item, &["type"]) == [Some("\"message\"")];
        json::each_item(content.filter(|_| is_message).unwrap_or_default(), |piece| {
            let [text, refusal] = json::fields(piece, &["text", "refusal"]);
            let choice = self.choices.at(0);
            if let Some(text) = json::text(text) {
                let to = choice.part((index, part), &mut self.room);
                self.room.add(to, &text);
            }
            if let Some(refusal) = json::text(refusal) {
                self.room.add(&mut self.choices.at(0).refusal, &refusal);
            }
            part += 1;
        });
        self.tool_item(index, item);
    }

    /// A function call or a custom tool's call among the output; other items are no call to
    /// the client.
    fn tool_item(&mut self, index: u64, item: &str) {
        let [kind, id, name, arguments, input] =
            json::fields(item, &["type", "call_id", "name", "arguments", "input"]);
        if !matches!(kind, Some("\"function_call\"" | "\"custom_tool_call\"")) {
            return;
        }
        let tool = self.choices.at(0).tool(index);
        let parts = [(&mut tool.id, id), (&mut tool.name, name), (&mut tool.arguments, arguments.or(input))];
        for (to, text) in parts {
            if let Some(text) = json::text(text)
                && to.is_empty()
            {
                self.room.add(to, &text);
            }
        }
    }

    fn oversized(&mut self, event: &Event<'_>) {
        self.room.close();
        match event.name {
            b"response.completed" | b"response.incomplete" => self.terminal = true,
            b"response.failed" | b"error" => {
                self.terminal = true;
                self.failed.get_or_insert_with(|| "error".to_owned());
            }
            // The echo of the request is no text of the answer.
            b"response.created" | b"response.in_progress" | b"response.queued" => self.room.reopen(),
            _ => {}
        }
    }

    fn fail(&mut self, data: &str) {
        let error = ApiError::read(data.as_bytes());
        let code = error.code.or(error.kind).map(|code| short(&code));
        match (&self.failed, code) {
            (Some(known), Some(code)) if known == "error" => self.failed = Some(code),
            (None, code) => self.failed = Some(code.unwrap_or_else(|| "error".to_owned())),
            _ => {}
        }
        if self.operation == Operation::Responses {
            self.terminal = true;
        }
    }

    pub(in crate::azure) fn note_model(&mut self, raw: Option<&str>) {
        if let Some(model) = json::text(raw)
            && self.model.as_deref() != Some(&*model)
        {
            self.model = Some(short(&model));
        }
    }

    pub(in crate::azure) fn note_usage(&mut self, raw: Option<&str>) {
        if let Some(usage) = raw.filter(|raw| raw.starts_with('{')).and_then(Usage::from_object) {
            self.usage = Some(usage);
        }
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
