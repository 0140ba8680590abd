//! The Realtime API: text and audio in, text or audio out. There is no voice activity detection: the client commits
//! its audio and asks for responses.

use std::collections::VecDeque;
use std::time::Instant;

use serde_json::{Value, json};

use super::error_event::limit_reached_event;
use super::realtime_response::{RealtimeResponse, RealtimeTokens, audio_duration_ms, transcription_usage};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::faults::delivery::CutoffMethod;
use crate::demo::http::connection::HttpConnection;
use crate::demo::http::error::ConnectionError;
use crate::demo::http::resettable_stream::ResettableStream;
use crate::demo::http::websocket::{
    CLOSE_GOING_AWAY, MessageReader, WebSocketInput, close_frame, pong_frame, text_frame,
};
use crate::demo::operations::shared::text_model::{count_tokens, dated_model_name};
use crate::demo::util::ids::IdGenerator;
use crate::demo::util::json::{content_text, text_member};

/// Serves the session to its end. Returns how the connection is to end.
pub(super) async fn run_realtime_session<S: ResettableStream>(
    request: &SimulatedRequest<'_>,
    deployment: &str,
    connection: &mut HttpConnection<S>,
) -> Result<CutoffMethod, ConnectionError> {
    let definition = &request.resource.definition;
    let expiry = tokio::time::sleep(definition.max_websocket_lifetime);
    tokio::pin!(expiry);
    let mut session = RealtimeSession::new(request, deployment);
    let mut reader = MessageReader::default();
    let mut next_event_at = Instant::now();
    loop {
        let has_events = !session.unsent_events.is_empty();
        // Reading can be cancelled without a loss, writing cannot: it is done outside of `select`.
        let input = tokio::select! {
            () = &mut expiry => {
                let mut last = text_frame(&limit_reached_event().to_string());
                last.extend(close_frame(Some(CLOSE_GOING_AWAY), "session expired"));
                connection.write_all(&last).await?;
                return Ok(CutoffMethod::Close);
            }
            input = reader.next_input(connection) => Some(input?),
            () = tokio::time::sleep_until(next_event_at.into()), if has_events => None,
        };
        let (frame, is_last) = match input {
            Some(WebSocketInput::Text(text)) => {
                session.handle_client_event(&serde_json::from_str(&text).unwrap_or_default());
                if !has_events {
                    next_event_at = Instant::now() + definition.timing.event_interval;
                }
                continue;
            }
            // Audio is sent as text, in base64.
            Some(WebSocketInput::Binary) => continue,
            Some(WebSocketInput::Ping(payload)) => (pong_frame(&payload), false),
            Some(WebSocketInput::Violation(code, reason)) => (close_frame(Some(code), reason), true),
            Some(WebSocketInput::Close(payload)) => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                (close_frame(code, ""), true)
            }
            None => {
                next_event_at = Instant::now() + definition.timing.event_interval;
                let event = session.take_event();
                (event.map(|event| text_frame(&event.to_string())).unwrap_or_default(), false)
            }
        };
        connection.write_all(&frame).await?;
        if is_last {
            return Ok(CutoffMethod::Close);
        }
    }
}

struct RealtimeSession<'a> {
    ids: &'a IdGenerator,
    /// The session object, as the client has configured it.
    session_object: Value,
    unsent_events: VecDeque<Value>,
    /// The text of the latest conversation item, which the next response echoes.
    last_item_text: String,
    last_item_id: Option<String>,
    /// The response whose events are being sent.
    active_response_id: Option<String>,
    conversation: RealtimeTokens,
    /// The part of the conversation that a response has read.
    cached: RealtimeTokens,
    /// What the response under way has read, and found cached.
    read_by_active: (RealtimeTokens, RealtimeTokens),
    uncommitted_audio_ms: u64,
}

impl<'a> RealtimeSession<'a> {
    fn new(request: &SimulatedRequest<'a>, deployment: &str) -> Self {
        let ids = &request.resource.id_generator;
        let deployment = request.resource.deployment(deployment);
        let model = deployment.map_or_else(String::new, |deployment| dated_model_name(&deployment.model));
        let session_object = json!({
            "id": ids.new_alphanumeric_id("sess_", 21), "object": "realtime.session", "type": "realtime", "model": model,
            "modalities": ["text", "audio"], "instructions": "", "voice": "alloy",
            "input_audio_format": "pcm16", "output_audio_format": "pcm16", "turn_detection": null, "tools": [],
        });
        Self {
            ids,
            unsent_events: VecDeque::from([json!({"type": "session.created", "session": session_object})]),
            session_object,
            last_item_text: String::new(),
            last_item_id: None,
            active_response_id: None,
            conversation: RealtimeTokens::default(),
            cached: RealtimeTokens::default(),
            read_by_active: Default::default(),
            uncommitted_audio_ms: 0,
        }
    }

    /// The next event to send, with the `event_id` that every event of the server has.
    fn take_event(&mut self) -> Option<Value> {
        let mut event = self.unsent_events.pop_front()?;
        if text_member(&event, "type") == Some("response.done") {
            self.active_response_id = None;
        }
        let event_id = self.ids.new_alphanumeric_id("event_", 21);
        event.as_object_mut()?.insert("event_id".to_owned(), json!(event_id));
        Some(event)
    }

    /// Queues the events that an event of the client leads to.
    fn handle_client_event(&mut self, event: &Value) {
        match text_member(event, "type") {
            Some("session.update") => {
                if let (Some(session), Some(changes)) =
                    (self.session_object.as_object_mut(), event.get("session").and_then(Value::as_object))
                {
                    session.extend(changes.clone());
                }
                let updated = json!({"type": "session.updated", "session": self.session_object});
                self.unsent_events.push_back(updated);
            }
            Some("conversation.item.create") => self.add_item(event.get("item").cloned().unwrap_or_default()),
            Some("response.create") => self.create_response(event),
            Some("response.cancel") => self.cancel_response(event),
            Some("input_audio_buffer.append") => {
                self.uncommitted_audio_ms += text_member(event, "audio").map_or(0, audio_duration_ms);
            }
            Some("input_audio_buffer.commit") => self.commit_audio(event),
            Some("input_audio_buffer.clear") => {
                self.uncommitted_audio_ms = 0;
                self.unsent_events.push_back(json!({"type": "input_audio_buffer.cleared"}));
            }
            other => {
                let message = format!("Invalid value: '{}'.", other.unwrap_or("(none)"));
                self.refuse(event, "invalid_value", &message, Some("type"));
            }
        }
    }

    fn add_item(&mut self, mut item: Value) {
        self.last_item_text = item.get("content").map(content_text).unwrap_or_default();
        let mut audio_ms = 0;
        for part in item.get("content").and_then(Value::as_array).into_iter().flatten() {
            audio_ms += text_member(part, "audio").map_or(0, audio_duration_ms);
        }
        let text = RealtimeTokens { text: count_tokens(&self.last_item_text), audio: 0 };
        self.conversation.add(text);
        self.conversation.add(RealtimeTokens::of_heard_audio(audio_ms));
        let mut id = None;
        if let Some(map) = item.as_object_mut() {
            let new_id = || json!(self.ids.new_alphanumeric_id("item_", 21));
            id = map.entry("id").or_insert_with(new_id).as_str().map(str::to_owned);
            map.insert("object".to_owned(), json!("realtime.item"));
            map.insert("status".to_owned(), json!("completed"));
        }
        let previous = std::mem::replace(&mut self.last_item_id, id);
        self.unsent_events.push_back(
            json!({"type": "conversation.item.created", "previous_item_id": previous, "item": item}),
        );
    }

    fn commit_audio(&mut self, event: &Value) {
        let duration_ms = std::mem::take(&mut self.uncommitted_audio_ms);
        if duration_ms == 0 {
            let message = "Error committing input audio buffer: the buffer has no audio.";
            return self.refuse(event, "input_audio_buffer_commit_empty", message, None);
        }
        let item_id = self.ids.new_alphanumeric_id("item_", 21);
        let transcript = format!("audio of {duration_ms} ms");
        self.last_item_text.clone_from(&transcript);
        self.conversation.add(RealtimeTokens::of_heard_audio(duration_ms));
        let previous = self.last_item_id.replace(item_id.clone());
        let item = json!({
            "id": item_id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user",
            "content": [{"type": "input_audio", "transcript": null}],
        });
        self.unsent_events.extend([
            json!({"type": "input_audio_buffer.committed", "previous_item_id": previous, "item_id": item_id}),
            json!({"type": "conversation.item.created", "previous_item_id": previous, "item": item}),
        ]);
        if let Some(model) = self.transcription_model() {
            let usage = transcription_usage(model, duration_ms, &transcript);
            self.unsent_events.push_back(json!({
                "type": "conversation.item.input_audio_transcription.completed", "item_id": item_id, "content_index": 0,
                "transcript": transcript, "usage": usage,
            }));
        }
    }

    /// The model that transcribes what the client says, if the session configures one: `audio.input.transcription`,
    /// or `input_audio_transcription` in the preview.
    fn transcription_model(&self) -> Option<&str> {
        let session = &self.session_object;
        let current = session.pointer("/audio/input/transcription").filter(|value| value.is_object());
        let configured = current.or_else(|| session.get("input_audio_transcription"))?;
        configured.is_object().then(|| text_member(configured, "model").unwrap_or("whisper-1"))
    }

    fn create_response(&mut self, event: &Value) {
        if let Some(id) = &self.active_response_id {
            let message = format!("Conversation already has an active response in progress: {id}.");
            return self.refuse(event, "conversation_already_has_active_response", &message, None);
        }
        let parameters = event.get("response");
        let modalities = parameters.and_then(|parameters| parameters.get("output_modalities"));
        let modalities = modalities.or_else(|| self.session_object.get("output_modalities"));
        let speaks = modalities.and_then(Value::as_array).is_some_and(|list| list.contains(&json!("audio")));
        let (input, cached) = (self.conversation, self.cached);
        let response = RealtimeResponse::new(self.ids, &self.last_item_text, speaks, input, cached);
        self.cached = input;
        self.read_by_active = (input, cached);
        self.conversation.add(response.output_tokens);
        self.active_response_id = Some(response.id);
        self.unsent_events.extend(response.events);
    }

    fn cancel_response(&mut self, event: &Value) {
        let asked = text_member(event, "response_id");
        let active = self.active_response_id.clone().filter(|id| asked.is_none_or(|asked| asked == id));
        let Some(id) = active else {
            let message = "Cancellation failed: no active response found";
            return self.refuse(event, "response_cancel_not_active", message, None);
        };
        self.unsent_events.retain(|event| {
            let response_id = event.get("response_id").or_else(|| event.pointer("/response/id"));
            response_id.and_then(Value::as_str) != Some(&id)
        });
        let (input, cached) = self.read_by_active;
        self.unsent_events.push_back(RealtimeResponse::cancelled_event(&id, input, cached));
    }

    fn refuse(&mut self, event: &Value, code: &str, message: &str, param: Option<&str>) {
        let error = json!({
            "type": "invalid_request_error", "code": code, "message": message, "param": param,
            "event_id": event.get("event_id"),
        });
        self.unsent_events.push_back(json!({"type": "error", "error": error}));
    }
}
