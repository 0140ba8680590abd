//! The events by which a stream delivers one output item.

use serde_json::{Value, json};

use crate::demo::operations::shared::text_model::split_into_deltas;
use crate::demo::util::json::merge_objects;

/// Adds the events of one output item: the item appears empty, its content comes in deltas, then it is done.
pub(super) fn push_item_events(
    output_index: usize,
    item: &Value,
    padding: &mut impl FnMut() -> Option<String>,
    events: &mut Vec<Value>,
) {
    let id = item.get("id").cloned().unwrap_or_default();
    let mut added_item = item.clone();
    if let Some(map) = added_item.as_object_mut() {
        map.insert("status".to_owned(), json!("in_progress"));
        for (name, empty) in [("content", json!([])), ("arguments", json!(""))] {
            map.entry(name).and_modify(|value| *value = empty);
        }
    }
    events.push(
        json!({"type": "response.output_item.added", "output_index": output_index, "item": added_item}),
    );
    let mut delta = |event_type: &str, text: &str, more: Value| {
        let mut event =
            json!({"type": event_type, "item_id": id, "output_index": output_index, "delta": text});
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
            let position = json!({"item_id": id, "output_index": output_index, "content_index": 0});
            events.push(merge_objects(
                json!({"type": "response.content_part.added", "part": part("")}),
                &position,
            ));
            for word in split_into_deltas(text) {
                events.push(delta(
                    "response.output_text.delta",
                    word,
                    json!({"content_index": 0, "logprobs": []}),
                ));
            }
            let done = json!({"type": "response.output_text.done", "text": text, "logprobs": []});
            events.push(merge_objects(done, &position));
            events.push(merge_objects(
                json!({"type": "response.content_part.done", "part": part(text)}),
                &position,
            ));
        }
        Some("function_call") => {
            let arguments = item.get("arguments").and_then(Value::as_str).unwrap_or_default();
            for word in split_into_deltas(arguments) {
                events.push(delta("response.function_call_arguments.delta", word, Value::Null));
            }
            let name = item.get("name");
            let done = json!({"type": "response.function_call_arguments.done", "arguments": arguments, "name": name});
            events.push(merge_objects(done, &json!({"item_id": id, "output_index": output_index})));
        }
        _ => {}
    }
    events.push(json!({"type": "response.output_item.done", "output_index": output_index, "item": item}));
}
