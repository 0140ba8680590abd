//! Conversations over a WebSocket: the Realtime API, and the Responses API on v1.

use std::time::Instant;

use serde_json::{Value, json};

use super::answer::{Answer, Body, Protocol};
use super::azure::{Call, snapshot};
use super::http1::{Socket, Wire, WireError};
use super::responses::{self, Archive};
use super::text::{content, deltas, echo, tokens};
use super::websocket::{close, receive, send};

/// Speaks until the caller closes, or until the resource's limit for WebSockets.
pub(super) async fn converse<S: Socket>(
    call: &Call<'_>,
    protocol: &Protocol,
    wire: &mut Wire<S>,
) -> Result<(), WireError> {
    let limit = call.live.resource.websocket_limit;
    let mut session = match protocol {
        Protocol::Realtime(deployment) => Session::Realtime(Realtime::new(call, deployment)),
        Protocol::Responses => Session::Responses(Archive::default()),
    };
    if let Session::Realtime(realtime) = &session {
        let created = realtime.numbered(json!({"type": "session.created", "session": realtime.session}));
        send(wire, &created.to_string()).await?;
    }
    let opened = Instant::now();
    loop {
        let left = limit.saturating_sub(opened.elapsed());
        let Some(message) = receive(wire, left).await? else { break };
        let message: Value = serde_json::from_slice(&message).unwrap_or_default();
        let now = Instant::now();
        let answers = match &mut session {
            Session::Realtime(realtime) => realtime.hear(&message),
            Session::Responses(archive) => respond(&Call { now, ..*call }, &message, archive),
        };
        for event in answers {
            wire.pause(call.live.resource.pace.between_events).await?;
            send(wire, &event.to_string()).await?;
        }
    }
    if opened.elapsed() >= limit {
        let message = "Your session hit the maximum duration of 60 minutes.";
        let code = "websocket_connection_limit_reached";
        let error = json!({"type": "invalid_request_error", "code": code, "message": message, "param": null});
        send(wire, &json!({"type": "error", "status": 400, "error": error}).to_string()).await?;
        close(wire, 1001, "session expired").await?;
    }
    Ok(())
}

enum Session<'a> {
    Realtime(Realtime<'a>),
    Responses(Archive),
}

struct Realtime<'a> {
    call: Call<'a>,
    session: Value,
    heard: String,
}

impl<'a> Realtime<'a> {
    fn new(call: &Call<'a>, deployment: &str) -> Self {
        let model = call.live.deployment(deployment).map_or_else(String::new, |own| snapshot(&own.model));
        let session = json!({
            "id": call.live.ids.alnum("sess_", 21), "object": "realtime.session", "type": "realtime", "model": model,
            "modalities": ["text", "audio"], "instructions": "", "voice": "alloy",
            "input_audio_format": "pcm16", "output_audio_format": "pcm16", "turn_detection": null, "tools": [],
        });
        Self { call: *call, session, heard: String::new() }
    }

    /// What a client event leads to.
    fn hear(&mut self, event: &Value) -> Vec<Value> {
        let answers = match event.get("type").and_then(Value::as_str) {
            Some("session.update") => {
                if let (Some(own), Some(new)) =
                    (self.session.as_object_mut(), event.get("session").and_then(Value::as_object))
                {
                    own.extend(new.clone());
                }
                vec![json!({"type": "session.updated", "session": self.session})]
            }
            Some("conversation.item.create") => {
                let mut item = event.get("item").cloned().unwrap_or_default();
                self.heard = item.get("content").map(content).unwrap_or_default();
                if let Some(map) = item.as_object_mut() {
                    map.entry("id").or_insert_with(|| json!(self.call.live.ids.alnum("item_", 21)));
                    map.insert("object".to_owned(), json!("realtime.item"));
                    map.insert("status".to_owned(), json!("completed"));
                }
                vec![json!({"type": "conversation.item.created", "previous_item_id": null, "item": item})]
            }
            Some("response.create") => self.respond(),
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
        answers.into_iter().map(|answer| self.numbered(answer)).collect()
    }

    fn respond(&self) -> Vec<Value> {
        let ids = &self.call.live.ids;
        let (id, item_id) = (ids.alnum("resp_", 21), ids.alnum("item_", 21));
        let text = echo(&self.heard);
        let (input, output) = (tokens(&self.heard), tokens(&text));
        let item = json!({
            "id": item_id, "object": "realtime.item", "type": "message", "status": "completed", "role": "assistant",
            "content": [{"type": "text", "text": text}],
        });
        let usage = json!({
            "input_tokens": input, "output_tokens": output, "total_tokens": input + output,
            "input_token_details": {
                "text_tokens": input, "audio_tokens": 0, "cached_tokens": 0,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0},
            },
            "output_token_details": {"text_tokens": output, "audio_tokens": 0},
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
        let at = |kind: &str, name: &str, text: &str| {
            json!({
                "type": kind, "response_id": id, "item_id": item_id, "output_index": 0, "content_index": 0, (name): text,
            })
        };
        events.extend(deltas(&text).into_iter().map(|delta| at("response.text.delta", "delta", delta)));
        events.push(at("response.text.done", "text", &text));
        events.push(
            json!({"type": "response.output_item.done", "response_id": id, "output_index": 0, "item": item}),
        );
        events
            .push(json!({"type": "response.done", "response": response("completed", json!([item]), usage)}));
        events
    }

    fn numbered(&self, mut event: Value) -> Value {
        if let Some(map) = event.as_object_mut() {
            map.insert("event_id".to_owned(), json!(self.call.live.ids.alnum("event_", 21)));
        }
        event
    }
}

/// One `response.create` of the Responses API.
fn respond(call: &Call, message: &Value, archive: &mut Archive) -> Vec<Value> {
    if message.get("type").and_then(Value::as_str) != Some("response.create") {
        let message = "Only 'response.create' is understood here.";
        let error = json!({"type": "invalid_request_error", "code": "invalid_value", "message": message, "param": "type"});
        return vec![json!({"type": "error", "status": 400, "error": error})];
    }
    match responses::create(call, message, Some(archive)) {
        Ok(created) => created.events,
        Err(refusal) => vec![refused(&refusal)],
    }
}

fn refused(refusal: &Answer) -> Value {
    let body: Value = match &refusal.body {
        Body::Whole(bytes) => serde_json::from_slice(bytes).unwrap_or_default(),
        _ => Value::Null,
    };
    json!({"type": "error", "status": refusal.status, "error": body.get("error")})
}
