//! JSON objects, and texts in them.

use serde_json::{Value, json};

/// Adds the members of `more` to the object `value`; a member that both have is taken from `more`.
pub(in crate::demo) fn merge_objects(mut value: Value, more: &Value) -> Value {
    if let (Some(map), Some(more)) = (value.as_object_mut(), more.as_object()) {
        map.extend(more.clone());
    }
    value
}

/// The text of the `content` of a message, which is a string or a list of parts.
pub(in crate::demo) fn content_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> =
                parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect();
            texts.join(" ")
        }
        _ => String::new(),
    }
}

/// Makes the `content` of a message a list with one part if it is a string, as it is given out.
pub(in crate::demo) fn expand_content(message: &mut Value) {
    let Some(text) = text_member(message, "content").map(str::to_owned) else { return };
    let is_of_model = text_member(message, "role") == Some("assistant");
    let part_type = if is_of_model { "output_text" } else { "input_text" };
    set_member(message, "content", json!([{"type": part_type, "text": text}]));
}

/// A member of an object that is a text.
pub(in crate::demo) fn text_member<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    value.get(name).and_then(Value::as_str)
}

/// The texts of a member that is a list.
pub(in crate::demo) fn text_list<'v>(value: &'v Value, name: &str) -> Vec<&'v str> {
    let list = value.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Sets a member of an object.
pub(in crate::demo) fn set_member(value: &mut Value, name: &str, member: Value) {
    if let Some(map) = value.as_object_mut() {
        map.insert(name.to_owned(), member);
    }
}
