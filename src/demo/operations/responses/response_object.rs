//! The response object, and the events of its stream.

use serde_json::{Map, Value, json};

use super::item_events::push_item_events;
use super::references::conversation_id;
use crate::demo::api::content_filter::passed_filter_results;
use crate::demo::operations::shared::service_tier::ServiceTier;

/// A response of the Responses API.
pub(super) struct ResponseObject {
    pub(super) id: String,
    pub(super) created_at: u64,
    pub(super) deployment_name: String,
    /// The output items in their final state.
    pub(super) output_items: Vec<Value>,
    /// Whether the output was cut off at `max_output_tokens`.
    pub(super) is_truncated: bool,
    pub(super) usage: Value,
    pub(super) service_tier: ServiceTier,
}

impl ResponseObject {
    /// The response when it is complete. `request` is the body of the request.
    pub(super) fn to_finished_json(&self, request: &Value) -> Value {
        let status = if self.is_truncated { "incomplete" } else { "completed" };
        let mut response = self.common_fields(request, status);
        response.insert("output".to_owned(), json!(self.output_items));
        response.insert("usage".to_owned(), self.usage.clone());
        response.insert("service_tier".to_owned(), json!(self.service_tier.as_str()));
        if self.is_truncated {
            response.insert("incomplete_details".to_owned(), json!({"reason": "max_output_tokens"}));
        }
        let filter_result = |source: &str| {
            json!({
                "blocked": false, "source_type": source, "content_filter_results": passed_filter_results(source == "prompt"),
                "content_filter_offsets": {"start_offset": 0, "end_offset": 0, "check_offset": 0},
            })
        };
        response.insert(
            "content_filters".to_owned(),
            json!([filter_result("prompt"), filter_result("completion")]),
        );
        Value::Object(response)
    }

    /// The response before there is output, with the given status.
    pub(super) fn to_pending_json(&self, request: &Value, status: &str) -> Value {
        let mut response = self.common_fields(request, status);
        response.insert("output".to_owned(), json!([]));
        response.insert("usage".to_owned(), Value::Null);
        Value::Object(response)
    }

    /// The fields that are the same in all states.
    fn common_fields(&self, request: &Value, status: &str) -> Map<String, Value> {
        let mut response = Map::new();
        response.insert("id".to_owned(), json!(self.id));
        response.insert("object".to_owned(), json!("response"));
        response.insert("created_at".to_owned(), json!(self.created_at));
        response.insert("status".to_owned(), json!(status));
        response.insert("model".to_owned(), json!(self.deployment_name));
        response.insert("error".to_owned(), Value::Null);
        response.insert("incomplete_details".to_owned(), Value::Null);
        if let Some(id) = conversation_id(request) {
            response.insert("conversation".to_owned(), json!({"id": id}));
        }
        response.insert("user".to_owned(), request.get("user").cloned().unwrap_or_default());
        for (name, default) in echoed_parameter_defaults() {
            let given = request.get(name).filter(|value| !value.is_null()).cloned();
            response.insert(name.to_owned(), given.unwrap_or(default));
        }
        response
    }

    /// All events of the stream, numbered from 0. `padding` returns the obfuscation of the next delta.
    pub(super) fn to_stream_events(
        &self,
        request: &Value,
        mut padding: impl FnMut() -> Option<String>,
    ) -> Vec<Value> {
        let is_background = request.get("background").and_then(Value::as_bool).unwrap_or(false);
        let mut events = Vec::new();
        if is_background {
            events.push(
                json!({"type": "response.created", "response": self.to_pending_json(request, "queued")}),
            );
            events.push(
                json!({"type": "response.queued", "response": self.to_pending_json(request, "queued")}),
            );
        } else {
            events.push(
                json!({"type": "response.created", "response": self.to_pending_json(request, "in_progress")}),
            );
        }
        events.push(
            json!({"type": "response.in_progress", "response": self.to_pending_json(request, "in_progress")}),
        );
        for (index, item) in self.output_items.iter().enumerate() {
            push_item_events(index, item, &mut padding, &mut events);
        }
        let last_type = if self.is_truncated { "response.incomplete" } else { "response.completed" };
        events.push(json!({"type": last_type, "response": self.to_finished_json(request)}));
        for (number, event) in events.iter_mut().enumerate() {
            if let Some(map) = event.as_object_mut() {
                map.insert("sequence_number".to_owned(), json!(number));
            }
        }
        events
    }
}

/// The parameters that a response repeats from its request, with their defaults.
fn echoed_parameter_defaults() -> [(&'static str, Value); 18] {
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
        // Until the response is finished, this is the tier that was asked for.
        ("service_tier", json!("auto")),
        ("store", json!(true)),
        ("temperature", json!(1.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_p", json!(1.0)),
        ("truncation", json!("disabled")),
    ]
}
