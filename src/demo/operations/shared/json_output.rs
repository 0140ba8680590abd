//! Structured output: `response_format` of chat completions, `text.format` of the Responses API.

use serde_json::{Value, json};

use super::schema_check::check_schema;
use super::schema_document::document_for_schema;
use crate::demo::api::error_response::{invalid_parameter, invalid_request_error};
use crate::demo::api::response::ErrorResponse;
use crate::demo::util::json::text_member;

/// The JSON document that a chat request wants in place of a text, which becomes part of the document.
/// `None` if it wants text.
///
/// # Errors
/// 400 for an unknown format or an invalid schema.
pub(in crate::demo::operations) fn chat_json_output(
    body: &Value,
    prompt: &str,
    text: &str,
) -> Result<Option<String>, ErrorResponse> {
    let format = body.get("response_format").unwrap_or(&Value::Null);
    let names = FormatNames {
        format: "response_format",
        members: "response_format.json_schema",
        schema: "response_format",
        schema_error_code: None,
        prompt: "'messages'",
    };
    json_output(&names, format, format.get("json_schema").unwrap_or(&Value::Null), prompt, text)
}

/// The same for a request for a response.
///
/// # Errors
/// 400 for an unknown format or an invalid schema.
pub(in crate::demo::operations) fn responses_json_output(
    body: &Value,
    prompt: &str,
    text: &str,
) -> Result<Option<String>, ErrorResponse> {
    let format = body.pointer("/text/format").unwrap_or(&Value::Null);
    let names = FormatNames {
        format: "text.format",
        members: "text.format",
        schema: "text.format.schema",
        schema_error_code: Some("invalid_json_schema"),
        prompt: "Response input messages",
    };
    json_output(&names, format, format, prompt, text)
}

/// The names that an API uses in error messages for the parts of a format.
struct FormatNames {
    format: &'static str,
    /// What `name`, `schema` and `strict` are members of.
    members: &'static str,
    schema: &'static str,
    schema_error_code: Option<&'static str>,
    prompt: &'static str,
}

fn json_output(
    names: &FormatNames,
    format: &Value,
    members: &Value,
    prompt: &str,
    text: &str,
) -> Result<Option<String>, ErrorResponse> {
    match text_member(format, "type") {
        None | Some("text") => Ok(None),
        Some("json_object") => {
            if !prompt.to_ascii_lowercase().contains("json") {
                let message = format!(
                    "{} must contain the word 'json' in some form, to use '{}' of type 'json_object'.",
                    names.prompt, names.format
                );
                return Err(invalid_parameter(names.format, &message));
            }
            Ok(Some(json!({"answer": text}).to_string()))
        }
        Some("json_schema") => {
            let Some(name) = text_member(members, "name") else {
                let param = format!("{}.name", names.members);
                return Err(invalid_parameter(&param, &format!("Missing required parameter: '{param}'.")));
            };
            let Some(schema) = members.get("schema").filter(|schema| !schema.is_null()) else {
                return Ok(Some(json!({"answer": text}).to_string()));
            };
            let is_strict = members.get("strict").and_then(Value::as_bool).unwrap_or(false);
            let unsatisfiable = "In context=(), the schema allows no value.".to_owned();
            check_schema(schema, is_strict)
                .and_then(|()| document_for_schema(schema, text).ok_or(unsatisfiable))
                .map(|document| Some(document.to_string()))
                .map_err(|reason| {
                    let message = format!("Invalid schema for response_format '{name}': {reason}");
                    let code = names.schema_error_code;
                    Box::new(invalid_request_error(400, &message, Some(names.schema), code))
                })
        }
        Some(other) => {
            let param = format!("{}.type", names.format);
            let message = format!(
                "Invalid value: '{other}'. Supported values are: 'json_object', 'json_schema', and 'text'."
            );
            Err(Box::new(invalid_request_error(400, &message, Some(&param), Some("invalid_value"))))
        }
    }
}
