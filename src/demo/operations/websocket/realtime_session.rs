//! The Realtime API, as far as text goes; audio is accepted and ignored.

use serde_json::{Value, json};

use crate::demo::api::request::SimulatedRequest;
use crate::demo::operations::shared::text_model::{
    count_tokens, dated_model_name, echo_text, split_into_deltas,
};
use crate::demo::util::json::content_text;

pub(super) struct RealtimeSession<'a> {
    upgrade_request: SimulatedRequest<'a>,
    /// The session object, as the client has configured it.
    session_object: Value,
    /// The text of the latest conversation item, which the next response echoes.
    last_item_text: String,
}

impl<'a> RealtimeSession<'a> {
    pub(super) fn new(request: &SimulatedRequest<'a>, deployment: &str) -> Self {
        let deployment = request.resource.deployment(deployment);
        let model = deployment.map_or_else(String::new, |deployment| dated_model_name(&deployment.model));
        let session_object = json!({
            "id": request.resource.id_generator.new_alphanumeric_id("sess_", 21), "object": "realtime.session", "type": "realtime", "model": model,
            "modalities": ["text", "audio"], "instructions": "", "voice": "alloy",
            "input_audio_format": "pcm16", "output_audio_format": "pcm16", "turn_detection": null, "tools": [],
        });
        Self { upgrade_request: *request, session_object, last_item_text: String::new() }
    }

    /// The event with which a session begins.
    pub(super) fn created_event(&self) -> Value {
        self.with_new_event_id(json!({"type": "session.created", "session": self.session_object}))
    }

    /// The events that an event of the client leads to.
    pub(super) fn handle_client_event(&mut self, event: &Value) -> Vec<Value> {
        let events = match event.get("type").and_then(Value::as_str) {
            Some("session.update") => {
                if let (Some(session), Some(changes)) =
                    (self.session_object.as_object_mut(), event.get("session").and_then(Value::as_object))
                {
                    session.extend(changes.clone());
                }
                vec![json!({"type": "session.updated", "session": self.session_object})]
            }
            Some("conversation.item.create") => {
                let mut item = event.get("item").cloned().unwrap_or_default();
                self.last_item_text = item.get("content").map(content_text).unwrap_or_default();
                if let Some(map) = item.as_object_mut() {
                    map.entry("id").or_insert_with(|| {
                        json!(self.upgrade_request.resource.id_generator.new_alphanumeric_id("item_", 21))
                    });
                    map.insert("object".to_owned(), json!("realtime.item"));
                    map.insert("status".to_owned(), json!("completed"));
                }
                vec![json!({"type": "conversation.item.created", "previous_item_id": null, "item": item})]
            }
            Some("response.create") => self.response_events(),
            Some("input_audio_buffer.append") => Vec::new(),
            Some("input_audio_buffer.commit") => vec![json!({"type": "input_audio_buffer.committed"})],
            Some("input_audio_buffer.clear") => vec![json!({"type": "input_audio_buffer.cleared"})],
            Some("response.cancel") => Vec::new(),
            other => {
                let message = format!("Invalid value: '{}'.", other.unwrap_or("(none)"));
                let error = json!({
                    "type": "invalid_request_error", "code": "invalid_value", "message": message, "param": "type",
                    "event_id": event.get("event_id"),
                });
                vec![json!({"type": "error", "error": error})]
            }
        };
        events.into_iter().map(|event| self.with_new_event_id(event)).collect()
    }

    /// The events of one response.
    fn response_events(&self) -> Vec<Value> {
        let ids = &self.upgrade_request.resource.id_generator;
        let (id, item_id) = (ids.new_alphanumeric_id("resp_", 21), ids.new_alphanumeric_id("item_", 21));
        let text = echo_text(&self.last_item_text);
        let (input_tokens, output_tokens) = (count_tokens(&self.last_item_text), count_tokens(&text));
        let item = json!({
            "id": item_id, "object": "realtime.item", "type": "message", "status": "completed", "role": "assistant",
            "content": [{"type": "text", "text": text}],
        });
        let usage = json!({
            "input_tokens": input_tokens, "output_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
            "input_token_details": {
                "text_tokens": input_tokens, "audio_tokens": 0, "cached_tokens": 0,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0},
            },
            "output_token_details": {"text_tokens": output_tokens, "audio_tokens": 0},
        });
        let response = |status: &str, output: Value, usage: Value| json!({"id": id, "object": "realtime.response", "status": status, "output": output, "usage": usage});
        let mut events = vec![
            json!({"type": "response.created", "response": response("in_progress", json!([]), Value::Null)}),
            json!({"type": "rate_limits.updated", "rate_limits": [
                {"name": "requests", "limit": 1000, "remaining": 999, "reset_seconds": 0.06},
                {"name": "tokens", "limit": 100_000, "remaining": 99_000, "reset_seconds": 0.6},
            ]}),
            json!({"type": "response.output_item.added", "response_id": id, "output_index": 0, "item": item}),
        ];
        let content_event = |event_type: &str, text_field: &str, text: &str| {
            json!({
                "type": event_type, "response_id": id, "item_id": item_id, "output_index": 0, "content_index": 0, (text_field): text,
            })
        };
        for delta in split_into_deltas(&text) {
            events.push(content_event("response.text.delta", "delta", delta));
        }
        events.push(content_event("response.text.done", "text", &text));
        events.push(
            json!({"type": "response.output_item.done", "response_id": id, "output_index": 0, "item": item}),
        );
        events
            .push(json!({"type": "response.done", "response": response("completed", json!([item]), usage)}));
        events
    }

    /// Adds the `event_id` that every event of the server has.
    fn with_new_event_id(&self, mut event: Value) -> Value {
        if let Some(map) = event.as_object_mut() {
            map.insert(
                "event_id".to_owned(),
                json!(self.upgrade_request.resource.id_generator.new_alphanumeric_id("event_", 21)),
            );
        }
        event
    }
}
