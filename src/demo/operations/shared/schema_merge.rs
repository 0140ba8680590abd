//! Several JSON schemas that a value has to satisfy at once, as one.

use serde_json::{Map, Value, json};

/// References that lead to references are followed this far.
const MAX_MERGES: usize = 32;

/// A schema with what its `$ref` and `allOf` say. `resolve` finds what a `$ref` names.
///
/// `None` if a reference leads nowhere, or in a circle, or if the schemas contradict each other.
pub(super) fn merged_with_references(
    schema: &Map<String, Value>,
    resolve: impl Fn(&str) -> Option<Map<String, Value>>,
) -> Option<Map<String, Value>> {
    let mut merged = schema.clone();
    for _ in 0..MAX_MERGES {
        if let Some(reference) = merged.remove("$ref") {
            merged = merge_schemas(&merged, &resolve(reference.as_str()?)?)?;
        } else if let Some(schemas) = merged.remove("allOf") {
            for schema in schemas.as_array()? {
                merged = match schema {
                    Value::Bool(true) => merged,
                    schema => merge_schemas(&merged, schema.as_object()?)?,
                };
            }
        } else {
            return Some(merged);
        }
    }
    None
}

/// A schema that is satisfied only by what satisfies both. `None` if they contradict each other.
pub(super) fn merge_schemas(
    first: &Map<String, Value>,
    second: &Map<String, Value>,
) -> Option<Map<String, Value>> {
    let mut merged = first.clone();
    for (keyword, value) in second {
        let value = match merged.get(keyword) {
            Some(known) => merge_keyword(keyword, known, value)?,
            None => value.clone(),
        };
        merged.insert(keyword.clone(), value);
    }
    Some(merged)
}

fn merge_keyword(keyword: &str, first: &Value, second: &Value) -> Option<Value> {
    let number = |larger: bool| {
        let (one, other) = (first.as_f64()?, second.as_f64()?);
        Some(if (one >= other) == larger { first.clone() } else { second.clone() })
    };
    match keyword {
        _ if first == second => Some(first.clone()),
        "type" => common_types(first, second),
        "required" => Some(union(first.as_array()?, second.as_array()?)),
        "enum" => {
            let (first, second) = (first.as_array()?, second.as_array()?);
            let common: Vec<&Value> = first.iter().filter(|value| second.contains(value)).collect();
            (!common.is_empty()).then(|| json!(common))
        }
        "properties" | "$defs" | "definitions" => {
            let mut merged = first.as_object()?.clone();
            for (name, schema) in second.as_object()? {
                let both = match merged.get(name) {
                    Some(known) => json!({"allOf": [known, schema]}),
                    None => schema.clone(),
                };
                merged.insert(name.clone(), both);
            }
            Some(Value::Object(merged))
        }
        "allOf" => Some(json!([first.as_array()?.as_slice(), second.as_array()?.as_slice()].concat())),
        "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties" => number(true),
        "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties" => number(false),
        "additionalProperties" | "items" => match (first, second) {
            (Value::Bool(true), other) | (other, Value::Bool(true)) => Some(other.clone()),
            (Value::Bool(false), _) | (_, Value::Bool(false)) => Some(json!(false)),
            _ => Some(json!({"allOf": [first, second]})),
        },
        "const" => None,
        _ => Some(second.clone()),
    }
}

fn union(first: &[Value], second: &[Value]) -> Value {
    let added = second.iter().filter(|value| !first.contains(value));
    json!(first.iter().chain(added).collect::<Vec<_>>())
}

/// The types that both allow. `integer` is the part of `number` that they have in common.
fn common_types(first: &Value, second: &Value) -> Option<Value> {
    let names = |value: &Value| -> Vec<String> {
        match value {
            Value::Array(names) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            other => other.as_str().map(str::to_owned).into_iter().collect(),
        }
    };
    let (first, second) = (names(first), names(second));
    let allows = |names: &[String], name: &str| {
        names.iter().any(|known| known == name || (name == "integer" && known == "number"))
    };
    let mut common: Vec<&String> = first.iter().filter(|name| allows(&second, name)).collect();
    common.extend(second.iter().filter(|name| allows(&first, name) && !first.contains(name)));
    (!common.is_empty()).then(|| json!(common))
}
