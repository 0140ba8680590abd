//! Whether a JSON schema is one that Azure accepts for structured output, and its words if it is not.

use serde_json::{Map, Value};

const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];
/// Keywords whose value is a schema, a list of schemas, or a map of schemas.
const SCHEMA_KEYWORDS: [&str; 3] = ["items", "additionalProperties", "contains"];
const SCHEMA_LIST_KEYWORDS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
const SCHEMA_MAP_KEYWORDS: [&str; 4] = ["properties", "$defs", "definitions", "patternProperties"];

/// Checks a schema. With `strict`, all properties must be required and no others allowed.
///
/// # Errors
/// What is wrong, beginning with the place.
pub(super) fn check_schema(schema: &Value, is_strict: bool) -> Result<(), String> {
    let root_type = schema.get("type").and_then(Value::as_str);
    if root_type != Some("object") {
        let found = root_type.unwrap_or("None");
        return Err(format!("schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{found}\"'."));
    }
    SchemaCheck { root: schema, is_strict }.check(schema, &mut Vec::new())
}

struct SchemaCheck<'s> {
    root: &'s Value,
    is_strict: bool,
}

impl SchemaCheck<'_> {
    fn check(&self, schema: &Value, path: &mut Vec<String>) -> Result<(), String> {
        if schema.is_boolean() {
            return Ok(());
        }
        let Some(members) = schema.as_object() else {
            return Err(in_context(path, &format!("{schema} is not of type 'object', 'boolean'.")));
        };
        self.check_keywords(members).map_err(|reason| in_context(path, &reason))?;
        for (keyword, value) in members {
            let inner: Vec<(Option<String>, &Value)> = match (keyword.as_str(), value) {
                (name, value) if SCHEMA_KEYWORDS.contains(&name) => vec![(None, value)],
                (name, Value::Array(schemas)) if SCHEMA_LIST_KEYWORDS.contains(&name) => schemas
                    .iter()
                    .enumerate()
                    .map(|(index, schema)| (Some(index.to_string()), schema))
                    .collect(),
                (name, Value::Object(schemas)) if SCHEMA_MAP_KEYWORDS.contains(&name) => {
                    schemas.iter().map(|(name, schema)| (Some(format!("'{name}'")), schema)).collect()
                }
                (name, value) if SCHEMA_LIST_KEYWORDS.contains(&name) => {
                    return Err(in_context(path, &format!("{value} is not of type 'array'.")));
                }
                (name, value) if SCHEMA_MAP_KEYWORDS.contains(&name) => {
                    return Err(in_context(path, &format!("{value} is not of type 'object'.")));
                }
                _ => continue,
            };
            for (name, schema) in inner {
                let length = path.len();
                path.push(format!("'{keyword}'"));
                path.extend(name);
                self.check(schema, path)?;
                path.truncate(length);
            }
        }
        Ok(())
    }

    fn check_keywords(&self, schema: &Map<String, Value>) -> Result<(), String> {
        let types: Vec<&Value> = match schema.get("type") {
            None => Vec::new(),
            Some(Value::Array(types)) => types.iter().collect(),
            Some(one) => vec![one],
        };
        if let Some(unknown) =
            types.iter().find(|one| !one.as_str().is_some_and(|name| TYPES.contains(&name)))
        {
            return Err(format!("{unknown} is not valid under any of the given schemas."));
        }
        if let Some(reference) = schema.get("$ref") {
            let target = reference.as_str().and_then(|reference| resolve_reference(self.root, reference));
            if target.is_none() {
                return Err(format!("reference to component {reference} which was not found in the schema."));
            }
        }
        if let Some(values) = schema.get("enum")
            && values.as_array().is_none_or(Vec::is_empty)
        {
            return Err("'enum' must be an array with at least one value.".to_owned());
        }
        let required = schema.get("required");
        if required.is_some_and(|required| {
            !required.as_array().is_some_and(|names| names.iter().all(Value::is_string))
        }) {
            return Err("'required' must be an array of strings.".to_owned());
        }
        let is_object = types.iter().any(|one| one.as_str() == Some("object"));
        if !self.is_strict || !is_object {
            return Ok(());
        }
        if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
            return Err("'additionalProperties' is required to be supplied and to be false.".to_owned());
        }
        let required = required.and_then(Value::as_array);
        let is_required =
            |name: &str| required.is_some_and(|names| names.iter().any(|known| known.as_str() == Some(name)));
        let properties = schema.get("properties").and_then(Value::as_object);
        match properties.into_iter().flatten().find(|(name, _)| !is_required(name)) {
            Some((name, _)) => Err(format!(
                "'required' is required to be supplied and to be an array including every key in properties. Missing '{name}'."
            )),
            None => Ok(()),
        }
    }
}

/// The schema that a `$ref` within the same document names.
pub(super) fn resolve_reference<'s>(root: &'s Value, reference: &str) -> Option<&'s Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// The place as a tuple of Python, as Azure writes it.
fn in_context(path: &[String], reason: &str) -> String {
    let comma = if path.len() == 1 { "," } else { "" };
    format!("In context=({}{comma}), {reason}", path.join(", "))
}
