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
        for (name, empty) in [("content", json!([])), ("arguments", json!("")), ("code", json!(""))] {
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
            let annotations = item.pointer("/content/0/annotations").cloned().unwrap_or(json!([]));
            let part = |text: &str, annotations: &Value| json!({"type": "output_text", "text": text, "annotations": annotations, "logprobs": []});
            let position = json!({"item_id": id, "output_index": output_index, "content_index": 0});
            events.push(merge_objects(
                json!({"type": "response.content_part.added", "part": part("", &json!([]))}),
                &position,
            ));
            for word in split_into_deltas(text) {
                events.push(delta(
                    "response.output_text.delta",
                    word,
                    json!({"content_index": 0, "logprobs": []}),
                ));
            }
            for (index, annotation) in annotations.as_array().into_iter().flatten().enumerate() {
                let added = json!({
                    "type": "response.output_text.annotation.added", "annotation_index": index, "annotation": annotation,
                });
                events.push(merge_objects(added, &position));
            }
            let done = json!({"type": "response.output_text.done", "text": text, "logprobs": []});
            events.push(merge_objects(done, &position));
            events.push(merge_objects(
                json!({"type": "response.content_part.done", "part": part(text, &annotations)}),
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
        Some("file_search_call") => {
            for step in ["in_progress", "searching", "completed"] {
                events.push(json!({
                    "type": format!("response.file_search_call.{step}"), "item_id": id, "output_index": output_index,
                }));
            }
        }
        Some("code_interpreter_call") => {
            let code = item.get("code").and_then(Value::as_str).unwrap_or_default();
            let event = |step: &str| json!({"type": format!("response.code_interpreter_call{step}"), "item_id": id, "output_index": output_index});
            events.push(event(".in_progress"));
            events.push(delta("response.code_interpreter_call_code.delta", code, Value::Null));
            events.push(merge_objects(event("_code.done"), &json!({"code": code})));
            events.extend([event(".interpreting"), event(".completed")]);
        }
        _ => {}
    }
    events.push(json!({"type": "response.output_item.done", "output_index": output_index, "item": item}));
}
