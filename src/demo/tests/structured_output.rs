//! Structured output: documents that satisfy the JSON schema of a request, whole and streamed.

use proptest::prelude::*;
use serde_json::Map;

use super::*;
use crate::demo::operations::shared::schema_document::document_for_schema;

/// Whether a document satisfies a schema, as far as the schemas of these tests go. It knows nothing of how
/// documents are written.
fn satisfies(root: &Value, schema: &Value, document: &Value) -> bool {
    let Some(schema) = schema.as_object() else { return schema == &json!(true) };
    let number = |name: &str| schema.get(name).and_then(Value::as_f64);
    let list = |name: &str| schema.get(name).and_then(Value::as_array);
    let is_of_type = |name: &Value| match name.as_str().unwrap() {
        "object" => document.is_object(),
        "array" => document.is_array(),
        "string" => document.is_string(),
        "number" => document.is_number(),
        "integer" => document.as_f64().is_some_and(|number| number.fract() == 0.0),
        "boolean" => document.is_boolean(),
        "null" => document.is_null(),
        other => panic!("unknown type {other}"),
    };
    let has_type = match schema.get("type") {
        None => true,
        Some(Value::Array(names)) => names.iter().any(is_of_type),
        Some(name) => is_of_type(name),
    };
    let check = |schema: &Value| satisfies(root, schema, document);
    let general = has_type
        && schema.get("const").is_none_or(|value| value == document)
        && list("enum").is_none_or(|values| values.contains(document))
        && list("anyOf").is_none_or(|schemas| schemas.iter().any(check))
        && list("allOf").is_none_or(|schemas| schemas.iter().all(check))
        && schema
            .get("$ref")
            .is_none_or(|reference| check(root.pointer(&reference.as_str().unwrap()[1..]).unwrap()));
    let within = |value: f64, minimum: &str, maximum: &str| {
        number(minimum).is_none_or(|bound| value >= bound)
            && number(maximum).is_none_or(|bound| value <= bound)
    };
    general
        && match document {
            Value::Number(value) => {
                let value = value.as_f64().unwrap();
                within(value, "minimum", "maximum")
                    && number("exclusiveMinimum").is_none_or(|bound| value > bound)
                    && number("exclusiveMaximum").is_none_or(|bound| value < bound)
                    && number("multipleOf").is_none_or(|step| {
                        let rest = (value / step).fract().abs();
                        !(1e-6..=1.0 - 1e-6).contains(&rest)
                    })
            }
            Value::String(text) => {
                within(text.chars().count() as f64, "minLength", "maxLength")
                    && schema.get("pattern").is_none_or(|pattern| {
                        regex::Regex::new(pattern.as_str().unwrap()).unwrap().is_match(text)
                    })
            }
            Value::Array(items) => {
                let prefix = list("prefixItems").map_or(&[][..], Vec::as_slice);
                let items_match = items.iter().enumerate().all(|(index, item)| {
                    let schema = prefix.get(index).or(schema.get("items"));
                    schema.is_none_or(|schema| satisfies(root, schema, item))
                });
                let is_unique = schema.get("uniqueItems") != Some(&json!(true))
                    || items.iter().enumerate().all(|(index, item)| !items[..index].contains(item));
                within(items.len() as f64, "minItems", "maxItems") && items_match && is_unique
            }
            Value::Object(members) => {
                let empty = Map::new();
                let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
                let members_match = members.iter().all(|(name, member)| {
                    let schema = properties.get(name).or(schema.get("additionalProperties"));
                    schema.is_none_or(|schema| satisfies(root, schema, member))
                });
                let has_required = list("required")
                    .into_iter()
                    .flatten()
                    .all(|name| members.contains_key(name.as_str().unwrap()));
                members_match && has_required
            }
            _ => true,
        }
}

#[test]
fn documents_satisfy_their_schemas() {
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    let schemas = [
        object(json!({"a": {"type": "string", "maxLength": 3}, "b": {"type": "string", "minLength": 200}})),
        object(json!({"a": {"enum": [1, "two", null], "type": "string"}, "b": {"const": {"c": [1]}}})),
        object(json!({"a": {"type": ["null", "integer"], "exclusiveMinimum": 4, "maximum": 5}})),
        object(json!({"a": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}})),
        object(
            json!({"a": {"type": "number", "maximum": -3, "multipleOf": 2.5}, "b": {"type": "integer", "maximum": -3}}),
        ),
        object(
            json!({"a": {"type": "array", "items": {"type": "integer"}, "minItems": 7, "uniqueItems": true}}),
        ),
        object(
            json!({"a": {"type": "array", "items": {"enum": ["x", "y", "z"]}, "minItems": 3, "uniqueItems": true}}),
        ),
        object(
            json!({"a": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": false}}),
        ),
        object(json!({"a": {"type": "array", "maxItems": 0}, "b": {"type": "boolean"}})),
        object(json!({"a": {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}(x|y)?$"}})),
        object(json!({"a": {"type": "string", "pattern": "^\\w+@[a-z.]+$", "minLength": 12}})),
        object(json!({"a": {"anyOf": [{"$ref": "#/$defs/none"}, {"type": "null"}]}})),
        object(json!({"a": {"type": "string", "anyOf": [{"minLength": 100}, {"maxLength": 1}]}})),
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "b"], "minProperties": 4}),
        json!({"type": "object", "allOf": [
            {"properties": {"a": {"type": "number"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 7}, "b": {"type": "null"}}, "required": ["b"]},
        ]}),
        // A tree that ends only if the optional is left out deep down.
        json!({"type": "object", "$defs": {"node": {"type": "object", "properties": {
            "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "right": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
        }, "required": ["left", "right", "children"], "additionalProperties": false}},
            "properties": {"root": {"$ref": "#/$defs/node"}}, "required": ["root"], "additionalProperties": false}),
        // A list that refers to its root.
        json!({"type": "object", "properties": {"value": {"type": "string"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["value", "next"], "additionalProperties": false}),
    ];
    for mut schema in schemas {
        schema.as_object_mut().unwrap().entry("$defs").or_insert(json!({}));
        if schema.to_string().contains("#/$defs/none") {
            schema["$defs"]["none"] =
                json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}, "required": ["x"]});
        }
        let document = document_for_schema(&schema, "You said: hello there")
            .unwrap_or_else(|| panic!("none for {schema}"));
        assert!(satisfies(&schema, &schema, &document), "{schema}\n{document}");
    }
    let endless = json!({"type": "object", "properties": {"x": {"$ref": "#"}, "y": {"$ref": "#"}}, "required": ["x", "y"]});
    assert_eq!(document_for_schema(&endless, "text"), None);
}

/// A schema, at most `depth` levels deep, that some value satisfies.
fn any_schema(depth: u32) -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        (0u64..30, 0u64..30)
            .prop_map(|(min, more)| json!({"type": "string", "minLength": min, "maxLength": min + more})),
        (-50i64..50, 0i64..50)
            .prop_map(|(min, more)| json!({"type": "integer", "minimum": min, "maximum": min + more})),
        (-50i64..50, 1i64..9)
            .prop_map(|(min, step)| json!({"type": "integer", "minimum": min, "multipleOf": step})),
        (-50.0..50.0f64).prop_map(|max| json!({"type": "number", "exclusiveMaximum": max})),
        (-50.0..50.0f64, 0.1..9.0f64).prop_map(
            |(min, more)| json!({"type": "number", "exclusiveMinimum": min, "exclusiveMaximum": min + more})
        ),
        prop::collection::vec(any::<u8>(), 1..4).prop_map(|values| json!({ "enum": values })),
        Just(json!({"type": ["boolean", "null"]})),
        Just(json!({"const": [1, {"a": "b"}]})),
        Just(json!({"type": "string", "pattern": "^(ab|c)[0-9]{2,4}$"})),
        Just(json!({"$ref": "#/$defs/shared"})),
        Just(json!(true)),
    ];
    leaf.prop_recursive(depth, 32, 4, |inner| {
        prop_oneof![
            (prop::collection::btree_map("[a-e]", inner.clone(), 0..4), any::<bool>(), any::<u8>()).prop_map(
                |(properties, is_closed, chosen)| {
                    let is_chosen = |index: usize| chosen & (1 << index) != 0;
                    let required: Vec<&String> =
                        properties.keys().enumerate().filter(|(index, _)| is_chosen(*index)).map(|(_, name)| name).collect();
                    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": !is_closed})
                }
            ),
            (inner.clone(), 0u64..4, 0u64..3)
                .prop_map(|(items, min, more)| json!({"type": "array", "items": items, "minItems": min, "maxItems": min + more})),
            prop::collection::vec(inner, 1..4).prop_map(|schemas| json!({ "anyOf": schemas })),
        ]
    })
    .boxed()
}

proptest! {
    #[test]
    fn any_document_satisfies_its_schema(inner in any_schema(4), text in ".{0,40}") {
        let schema = json!({
            "type": "object", "properties": {"value": inner}, "required": ["value"], "additionalProperties": false,
            "$defs": {"shared": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
        });
        let document = document_for_schema(&schema, &text);
        prop_assert!(document.is_some(), "{}", schema);
        let document = document.unwrap();
        prop_assert!(satisfies(&schema, &schema, &document), "{}\n{}", schema, document);
    }

    #[test]
    fn any_json_may_be_offered_as_a_schema(
        schema in any_schema(3), keyword in "(type|items|properties|required|enum|anyOf|allOf|\\$ref|pattern|minimum|minItems)",
        value in prop_oneof![Just(json!(null)), Just(json!("#")), Just(json!([1, "a"])), Just(json!({"a": 1})), Just(json!(1e300))],
    ) {
        let mut schema = json!({"type": "object", "properties": {"a": schema}});
        schema["properties"]["b"] = json!({ (keyword.as_str()): value });
        let _ = document_for_schema(&schema, "text");
        schema[keyword.as_str()] = value;
        let _ = document_for_schema(&schema, "text");
    }
}

fn strict_schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["city", "degrees", "days"],
        "properties": {
            "city": {"type": "string"}, "degrees": {"type": "number", "minimum": -90, "maximum": 60},
            "days": {"type": "array", "minItems": 2, "items": {"enum": ["mon", "tue"]}},
        },
    })
}

#[tokio::test]
async fn both_apis_answer_with_a_document_whole_and_streamed() {
    let simulator = start_simulator(east_resource()).await;
    let schema = strict_schema();
    let chat = json!({
        "model": "gpt-4o", "n": 2, "messages": [{"role": "user", "content": "weather in Kiel"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "weather", "strict": true, "schema": schema}},
    });
    let body = json!({
        "input": "weather in Kiel",
        "text": {"format": {"type": "json_schema", "name": "weather", "strict": true, "schema": schema}},
    });
    let streamed = |body: &Value| {
        let mut body = body.clone();
        (body["stream"], body["n"]) = (json!(true), json!(1));
        body
    };
    let completion = post(&simulator, "east", "/chat/completions", &chat).await.json();
    let content =
        |choice: usize| completion["choices"][choice]["message"]["content"].as_str().unwrap().to_owned();
    let response = respond(&simulator, "east", body.clone()).await.json();
    let texts = [
        content(0),
        content(1),
        post(&simulator, "east", "/chat/completions", &streamed(&chat)).await.chat_text(),
        message_text(&response).to_owned(),
        respond(&simulator, "east", streamed(&body))
            .await
            .events()
            .iter()
            .filter(|event| event["type"] == "response.output_text.delta")
            .map(|event| event["delta"].as_str().unwrap())
            .collect(),
    ];
    for text in texts {
        let document: Value = serde_json::from_str(&text).unwrap();
        assert!(satisfies(&schema, &schema, &document), "{document}");
        assert!(document["city"].as_str().unwrap().contains("weather in Kiel"), "{document}");
    }
    let follow_up = json!({"input": "and now", "previous_response_id": response["id"], "text": body["text"]});
    let answer = respond(&simulator, "east", follow_up).await.json();
    assert!(message_text(&answer).contains("Turn 2; you began with: weather in Kiel"), "{answer}");
}

#[tokio::test]
async fn json_without_a_schema_has_to_be_asked_for_in_words() {
    let simulator = start_simulator(east_resource()).await;
    for (text, status) in [("in JSON please", 200), ("please", 400)] {
        let chat = json!({
            "model": "gpt-4o", "messages": [{"role": "user", "content": text}], "response_format": {"type": "json_object"},
        });
        let completion = post(&simulator, "east", "/chat/completions", &chat).await;
        let response =
            respond(&simulator, "east", json!({"input": text, "text": {"format": {"type": "json_object"}}}))
                .await;
        assert_eq!((completion.status, response.status), (status, status), "{completion:?} {response:?}");
        if status == 200 {
            let content = completion.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
            let response = response.json();
            for text in [content.as_str(), message_text(&response)] {
                assert!(serde_json::from_str::<Value>(text).unwrap().is_object());
            }
        }
    }
}

#[tokio::test]
async fn invalid_schemas_are_refused_in_the_words_of_azure() {
    let simulator = start_simulator(east_resource()).await;
    let with = |pointer: &str, value: Value| {
        let mut schema = strict_schema();
        *schema.pointer_mut(pointer).unwrap() = value;
        schema
    };
    let cases = [
        (
            with("/type", json!("array")),
            "schema must be a JSON Schema of 'type: \"object\"', got 'type: \"array\"'.",
        ),
        (
            with("/additionalProperties", json!(true)),
            "In context=(), 'additionalProperties' is required to be supplied and to be false.",
        ),
        (
            with("/required", json!(["city", "days"])),
            "In context=(), 'required' is required to be supplied and to be an array including every key in properties. \
             Missing 'degrees'.",
        ),
        (
            with("/properties/city", json!({"type": "text"})),
            "In context=('properties', 'city'), \"text\" is not valid under any of the given schemas.",
        ),
        (
            with("/properties/days/items", json!({"$ref": "#/$defs/day"})),
            "In context=('properties', 'days', 'items'), reference to component \"#/$defs/day\" which was not found in the \
             schema.",
        ),
        (
            with("/properties/days/items/enum", json!([])),
            "In context=('properties', 'days', 'items'), 'enum' must be an array with at least one value.",
        ),
        (
            with("/properties/city", json!(7)),
            "In context=('properties', 'city'), 7 is not of type 'object', 'boolean'.",
        ),
        (with("/properties/city", json!({"$ref": "#"})), "In context=(), the schema allows no value."),
    ];
    for (schema, reason) in cases {
        let message = format!("Invalid schema for response_format 'weather': {reason}");
        let format = json!({"name": "weather", "strict": true, "schema": schema});
        let chat = json!({
            "model": "gpt-4o", "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": format},
        });
        let refused = post(&simulator, "east", "/chat/completions", &chat).await;
        let expected = json!({"message": message, "type": "invalid_request_error", "param": "response_format", "code": null});
        assert_eq!((refused.status, refused.json()["error"].clone()), (400, expected));
        let mut format = format;
        format["type"] = json!("json_schema");
        let refused = respond(&simulator, "east", json!({"input": "x", "text": {"format": format}})).await;
        let expected = json!({
            "message": message, "type": "invalid_request_error", "param": "text.format.schema", "code": "invalid_json_schema",
        });
        assert_eq!((refused.status, refused.json()["error"].clone()), (400, expected));
    }
    let lenient = with("/additionalProperties", json!(true));
    let format = json!({"type": "json_schema", "name": "weather", "schema": lenient});
    assert_eq!(
        respond(&simulator, "east", json!({"input": "x", "text": {"format": format}})).await.status,
        200
    );
    let unnamed = json!({"type": "json_schema", "schema": strict_schema()});
    let refused = respond(&simulator, "east", json!({"input": "x", "text": {"format": unnamed}})).await;
    assert_eq!(refused.json()["error"]["param"], "text.format.name");
    let unknown =
        respond(&simulator, "east", json!({"input": "x", "text": {"format": {"type": "xml"}}})).await;
    assert_eq!(unknown.json()["error"]["code"], "invalid_value");
}
