//! A response of the Responses API as an object, and the events that tell of its making.

use serde_json::{Map, Value, json};

use super::azure::harmless;
use super::text::deltas;

/// Parameters that a response repeats from its request, with what stands there when not given.
fn echoed() -> [(&'static str, Value); 17] {
    [
        ("background", json!(false)),
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("max_tool_calls", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("previous_response_id", Value::Null),
        ("prompt_cache_key", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("safety_identifier", Value::Null),
        ("store", json!(true)),
        ("temperature", json!(1.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_p", json!(1.0)),
        ("truncation", json!("disabled")),
    ]
}

/// What was generated.
pub(super) struct Made {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// Complete output items.
    pub(super) output: Vec<Value>,
    /// The output was cut off.
    pub(super) cut: bool,
    pub(super) usage: Value,
}

impl Made {
    /// The finished response.
    pub(super) fn finished(&self, request: &Value) -> Value {
        let status = if self.cut { "incomplete" } else { "completed" };
        let mut response = self.base(request, status);
        response.insert("output".to_owned(), json!(self.output));
        response.insert("usage".to_owned(), self.usage.clone());
        if self.cut {
            response.insert("incomplete_details".to_owned(), json!({"reason": "max_output_tokens"}));
        }
        let filter = |source: &str| {
            json!({
                "blocked": false, "source_type": source, "content_filter_results": harmless(source == "prompt"),
                "content_filter_offsets": {"start_offset": 0, "end_offset": 0, "check_offset": 0},
            })
        };
        response.insert("content_filters".to_owned(), json!([filter("prompt"), filter("completion")]));
        Value::Object(response)
    }

    /// The response before there is output.
    pub(super) fn pending(&self, request: &Value, status: &str) -> Value {
        let mut response = self.base(request, status);
        response.insert("output".to_owned(), json!([]));
        response.insert("usage".to_owned(), Value::Null);
        Value::Object(response)
    }

    fn base(&self, request: &Value, status: &str) -> Map<String, Value> {
        let mut response = Map::new();
        response.insert("id".to_owned(), json!(self.id));
        response.insert("object".to_owned(), json!("response"));
        response.insert("created_at".to_owned(), json!(self.created));
        response.insert("status".to_owned(), json!(status));
        response.insert("model".to_owned(), json!(self.model));
        response.insert("error".to_owned(), Value::Null);
        response.insert("incomplete_details".to_owned(), Value::Null);
        response.insert("service_tier".to_owned(), json!("default"));
        response.insert("user".to_owned(), request.get("user").cloned().unwrap_or_default());
        for (name, default) in echoed() {
            let given = request.get(name).filter(|value| !value.is_null()).cloned();
            response.insert(name.to_owned(), given.unwrap_or(default));
        }
        response
    }

    /// All events of a stream, numbered from 0.
    pub(super) fn events(&self, request: &Value, mut padding: impl FnMut() -> Option<String>) -> Vec<Value> {
        let is_background = request.get("background").and_then(Value::as_bool).unwrap_or(false);
        let mut events = Vec::new();
        if is_background {
            events.push(json!({"type": "response.created", "response": self.pending(request, "queued")}));
            events.push(json!({"type": "response.queued", "response": self.pending(request, "queued")}));
        } else {
            events
                .push(json!({"type": "response.created", "response": self.pending(request, "in_progress")}));
        }
        events
            .push(json!({"type": "response.in_progress", "response": self.pending(request, "in_progress")}));
        for (index, item) in self.output.iter().enumerate() {
            item_events(index, item, &mut padding, &mut events);
        }
        let kind = if self.cut { "response.incomplete" } else { "response.completed" };
        events.push(json!({"type": kind, "response": self.finished(request)}));
        for (number, event) in events.iter_mut().enumerate() {
            if let Some(map) = event.as_object_mut() {
                map.insert("sequence_number".to_owned(), json!(number));
            }
        }
        events
    }
}

fn item_events(
    index: usize,
    item: &Value,
    padding: &mut impl FnMut() -> Option<String>,
    events: &mut Vec<Value>,
) {
    let id = item.get("id").cloned().unwrap_or_default();
    let mut opened = item.clone();
    if let Some(map) = opened.as_object_mut() {
        map.insert("status".to_owned(), json!("in_progress"));
        for (name, empty) in [("content", json!([])), ("arguments", json!(""))] {
            map.entry(name).and_modify(|value| *value = empty);
        }
    }
    events.push(json!({"type": "response.output_item.added", "output_index": index, "item": opened}));
    let mut delta = |kind: &str, text: &str, more: Value| {
        let mut event = json!({"type": kind, "item_id": id, "output_index": index, "delta": text});
        if let Some(map) = event.as_object_mut() {
            map.extend(padding().map(|padding| ("obfuscation".to_owned(), json!(padding))));
            map.extend(more.as_object().cloned().unwrap_or_default());
        }
        event
    };
    match item.get("type").and_then(Value::as_str) {
        Some("message") => {
            let text = item.pointer("/content/0/text").and_then(Value::as_str).unwrap_or_default();
            let part =
                |text: &str| json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
            let at = json!({"item_id": id, "output_index": index, "content_index": 0});
            events.push(merged(json!({"type": "response.content_part.added", "part": part("")}), &at));
            for word in deltas(text) {
                events.push(delta(
                    "response.output_text.delta",
                    word,
                    json!({"content_index": 0, "logprobs": []}),
                ));
            }
            events.push(merged(
                json!({"type": "response.output_text.done", "text": text, "logprobs": []}),
                &at,
            ));
            events.push(merged(json!({"type": "response.content_part.done", "part": part(text)}), &at));
        }
        Some("function_call") => {
            let arguments = item.get("arguments").and_then(Value::as_str).unwrap_or_default();
            for word in deltas(arguments) {
                events.push(delta("response.function_call_arguments.delta", word, Value::Null));
            }
            let name = item.get("name");
            let done = json!({"type": "response.function_call_arguments.done", "arguments": arguments, "name": name});
            events.push(merged(done, &json!({"item_id": id, "output_index": index})));
        }
        _ => {}
    }
    events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
}

fn merged(mut value: Value, more: &Value) -> Value {
    if let (Some(map), Some(more)) = (value.as_object_mut(), more.as_object()) {
        map.extend(more.clone());
    }
    value
}
