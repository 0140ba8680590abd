//! Writes a JSON document that satisfies a JSON schema.
//!
//! Texts of the document are what the model would have said, as far as their schema lets them. Near the
//! surface all properties are there; deeper down only what is required, so that recursive schemas end.

use std::cell::Cell;

use serde_json::{Map, Value, json};

use super::schema_check::resolve_reference;
use super::schema_merge::{merge_schemas, merged_with_references};
use super::schema_scalars::{number_for_schema, text_for_schema};

/// How deep a document may be before nothing optional is written any more.
const GENEROUS_DEPTH: usize = 4;
/// How deep schemas are followed, counting references and alternatives.
const MAX_DEPTH: usize = 40;
/// Schemas that are looked at, for alternatives that fail one after the other.
const MAX_STEPS: u32 = 20_000;
const MAX_ITEMS: u64 = 1_000;

/// A document that satisfies the schema; `None` if none was found.
pub(in crate::demo) fn document_for_schema(schema: &Value, text: &str) -> Option<Value> {
    let writer = DocumentWriter { root: schema, text, steps: Cell::new(0), variant: Cell::new(0) };
    writer.document(schema, Depth::default())
}

struct DocumentWriter<'s> {
    root: &'s Value,
    text: &'s str,
    steps: Cell<u32>,
    /// Makes the items of a list differ from each other.
    variant: Cell<u64>,
}

/// How many schemas, and how many levels of the document, lead here.
#[derive(Debug, Clone, Copy, Default)]
struct Depth {
    schemas: usize,
    document: usize,
}

impl Depth {
    fn same_level(self) -> Self {
        Self { schemas: self.schemas + 1, ..self }
    }

    fn next_level(self) -> Self {
        Self { schemas: self.schemas + 1, document: self.document + 1 }
    }

    fn is_generous(self) -> bool {
        self.document < GENEROUS_DEPTH
    }
}

impl DocumentWriter<'_> {
    fn document(&self, schema: &Value, depth: Depth) -> Option<Value> {
        self.steps.set(self.steps.get() + 1);
        if depth.schemas > MAX_DEPTH || self.steps.get() > MAX_STEPS {
            return None;
        }
        let schema = match schema {
            Value::Bool(true) => return Some(json!(self.text)),
            Value::Object(members) => merged_with_references(members, |reference| {
                resolve_reference(self.root, reference)?.as_object().cloned()
            })?,
            _ => return None,
        };
        if let Some(value) = schema.get("const") {
            return Some(value.clone());
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(alternatives) = schema.get(keyword).and_then(Value::as_array) {
                let mut rest = schema.clone();
                rest.remove(keyword);
                return self.first_alternative(&rest, alternatives, depth);
            }
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return self.listed_value(&schema, values);
        }
        self.possible_types(&schema, depth).into_iter().find_map(|name| match name {
            "object" => self.object(&schema, depth),
            "array" => self.array(&schema, depth),
            "string" => text_for_schema(&schema, self.text, self.variant.get()).map(Value::from),
            "number" => number_for_schema(&schema, false, self.variant.get()),
            "integer" => number_for_schema(&schema, true, self.variant.get()),
            "boolean" => Some(json!(self.variant.get().is_multiple_of(2))),
            _ => Some(Value::Null),
        })
    }

    /// Deep down, simple alternatives come first.
    fn first_alternative(
        &self,
        rest: &Map<String, Value>,
        alternatives: &[Value],
        depth: Depth,
    ) -> Option<Value> {
        let mut alternatives: Vec<&Value> = alternatives.iter().collect();
        if !depth.is_generous() {
            alternatives.sort_by_key(|alternative| match alternative.get("type").and_then(Value::as_str) {
                Some("null") => 0,
                Some("boolean" | "integer" | "number" | "string") => 1,
                _ => 2,
            });
        }
        alternatives.into_iter().find_map(|alternative| match alternative {
            Value::Object(members) => {
                let merged = Value::Object(merge_schemas(rest, members)?);
                self.document(&merged, depth.same_level())
            }
            Value::Bool(true) => self.document(&Value::Object(rest.clone()), depth.same_level()),
            _ => None,
        })
    }

    fn listed_value(&self, schema: &Map<String, Value>, values: &[Value]) -> Option<Value> {
        let types = type_names(schema);
        let fits = |value: &&Value| types.is_empty() || types.iter().any(|name| has_type(value, name));
        let fitting: Vec<&Value> = values.iter().filter(fits).collect();
        let index = usize::try_from(self.variant.get()).unwrap_or_default();
        fitting.get(index).or(fitting.first()).map(|value| (*value).clone())
    }

    /// The types that a value may have, in the order in which they are tried.
    fn possible_types<'m>(&self, schema: &'m Map<String, Value>, depth: Depth) -> Vec<&'m str> {
        let mut types = type_names(schema);
        if types.is_empty() {
            let has = |names: &[&str]| names.iter().any(|name| schema.contains_key(*name));
            types.push(if has(&["properties", "required", "additionalProperties", "minProperties"]) {
                "object"
            } else if has(&["items", "prefixItems", "minItems", "contains"]) {
                "array"
            } else if has(&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]) {
                "number"
            } else {
                "string"
            });
        }
        // `null` comes last near the surface, and first deep down.
        types.sort_by_key(|name| (*name == "null") == depth.is_generous());
        types
    }

    fn object(&self, schema: &Map<String, Value>, depth: Depth) -> Option<Value> {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let additional = schema.get("additionalProperties").unwrap_or(&Value::Bool(true));
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let size = |name: &str| schema.get(name).and_then(Value::as_u64);
        let (min_size, max_size) =
            (size("minProperties").unwrap_or(0), size("maxProperties").unwrap_or(u64::MAX));
        let mut object = Map::new();
        for name in &required {
            let value = self.document(properties.get(*name).unwrap_or(additional), depth.next_level())?;
            object.insert((*name).to_owned(), value);
        }
        for (name, schema) in properties.iter().filter(|(name, _)| !required.contains(&name.as_str())) {
            let is_wanted = depth.is_generous() || (object.len() as u64) < min_size;
            if is_wanted
                && (object.len() as u64) < max_size
                && let Some(value) = self.document(schema, depth.next_level())
            {
                object.insert(name.clone(), value);
            }
        }
        for number in 1..=min_size.min(MAX_ITEMS) {
            if object.len() as u64 >= min_size {
                break;
            }
            object.insert(format!("property_{number}"), self.document(additional, depth.next_level())?);
        }
        ((min_size..=max_size).contains(&(object.len() as u64))).then_some(Value::Object(object))
    }

    fn array(&self, schema: &Map<String, Value>, depth: Depth) -> Option<Value> {
        let size = |name: &str| schema.get(name).and_then(Value::as_u64);
        let (min_size, max_size) = (size("minItems").unwrap_or(0), size("maxItems").unwrap_or(u64::MAX));
        let prefix = schema.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let items = schema.get("items").unwrap_or(&Value::Bool(true));
        let is_unique = schema.get("uniqueItems") == Some(&Value::Bool(true));
        let contained = schema.get("contains");
        let wanted = if depth.is_generous() { min_size.max(prefix.len().max(1) as u64) } else { min_size };
        let wanted = wanted.max(u64::from(contained.is_some())).min(max_size).min(MAX_ITEMS);
        let outer_variant = self.variant.get();
        let mut array: Vec<Value> = Vec::new();
        for index in 0..wanted {
            self.variant.set(if is_unique { index } else { outer_variant });
            let position = usize::try_from(index).ok()?;
            let schema =
                prefix.get(position).or(contained.filter(|_| position == prefix.len())).unwrap_or(items);
            match self.document(schema, depth.next_level()) {
                Some(value) if is_unique && array.contains(&value) => break,
                Some(value) => array.push(value),
                None => break,
            }
        }
        self.variant.set(outer_variant);
        ((min_size..=max_size).contains(&(array.len() as u64))).then_some(Value::Array(array))
    }
}

fn type_names(schema: &Map<String, Value>) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "boolean" => value.is_boolean(),
        _ => value.is_null(),
    }
}
