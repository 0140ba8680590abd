//! A JSON body, looked at and edited without being parsed into anything: which deployment it
//! names, whether it asks for a stream, where its bytes would have to change. A body is edited
//! as a rope; bytes that stay are shared, not copied.

use std::ops::Range;

use bytes::Bytes;

use super::operation::Operation;
use super::path::Api;
use super::prompt;
use super::prompt::Parts;
use crate::azure::json;
use crate::azure::json::range_of;
use crate::names::Deployment;

/// Bytes to replace (none, for an insertion) and what takes their place.
pub type Edit = (Range<usize>, Bytes);

/// Why a body cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Not JSON. The message has line and column and nothing of the body.
    #[error("the body is not valid JSON: {message}")]
    NotJson {
        /// What the parser expected, and where.
        message: String,
    },
    /// JSON, but no object.
    #[error("the body must be a JSON object")]
    NotObject,
    /// A key that may occur once occurs again.
    #[error("the body has more than one `{0}`")]
    Duplicate(&'static str),
    /// `model` is a number, a list, …
    #[error("`model` must be a string")]
    ModelNotString,
    /// `model` is no deployment name.
    #[error("`model`: {}", crate::names::BadDeploymentName)]
    BadModelName,
}

/// What a body says under `model`. A bad value is an error only where the model names the
/// deployment: on a classic path the path wins, whatever `model` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// No `model`, or `null`.
    Absent,
    /// A deployment name.
    Named {
        /// The name.
        name: Deployment,
        /// The bytes to replace: the JSON string with its quotes, or a form field's content.
        range: Range<usize>,
    },
    /// A string that is no deployment name.
    BadName,
    /// Something else than a string.
    NotString,
}

impl Model {
    /// The deployment this names.
    ///
    /// # Errors
    /// [`BadBody::ModelNotString`] and [`BadBody::BadModelName`].
    pub fn deployment(&self) -> Result<Option<&Deployment>, BadBody> {
        match self {
            Self::Absent => Ok(None),
            Self::Named { name, .. } => Ok(Some(name)),
            Self::BadName => Err(BadBody::BadModelName),
            Self::NotString => Err(BadBody::ModelNotString),
        }
    }

    /// The name and its place, if it differs in a byte from `upstream`.
    pub(in crate::azure) fn differing(&self, upstream: &Deployment) -> Option<Range<usize>> {
        match self {
            Self::Named { name, range } if name.as_str() != upstream.as_str() => Some(range.clone()),
            _ => None,
        }
    }
}

/// What a body says under `stream_options`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamOptions {
    /// Nothing.
    Absent,
    /// `null`.
    Null(Range<usize>),
    /// An object.
    Object {
        /// Its bytes, braces included.
        range: Range<usize>,
        /// Whether it has no key.
        empty: bool,
    },
    /// Something Azure will refuse, or two of them: left alone.
    Unclear,
}

/// What the balancer has to know of a JSON body.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `model`.
    pub model: Model,
    /// Whether `stream` is `true`.
    pub stream: bool,
    /// `stream_options.include_usage`; a value that is no `true` counts as `false`.
    pub include_usage: Option<bool>,
    /// `stream_options`.
    pub stream_options: StreamOptions,
    /// Whether there are `data_sources` (Azure's "on your data").
    pub data_sources: bool,
    /// Whether `background` is `true`.
    pub background: bool,
    /// The offset just after the opening brace.
    pub body_open: usize,
    /// Whether the object has no key.
    pub is_empty_object: bool,
    /// Where the prompt is.
    pub prompt: Parts,
}

const KEYS: [&str; 6] = ["model", "stream", "stream_options", "data_sources", "dataSources", "background"];

/// Reads the top-level keys that matter, in one pass over the body.
///
/// # Errors
/// [`BadBody`], except for what [`Model::deployment`] reports.
pub fn probe(body: &[u8]) -> Result<Probe, BadBody> {
    let probed = json::probe_and_find(body, &KEYS, &prompt::KEYS);
    let (fields, prompt) = probed.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => BadBody::NotObject,
        _ => BadBody::NotJson { message: error.to_string() },
    })?;
    let [model, stream, options, sources, camel_sources, background] = fields.values;
    let [two_models, two_streams, two_options, ..] = fields.repeated;
    if two_models || two_streams {
        return Err(BadBody::Duplicate(if two_models { "model" } else { "stream" }));
    }
    let (stream_options, include_usage) = match options {
        _ if two_options => (StreamOptions::Unclear, None),
        options => read_stream_options(body, options),
    };
    let open = body.iter().position(|b| *b == b'{').unwrap_or_default();
    Ok(Probe {
        model: read_model(body, model),
        stream: stream == Some("true"),
        include_usage,
        stream_options,
        data_sources: [sources, camel_sources].into_iter().flatten().any(|raw| raw != "null"),
        background: background == Some("true"),
        body_open: open + 1,
        is_empty_object: fields.empty,
        prompt,
    })
}

impl Probe {
    /// Puts the backend's name in place of the client's; `None` when they are spelled alike.
    pub fn rename(&self, upstream: &Deployment) -> Option<Edit> {
        let range = self.model.differing(upstream)?;
        Some((range, Bytes::from(format!("\"{upstream}\""))))
    }

    /// Asks for the usage event of a stream; `None` when the client said something about it.
    pub fn ask_usage(&self) -> Option<Edit> {
        if self.include_usage.is_some() {
            return None;
        }
        Some(match &self.stream_options {
            StreamOptions::Absent if self.is_empty_object => {
                insert(self.body_open, br#""stream_options":{"include_usage":true}"#)
            }
            StreamOptions::Absent => insert(self.body_open, br#""stream_options":{"include_usage":true},"#),
            StreamOptions::Null(range) => (range.clone(), Bytes::from_static(br#"{"include_usage":true}"#)),
            StreamOptions::Object { range, empty: true } => {
                insert(range.start + 1, br#""include_usage":true"#)
            }
            StreamOptions::Object { range, empty: false } => {
                insert(range.start + 1, br#""include_usage":true,"#)
            }
            StreamOptions::Unclear => return None,
        })
    }
}

/// Whether a call may be asked for its usage although the client did not: a stream of chat or
/// completions, without data sources, of an api-version that knows `stream_options` (it came
/// with `2024-09-01-preview`; on v1 always). `api_version` is the one that goes upstream.
pub fn may_ask_usage(operation: Operation, api: Api, api_version: Option<&str>, probe: &Probe) -> bool {
    matches!(operation, Operation::Chat | Operation::Completions)
        && probe.stream
        && probe.include_usage.is_none()
        && probe.stream_options != StreamOptions::Unclear
        && !probe.data_sources
        && (api == Api::V1 || api_version.is_some_and(|v| date(v).is_some_and(|d| d >= "2024-09-01")))
}

/// The bytes of `body` with the edits made, as pieces to send one after the other. Edits may
/// come in any order; one that is out of bounds or overlaps another is left out.
pub fn edit(body: &Bytes, edits: &[Edit]) -> Vec<Bytes> {
    let mut order: Vec<&Edit> = edits.iter().collect();
    order.sort_by_key(|(range, _)| (range.start, range.end));
    let mut pieces = Vec::with_capacity(2 * edits.len() + 1);
    let mut done = 0;
    for (range, replacement) in order {
        if range.start < done || range.end < range.start || range.end > body.len() {
            debug_assert!(false, "edits overlap or leave the body");
            continue;
        }
        pieces.push(body.slice(done..range.start));
        pieces.push(replacement.clone());
        done = range.end;
    }
    pieces.push(body.slice(done..));
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn insert(at: usize, text: &'static [u8]) -> Edit {
    (at..at, Bytes::from_static(text))
}

/// The date of an api-version like `2024-10-21` or `2024-09-01-preview`.
fn date(version: &str) -> Option<&str> {
    let (date, rest) = version.split_at_checked(10)?;
    let shaped = date.bytes().enumerate().all(|(n, b)| match n {
        4 | 7 => b == b'-',
        _ => b.is_ascii_digit(),
    });
    (shaped && matches!(rest, "" | "-preview")).then_some(date)
}

fn read_model(body: &[u8], raw: Option<&str>) -> Model {
    let Some(raw) = raw.filter(|raw| *raw != "null") else { return Model::Absent };
    if !raw.starts_with('"') {
        return Model::NotString;
    }
    // Written with an escape for every character, a name is six times as long.
    if raw.len() > 6 * crate::names::DEPLOYMENT_NAME_MAX + 2 {
        return Model::BadName;
    }
    match json::string(raw).map(|name| Deployment::parse(&name)) {
        Some(Ok(name)) => Model::Named { name, range: range_of(body, raw.as_bytes()) },
        _ => Model::BadName,
    }
}

fn read_stream_options(body: &[u8], raw: Option<&str>) -> (StreamOptions, Option<bool>) {
    let Some(raw) = raw else { return (StreamOptions::Absent, None) };
    let range = range_of(body, raw.as_bytes());
    match json::probe(raw.as_bytes(), &["include_usage"]) {
        _ if raw == "null" => (StreamOptions::Null(range), None),
        Ok(fields) => {
            let [asked] = fields.values;
            (StreamOptions::Object { range, empty: fields.empty }, asked.map(|raw| raw == "true"))
        }
        Err(_) => (StreamOptions::Unclear, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn deployment(name: &str) -> Deployment {
        Deployment::parse(name).unwrap()
    }

    fn edited(body: &str, edits: &[Option<Edit>]) -> String {
        let edits: Vec<Edit> = edits.iter().flatten().cloned().collect();
        let pieces = edit(&Bytes::copy_from_slice(body.as_bytes()), &edits);
        String::from_utf8(pieces.concat()).unwrap()
    }

    #[test]
    fn the_model_is_found_however_it_is_spelled() {
        for body in [
            r#"{"model":"gpt-4o"}"#,
            " {\n\"messages\":[{\"model\":\"x\"}],\"mod\\u0065l\" : \"gpt-4o\" }\r\n",
            r#"{"Model":"gpt\u002d4o"}"#,
        ] {
            let probe = probe(body.as_bytes()).unwrap();
            assert_eq!(probe.model.deployment(), Ok(Some(&deployment("gpt-4o"))), "{body}");
            let renamed = edited(body, &[probe.rename(&deployment("east"))]);
            assert!(renamed.contains(r#""east""#), "{renamed}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
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
            assert_eq!(probe(body.as_bytes()).unwrap_err().to_string(), *message, "{body}");
        }
        let model = |body: &str| probe(body.as_bytes()).unwrap().model;
        assert_eq!(model(r#"{"model":1}"#).deployment(), Err(BadBody::ModelNotString));
        assert_eq!(model(r#"{"model":"a/b"}"#).deployment(), Err(BadBody::BadModelName));
        assert_eq!(model(r#"{"model":null}"#), Model::Absent);
        let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(1000));
        assert_eq!(model(&long).deployment(), Err(BadBody::BadModelName));
    }

    #[test]
    fn streams_and_flags_are_read() {
        let probe = |body: &str| probe(body.as_bytes()).unwrap();
        assert!(probe(r#"{"stream":true}"#).stream);
        for body in ["{}", r#"{"stream":null}"#, r#"{"stream":"true"}"#, r#"{"stream":1}"#] {
            assert!(!probe(body).stream, "{body}");
        }
        assert!(probe(r#"{"background":true,"data_sources":[]}"#).data_sources);
        assert!(!probe(r#"{"background":false,"data_sources":null}"#).background);
        assert_eq!(probe(r#"{"stream_options":{"include_usage":false}}"#).include_usage, Some(false));
    }

    #[test]
    fn asking_for_usage_keeps_the_body_valid() {
        let rows = [
            ("{}", r#"{"stream_options":{"include_usage":true}}"#),
            (" { } ", r#" {"stream_options":{"include_usage":true} } "#),
            (r#"{"a":1}"#, r#"{"stream_options":{"include_usage":true},"a":1}"#),
            (r#"{"stream_options":null}"#, r#"{"stream_options":{"include_usage":true}}"#),
            (r#"{"stream_options":{ }}"#, r#"{"stream_options":{"include_usage":true }}"#),
            (r#"{"stream_options":{"x":1}}"#, r#"{"stream_options":{"include_usage":true,"x":1}}"#),
        ];
        for (body, expected) in rows {
            let edit = probe(body.as_bytes()).unwrap().ask_usage();
            assert_eq!(edited(body, &[edit]), expected);
        }
        for body in [r#"{"stream_options":{"include_usage":null}}"#, r#"{"stream_options":[]}"#] {
            assert_eq!(probe(body.as_bytes()).unwrap().ask_usage(), None, "{body}");
        }
    }

    #[test]
    fn usage_is_asked_for_where_azure_knows_it() {
        let ask = |api, version, body: &str| {
            may_ask_usage(Operation::Chat, api, version, &probe(body.as_bytes()).unwrap())
        };
        let stream = r#"{"stream":true}"#;
        assert!(ask(Api::V1, None, stream));
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
            assert_eq!(ask(Api::Classic, Some(version), stream), expected, "{version}");
        }
        assert!(!ask(Api::Classic, None, stream));
        assert!(!ask(Api::V1, None, "{}"));
        assert!(!ask(Api::V1, None, r#"{"stream":true,"data_sources":[{}]}"#));
        assert!(!ask(Api::V1, None, r#"{"stream":true,"stream_options":{"include_usage":true}}"#));
        let probe = probe(stream.as_bytes()).unwrap();
        assert!(!may_ask_usage(Operation::Responses, Api::V1, None, &probe));
    }

    fn object() -> impl Strategy<Value = serde_json::Value> {
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
        fn edits_change_what_they_say_and_nothing_else(value in object(), pretty: bool) {
            let body = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let probe = probe(body.as_bytes()).unwrap();
            let edits = [probe.rename(&deployment("up-stream")), probe.ask_usage()];
            let after: serde_json::Value = serde_json::from_str(&edited(&body, &edits)).unwrap();
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
        fn nothing_panics(body in "[\\[\\]{}\",:a-z0-9 \\\\]{0,80}") {
            if let Ok(probe) = probe(body.as_bytes()) {
                let _ = edited(&body, &[probe.rename(&deployment("x")), probe.ask_usage()]);
            }
        }
    }
}
