//! Reads from a JSON request body what routing and records need, without building a document, and
//! makes the edits for a backend: its deployment name and the request for a usage event.

use std::ops::Range;

use bytes::Bytes;

use super::body_references::{BodyReference, MAX_BODY_REFERENCES, ReferenceCollector};
use super::edit::BodyEdit;
use super::model_field::ModelField;
use super::operation::Operation;
use super::prompt_parts::{LOCATED_KEYS, PromptPartRanges};
use super::target::ApiStyle;
use crate::azure::json;
use crate::azure::json::subslice_range;
use crate::azure::json_keys::KeySet;
use crate::names::DeploymentName;

/// Why a JSON body is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON.
    #[error("the body is not valid JSON: {message}")]
    NotJson {
        /// What the parser expected, with line and column. It contains nothing of the body.
        message: String,
    },
    /// JSON, but not an object.
    #[error("the body must be a JSON object")]
    NotObject,
    /// A key that may appear only once is repeated.
    #[error("the body has more than one `{0}`")]
    DuplicateKey(&'static str),
    /// More ids than are remembered.
    #[error("the body refers to more than {MAX_BODY_REFERENCES} objects")]
    TooManyReferences,
}

/// The value of `stream_options`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamOptionsField {
    /// No `stream_options`.
    Absent,
    /// `null`, with its place in the body.
    Null(Range<usize>),
    /// An object.
    Object {
        /// Its place in the body, including the braces.
        range: Range<usize>,
        /// Whether it has no keys.
        is_empty: bool,
    },
    /// Another type, or a repeated key. It is forwarded unchanged; Azure rejects it.
    Malformed,
}

/// What the balancer has to know about a JSON body.
#[derive(Clone, Debug)]
pub struct BodyFacts {
    /// `model`.
    pub model: ModelField,
    /// Whether `stream` is `true`.
    pub wants_stream: bool,
    /// `stream_options.include_usage`. Any value but `true` counts as `false`.
    pub include_usage: Option<bool>,
    /// `stream_options`.
    pub stream_options: StreamOptionsField,
    /// Whether there are `data_sources` (Azure OpenAI On Your Data).
    pub has_data_sources: bool,
    /// Whether `background` is `true`.
    pub is_background: bool,
    /// Whether `service_tier` is `flex`.
    pub asks_for_flex: bool,
    /// The largest of `max_completion_tokens`, `max_output_tokens` and `max_tokens`.
    pub max_output_tokens: Option<u64>,
    /// `n`.
    pub choices: Option<u64>,
    /// The offset just after the opening brace, where a key can be inserted.
    pub key_insertion_offset: usize,
    /// Whether the object has no keys.
    pub is_empty_object: bool,
    /// Where the prompt is in the body.
    pub prompt_part_ranges: PromptPartRanges,
    /// Where the definitions of `TOOL_KEYS` are in the body.
    pub(super) tool_ranges: [Option<Range<u32>>; 2],
    /// Where the value of `prompt_cache_key` is in the body.
    pub(super) cache_key_range: Option<Range<u32>>,
    /// Where the ids of other objects are in the body.
    pub(in crate::azure) references: Vec<BodyReference>,
}

const INSPECTED_KEYS: KeySet<12> = KeySet::new([
    "prompt_cache_key",
    "model",
    "stream",
    "stream_options",
    "data_sources",
    "dataSources",
    "background",
    "service_tier",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "n",
]);
/// The `service_tier` of flex processing.
const FLEX_TIER: &str = "flex";
const STREAM_OPTIONS_KEYS: KeySet<1> = KeySet::new(["include_usage"]);

impl BodyFacts {
    /// Reads the top-level keys that matter, in one pass over the body. A bad `model` is not an error
    /// here; [`ModelField::deployment`] reports it.
    ///
    /// # Errors
    /// The body is not a JSON object, `model` or `stream` is repeated, or it has too many references.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        let mut references = ReferenceCollector::default();
        let parsed = json::parse_and_locate_fields(body, &INSPECTED_KEYS, &LOCATED_KEYS, &mut references);
        let (fields, [messages, input, instructions, prompt, tools @ ..]) =
            parsed.map_err(|error| match error.classify() {
                serde_json::error::Category::Data => BodyError::NotObject,
                _ => BodyError::NotJson { message: error.to_string() },
            })?;
        let [
            cache_key,
            model,
            stream,
            options,
            sources,
            camel_case_sources,
            background,
            service_tier,
            output_limits @ ..,
            choices,
        ] = fields.values;
        let [_, is_model_repeated, is_stream_repeated, is_options_repeated, ..] = fields.is_repeated;
        if is_model_repeated || is_stream_repeated {
            return Err(BodyError::DuplicateKey(if is_model_repeated { "model" } else { "stream" }));
        }
        let (stream_options, include_usage) = match options {
            _ if is_options_repeated => (StreamOptionsField::Malformed, None),
            options => parse_stream_options(body, options),
        };
        let open_brace = body.iter().position(|b| *b == b'{').unwrap_or_default();
        Ok(Self {
            model: parse_model_value(body, model),
            wants_stream: stream == Some("true"),
            include_usage,
            stream_options,
            has_data_sources: [sources, camel_case_sources].into_iter().flatten().any(|raw| raw != "null"),
            is_background: background == Some("true"),
            asks_for_flex: service_tier.and_then(json::decode_string).is_some_and(|tier| tier == FLEX_TIER),
            max_output_tokens: output_limits.into_iter().flatten().filter_map(|raw| raw.parse().ok()).max(),
            choices: choices.and_then(|raw| raw.parse().ok()),
            key_insertion_offset: open_brace + 1,
            is_empty_object: fields.is_empty_object,
            prompt_part_ranges: [messages, input, instructions, prompt],
            tool_ranges: tools.map(|range| range.and_then(small_range)),
            cache_key_range: cache_key.and_then(|raw| small_range(subslice_range(body, raw.as_bytes()))),
            references: references.into_references().ok_or(BodyError::TooManyReferences)?,
        })
    }

    /// Whether it may refer to other objects.
    pub fn has_references(&self) -> bool {
        !self.references.is_empty()
    }

    /// The edit that replaces `model` by the upstream deployment's name; `None` if they are equal.
    pub fn rename_model_edit(&self, upstream: &DeploymentName) -> Option<BodyEdit> {
        let range = self.model.range_to_replace(upstream)?;
        Some(BodyEdit { range, replacement: Bytes::from(format!("\"{upstream}\"")) })
    }

    /// The edit that adds `stream_options.include_usage: true`; `None` if the client has set it.
    pub fn include_usage_edit(&self) -> Option<BodyEdit> {
        if self.include_usage.is_some() {
            return None;
        }
        Some(match &self.stream_options {
            StreamOptionsField::Absent if self.is_empty_object => {
                BodyEdit::insert(self.key_insertion_offset, br#""stream_options":{"include_usage":true}"#)
            }
            StreamOptionsField::Absent => {
                BodyEdit::insert(self.key_insertion_offset, br#""stream_options":{"include_usage":true},"#)
            }
            StreamOptionsField::Null(range) => BodyEdit {
                range: range.clone(),
                replacement: Bytes::from_static(br#"{"include_usage":true}"#),
            },
            StreamOptionsField::Object { range, is_empty: true } => {
                BodyEdit::insert(range.start + 1, br#""include_usage":true"#)
            }
            StreamOptionsField::Object { range, is_empty: false } => {
                BodyEdit::insert(range.start + 1, br#""include_usage":true,"#)
            }
            StreamOptionsField::Malformed => return None,
        })
    }
}

/// The range in half the size; `None` beyond 4 GiB.
fn small_range(range: Range<usize>) -> Option<Range<u32>> {
    Some(u32::try_from(range.start).ok()?..u32::try_from(range.end).ok()?)
}

/// Whether the balancer may request a usage event that the client did not ask for: for streamed chat
/// and completions without data sources, with an api-version that supports `stream_options`.
/// Azure introduced it in `2024-09-01-preview` and answers 400 to the unknown field in older versions;
/// v1 always has it
/// (<https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle>).
/// `api_version` is the one sent upstream.
pub fn may_add_include_usage(
    operation: Operation,
    api: ApiStyle,
    api_version: Option<&str>,
    facts: &BodyFacts,
) -> bool {
    matches!(operation, Operation::Chat | Operation::Completions)
        && facts.wants_stream
        && facts.include_usage.is_none()
        && facts.stream_options != StreamOptionsField::Malformed
        && !facts.has_data_sources
        && (api == ApiStyle::V1
            || api_version.is_some_and(|v| api_version_date(v).is_some_and(|d| d >= "2024-09-01")))
}

/// The date of an api-version such as `2024-10-21` or `2024-09-01-preview`.
fn api_version_date(version: &str) -> Option<&str> {
    let (date, rest) = version.split_at_checked(10)?;
    let is_date = date.bytes().enumerate().all(|(n, b)| match n {
        4 | 7 => b == b'-',
        _ => b.is_ascii_digit(),
    });
    (is_date && matches!(rest, "" | "-preview")).then_some(date)
}

/// The field with this raw value, which must be a slice of `body`.
pub(super) fn parse_model_value(body: &[u8], raw: Option<&str>) -> ModelField {
    let Some(raw) = raw.filter(|raw| *raw != "null") else { return ModelField::Absent };
    if !raw.starts_with('"') {
        return ModelField::NotString;
    }
    // A name in which every character is escaped (`\u0067`) is six times as long. Longer strings are
    // not decoded.
    if raw.len() > 6 * crate::names::MAX_DEPLOYMENT_NAME_BYTES + 2 {
        return ModelField::InvalidName;
    }
    match json::decode_string(raw).map(|name| DeploymentName::parse(&name)) {
        Some(Ok(name)) => ModelField::Named { name, range: subslice_range(body, raw.as_bytes()) },
        _ => ModelField::InvalidName,
    }
}

fn parse_stream_options(body: &[u8], raw: Option<&str>) -> (StreamOptionsField, Option<bool>) {
    let Some(raw) = raw else { return (StreamOptionsField::Absent, None) };
    let range = subslice_range(body, raw.as_bytes());
    match json::parse_fields(raw.as_bytes(), &STREAM_OPTIONS_KEYS) {
        _ if raw == "null" => (StreamOptionsField::Null(range), None),
        Ok(fields) => {
            let [include_usage] = fields.values;
            (
                StreamOptionsField::Object { range, is_empty: fields.is_empty_object },
                include_usage.map(|raw| raw == "true"),
            )
        }
        Err(_) => (StreamOptionsField::Malformed, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::{ModelFieldError, apply_edits};
    use proptest::prelude::*;

    fn deployment(name: &str) -> DeploymentName {
        DeploymentName::parse(name).unwrap()
    }

    fn apply_to_text(body: &str, edits: &[Option<BodyEdit>]) -> String {
        let edits: Vec<BodyEdit> = edits.iter().flatten().cloned().collect();
        let pieces = apply_edits(&Bytes::copy_from_slice(body.as_bytes()), &edits);
        String::from_utf8(pieces.concat()).unwrap()
    }

    #[test]
    fn model_is_found_in_any_spelling() {
        for body in [
            r#"{"model":"gpt-4o"}"#,
            " {\n\"messages\":[{\"model\":\"x\"}],\"mod\\u0065l\" : \"gpt-4o\" }\r\n",
            r#"{"Model":"gpt\u002d4o"}"#,
        ] {
            let facts = BodyFacts::parse(body.as_bytes()).unwrap();
            assert_eq!(facts.model.deployment(), Ok(Some(&deployment("gpt-4o"))), "{body}");
            let renamed = apply_to_text(body, &[facts.rename_model_edit(&deployment("east"))]);
            assert!(renamed.contains(r#""east""#), "{renamed}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong_with_the_body() {
        let rows: &[(&str, &str)] = &[
            ("", "the body is not valid JSON: EOF while parsing a value at line 1 column 0"),
            ("{\"a\":secret}", "the body is not valid JSON: expected value at line 1 column 6"),
            ("{} {}", "the body is not valid JSON: trailing characters at line 1 column 4"),
            ("[]", "the body must be a JSON object"),
            (r#""text""#, "the body must be a JSON object"),
            (r#"{"model":"a","mod\u0065l":"a"}"#, "the body has more than one `model`"),
            (r#"{"model":"a","Model":"b"}"#, "the body has more than one `model`"),
            (r#"{"stream":true,"stream":true}"#, "the body has more than one `stream`"),
        ];
        for (body, message) in rows {
            assert_eq!(BodyFacts::parse(body.as_bytes()).unwrap_err().to_string(), *message, "{body}");
        }
        let model = |body: &str| BodyFacts::parse(body.as_bytes()).unwrap().model;
        assert_eq!(model(r#"{"model":1}"#).deployment(), Err(ModelFieldError::NotString));
        assert_eq!(model(r#"{"model":"a/b"}"#).deployment(), Err(ModelFieldError::InvalidName));
        assert_eq!(model(r#"{"model":null}"#), ModelField::Absent);
        let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(1000));
        assert_eq!(model(&long).deployment(), Err(ModelFieldError::InvalidName));
    }

    #[test]
    fn flags_are_read() {
        let facts = |body: &str| BodyFacts::parse(body.as_bytes()).unwrap();
        assert!(facts(r#"{"stream":true}"#).wants_stream);
        for body in ["{}", r#"{"stream":null}"#, r#"{"stream":"true"}"#, r#"{"stream":1}"#] {
            assert!(!facts(body).wants_stream, "{body}");
        }
        assert!(facts(r#"{"background":true,"data_sources":[]}"#).has_data_sources);
        assert!(!facts(r#"{"background":false,"data_sources":null}"#).is_background);
        assert_eq!(facts(r#"{"stream_options":{"include_usage":false}}"#).include_usage, Some(false));
        for (body, expected) in [
            ("{}", false),
            (r#"{"service_tier":"flex"}"#, true),
            (r#"{"service_tier" : "fl\u0065x"}"#, true),
            (r#"{"service_tier":"auto"}"#, false),
            (r#"{"service_tier":"flexible"}"#, false),
            (r#"{"service_tier":null}"#, false),
            (r#"{"service_tier":["flex"]}"#, false),
            (r#"{"metadata":{"service_tier":"flex"}}"#, false),
        ] {
            assert_eq!(facts(body).asks_for_flex, expected, "{body}");
        }
    }

    #[test]
    fn limits_of_the_output_are_read() {
        for (body, expected) in [
            (r#"{}"#, (None, None)),
            (r#"{"max_tokens":5}"#, (Some(5), None)),
            (r#"{"max_tokens":5,"max_completion_tokens":7,"n":3}"#, (Some(7), Some(3))),
            (r#"{"max_output_tokens": 100 , "n": 1}"#, (Some(100), Some(1))),
            (r#"{"max_output_tokens":null,"n":"2"}"#, (None, None)),
            (r#"{"max_tokens":-5,"n":2.5}"#, (None, None)),
            (r#"{"max_tokens":99999999999999999999,"n":0}"#, (None, Some(0))),
        ] {
            let facts = BodyFacts::parse(body.as_bytes()).unwrap();
            assert_eq!((facts.max_output_tokens, facts.choices), expected, "{body}");
        }
    }

    #[test]
    fn the_usage_edit_keeps_the_body_valid_json() {
        let rows = [
            ("{}", r#"{"stream_options":{"include_usage":true}}"#),
            (" { } ", r#" {"stream_options":{"include_usage":true} } "#),
            (r#"{"a":1}"#, r#"{"stream_options":{"include_usage":true},"a":1}"#),
            (r#"{"stream_options":null}"#, r#"{"stream_options":{"include_usage":true}}"#),
            (r#"{"stream_options":{ }}"#, r#"{"stream_options":{"include_usage":true }}"#),
            (r#"{"stream_options":{"x":1}}"#, r#"{"stream_options":{"include_usage":true,"x":1}}"#),
        ];
        for (body, expected) in rows {
            let edit = BodyFacts::parse(body.as_bytes()).unwrap().include_usage_edit();
            assert_eq!(apply_to_text(body, &[edit]), expected);
        }
        for body in [r#"{"stream_options":{"include_usage":null}}"#, r#"{"stream_options":[]}"#] {
            assert_eq!(BodyFacts::parse(body.as_bytes()).unwrap().include_usage_edit(), None, "{body}");
        }
    }

    #[test]
    fn usage_is_requested_only_where_azure_supports_it() {
        let may_request = |api, version, body: &str| {
            may_add_include_usage(Operation::Chat, api, version, &BodyFacts::parse(body.as_bytes()).unwrap())
        };
        let stream = r#"{"stream":true}"#;
        assert!(may_request(ApiStyle::V1, None, stream));
        for (version, expected) in [
            ("2024-09-01-preview", true),
            ("2024-10-21", true),
            ("2025-01-01-preview", true),
            ("2024-08-01-preview", false),
            ("2024-06-01", false),
            ("preview", false),
            ("2024-10-21-other", false),
            ("2024-1-021", false),
        ] {
            assert_eq!(may_request(ApiStyle::Classic, Some(version), stream), expected, "{version}");
        }
        assert!(!may_request(ApiStyle::Classic, None, stream));
        assert!(!may_request(ApiStyle::V1, None, "{}"));
        assert!(!may_request(ApiStyle::V1, None, r#"{"stream":true,"data_sources":[{}]}"#));
        assert!(!may_request(
            ApiStyle::V1,
            None,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#
        ));
        let facts = BodyFacts::parse(stream.as_bytes()).unwrap();
        assert!(!may_add_include_usage(Operation::Responses, ApiStyle::V1, None, &facts));
    }

    fn any_body() -> impl Strategy<Value = serde_json::Value> {
        let key = prop_oneof![Just("model"), Just("stream"), Just("stream_options"), Just("é\"\\")];
        let value = prop_oneof![
            Just(serde_json::json!(null)),
            Just(serde_json::json!(true)),
            Just(serde_json::json!({})),
            Just(serde_json::json!({"include_obfuscation": false})),
            Just(serde_json::json!([1, "}", {"model": "x"}])),
            "[a-z.-]{1,8}".prop_map(serde_json::Value::from),
        ];
        proptest::collection::vec((key.prop_map(String::from), value), 0..5)
            .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn edits_change_nothing_but_their_own_keys(value in any_body(), pretty: bool) {
            let body = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let facts = BodyFacts::parse(body.as_bytes()).unwrap();
            let edits = [facts.rename_model_edit(&deployment("up-stream")), facts.include_usage_edit()];
            let after: serde_json::Value = serde_json::from_str(&apply_to_text(&body, &edits)).unwrap();
            let mut expected = value.clone();
            if edits[0].is_some() {
                expected["model"] = "up-stream".into();
            }
            if edits[1].is_some() {
                if !expected["stream_options"].is_object() {
                    expected["stream_options"] = serde_json::json!({});
                }
                expected["stream_options"]["include_usage"] = true.into();
            }
            prop_assert_eq!(after, expected);
        }

        #[test]
        fn arbitrary_bodies_never_panic(body in "[\\[\\]{}\",:a-z0-9 \\\\]{0,80}") {
            if let Ok(facts) = BodyFacts::parse(body.as_bytes()) {
                let _ = apply_to_text(&body, &[facts.rename_model_edit(&deployment("x")), facts.include_usage_edit()]);
            }
        }
    }
}
