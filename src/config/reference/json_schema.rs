//! The reference as a JSON schema, for editors.

use serde_json::{Map, Value, json};

use super::tree::{KeyNode, read_tree};
use crate::config::yaml::ValueKind;

/// A text with a variable or a file in it, whose value is not known to an editor.
const EXPANSION: &str = r"\$\{.*\}";
/// The units of durations.
const DURATION_UNITS: &str = "ns|us|ms|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?";

/// The schema, as text.
pub fn json_schema() -> String {
    let mut schema = schema_of(&read_tree());
    if let Value::Object(root) = &mut schema {
        root.insert("$schema".to_owned(), json!("http://json-schema.org/draft-07/schema#"));
        root.insert("title".to_owned(), json!("The configuration of aoai-lb"));
    }
    // A value of texts and numbers can always be written.
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

fn schema_of(node: &KeyNode) -> Value {
    let mut forms: Vec<Value> = node.kinds.shown().map(|kind| schema_of_kind(node, kind)).collect();
    let mut schema = match (forms.pop(), forms.is_empty()) {
        (Some(only), true) => only,
        (Some(last), false) => {
            forms.push(last);
            json!({ "anyOf": forms })
        }
        (None, _) => json!({}),
    };
    if let Value::Object(schema) = &mut schema {
        describe(node, schema);
    }
    schema
}

fn describe(node: &KeyNode, schema: &mut Map<String, Value>) {
    let default = node.comment.default.as_ref().map(|value| format!("Default: {value}"));
    let parts: Vec<String> = [Some(node.comment.text.clone()), default].into_iter().flatten().collect();
    let description =
        parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(". ");
    if !description.is_empty() {
        schema.insert("description".to_owned(), json!(description));
    }
}

fn schema_of_kind(node: &KeyNode, kind: &ValueKind) -> Value {
    let with_unit =
        |pattern: &str| json!({ "type": "string", "pattern": format!("^({pattern})$|{EXPANSION}") });
    match kind {
        ValueKind::Mapping(_) => {
            let properties: Map<String, Value> =
                node.keys.iter().map(|(name, key)| (name.clone(), schema_of(key))).collect();
            json!({ "type": "object", "additionalProperties": false, "properties": properties })
        }
        ValueKind::NamedEntries => {
            json!({ "type": "object", "additionalProperties": node.entry.as_deref().map_or(json!(true), schema_of) })
        }
        ValueKind::List => {
            json!({ "type": "array", "items": node.item.as_deref().map_or(json!({}), schema_of) })
        }
        // `007` and `true` without quotes are read as they are written.
        ValueKind::Text | ValueKind::Path => json!({ "type": ["string", "number", "boolean"] }),
        ValueKind::Choice(words) => {
            // `1.2` without quotes is read as it is written.
            let numbers = words.iter().filter_map(|word| word.parse::<f64>().ok()).map(Value::from);
            let values: Vec<Value> = words.iter().map(|word| json!(word)).chain(numbers).collect();
            json!({ "anyOf": [{ "enum": values }, { "type": "string", "pattern": EXPANSION }] })
        }
        ValueKind::Integer(first, last) => json!({ "anyOf": [
            { "type": "integer", "minimum": first, "maximum": last },
            { "type": "string", "pattern": format!("^[0-9]+$|{EXPANSION}") },
        ] }),
        ValueKind::Decimal(_) => json!({ "anyOf": [
            { "type": "number", "minimum": 0 },
            { "type": "string", "pattern": format!(r"^[0-9]+(\.[0-9]+)?$|{EXPANSION}") },
        ] }),
        ValueKind::Bool => json!({ "anyOf": [
            { "type": "boolean" },
            { "type": "string", "pattern": format!("^(true|false)$|{EXPANSION}") },
        ] }),
        ValueKind::Duration => with_unit(&format!(r"(\s*[0-9]+\s*({DURATION_UNITS})\s*)+")),
        ValueKind::Percentage => with_unit(r"\s*[0-9]+\s*%\s*"),
        ValueKind::ByteSize => with_unit(r"\s*[0-9]+\s*([kKmMgG][iI]?)?[bB]\s*"),
    }
}
