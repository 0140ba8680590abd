//! The record as one line of JSON.
//!
//! Names and order of the fields are a contract with those who read records; an unknown value is `null`,
//! never 0 or "". The JSON is written by hand and not by serde because every request pays for it: names are
//! constants, and most values are numbers or short words.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use json_escape_simd::escape_into;

use super::affinity::AffinityRecord;
use super::exchange::{AttemptRecord, CacheRecord, ExchangeOutcome};
use super::trace_context::TraceId;
use crate::admission::limits::LimitKey;
use crate::azure::response::usage::TokenUsage;
use crate::money::Amount;
use crate::names::{CacheKey, ResourceName};

/// The values of a record, in the order in which they are written. An unknown value is `None`.
pub struct RecordLine<'a> {
    pub(super) time: String,
    pub(super) request_id: &'a str,
    pub(super) client_request_id: Option<&'a str>,
    pub(super) trace_id: Option<TraceId>,
    pub(super) socket_id: Option<&'a str>,
    pub(super) client: Option<&'a str>,
    pub(super) class: Option<&'static str>,
    pub(super) client_ip: Option<IpAddr>,
    pub(super) peer_ip: Option<IpAddr>,
    pub(super) user_agent: Option<&'a str>,
    pub(super) method: &'a str,
    pub(super) path: Option<&'a str>,
    pub(super) operation: Option<&'static str>,
    pub(super) api: Option<&'static str>,
    pub(super) api_version: Option<&'a str>,
    pub(super) deployment: Option<&'a str>,
    pub(super) stream: Option<bool>,
    pub(super) status: Option<u16>,
    pub(super) outcome: ExchangeOutcome,
    pub(super) refusal: Option<&'static str>,
    pub(super) limited_by: Option<&'a LimitKey>,
    pub(super) reserved_tokens: Option<u64>,
    pub(super) backend: Option<&'a str>,
    pub(super) upstream_deployment: Option<&'a str>,
    pub(super) region: Option<&'a str>,
    pub(super) model: Option<String>,
    pub(super) service_tier: Option<String>,
    pub(super) affinity: Option<&'a AffinityRecord>,
    pub(super) cache: Option<CacheRecord>,
    pub(super) attempts: &'a [AttemptRecord],
    pub(super) duration_ms: u64,
    pub(super) waited_ms: u64,
    pub(super) queued_ms: u64,
    pub(super) first_byte_ms: Option<u64>,
    pub(super) request_bytes: Option<u64>,
    pub(super) response_bytes: u64,
    pub(super) usage: TokenUsage,
    pub(super) usage_source: &'static str,
    pub(super) usage_missing: Option<&'static str>,
    pub(super) cost: Option<Amount>,
    pub(super) spilled: Option<&'static str>,
    pub(super) finish_reason: Option<String>,
    pub(super) apim_request_id: Option<&'a str>,
    pub(super) prompt: Option<Cow<'a, str>>,
    pub(super) completion: Option<String>,
    pub(super) content_cut: bool,
}

impl RecordLine<'_> {
    /// Appends the record as a JSON object, without a newline.
    pub fn write_json(&self, buffer: &mut Vec<u8>) {
        let mut object = ObjectWriter::begin(buffer);
        object.write_field("time", self.time.as_str());
        object.write_field("request_id", self.request_id);
        object.write_field("client_request_id", self.client_request_id);
        object.write_field("trace_id", self.trace_id);
        object.write_field("socket_id", self.socket_id);
        object.write_field("client", self.client);
        object.write_field("class", self.class);
        object.write_field("client_ip", self.client_ip);
        object.write_field("peer_ip", self.peer_ip);
        object.write_field("user_agent", self.user_agent);
        object.write_field("method", self.method);
        object.write_field("path", self.path);
        object.write_field("operation", self.operation);
        object.write_field("api", self.api);
        object.write_field("api_version", self.api_version);
        object.write_field("deployment", self.deployment);
        object.write_field("stream", self.stream);
        object.write_field("status", self.status.map(u64::from));
        object.write_field("outcome", self.outcome.as_str());
        object.write_field("refusal", self.refusal);
        object.write_field("limited_by", self.limited_by.map(ToString::to_string).as_deref());
        object.write_field("reserved_tokens", self.reserved_tokens);
        object.write_field("backend", self.backend);
        object.write_field("upstream_deployment", self.upstream_deployment);
        object.write_field("region", self.region);
        object.write_field("model", self.model.as_deref());
        object.write_field("service_tier", self.service_tier.as_deref());
        object.write_field("affinity", self.affinity);
        object.write_field("cache", self.cache);
        object.write_field("attempts", self.attempts);
        object.write_field("duration_ms", self.duration_ms);
        object.write_field("waited_ms", self.waited_ms);
        object.write_field("queued_ms", self.queued_ms);
        object.write_field("first_byte_ms", self.first_byte_ms);
        object.write_field("request_bytes", self.request_bytes);
        object.write_field("response_bytes", self.response_bytes);
        object.write_field("input_tokens", self.usage.input);
        object.write_field("output_tokens", self.usage.output);
        object.write_field("cached_tokens", self.usage.cached);
        object.write_field("cache_write_tokens", self.usage.cache_write);
        object.write_field("reasoning_tokens", self.usage.reasoning);
        object.write_field("total_tokens", self.usage.total);
        object.write_field("input_audio_tokens", self.usage.input_audio);
        object.write_field("output_audio_tokens", self.usage.output_audio);
        object.write_field("cached_audio_tokens", self.usage.cached_audio);
        object.write_field("audio_seconds", self.usage.audio_millis.map(Thousandths));
        object.write_field("usage_source", self.usage_source);
        object.write_field("usage_missing", self.usage_missing);
        object.write_field("cost", self.cost);
        object.write_field("spilled", self.spilled);
        object.write_field("finish_reason", self.finish_reason.as_deref());
        object.write_field("apim_request_id", self.apim_request_id);
        object.write_field("prompt", self.prompt.as_deref());
        object.write_field("completion", self.completion.as_deref());
        object.write_field("content_cut", self.content_cut);
        object.finish();
    }
}

/// A duration in whole milliseconds.
pub(super) fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a JSON object, field by field.
struct ObjectWriter<'b> {
    buffer: &'b mut Vec<u8>,
    /// The byte before the next name: `{` for the first field, `,` for the others.
    separator: u8,
}

impl<'b> ObjectWriter<'b> {
    fn begin(buffer: &'b mut Vec<u8>) -> Self {
        Self { buffer, separator: b'{' }
    }

    /// Appends a field. `name` is written as it is and must not need escaping.
    fn write_field(&mut self, name: &str, value: impl JsonValue) {
        self.buffer.extend_from_slice(&[self.separator, b'"']);
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.extend_from_slice(b"\":");
        value.write_json(self.buffer);
        self.separator = b',';
    }

    fn finish(self) {
        self.buffer.push(b'}');
    }
}

/// A value that can be written as JSON.
trait JsonValue {
    fn write_json(self, buffer: &mut Vec<u8>);
}

impl JsonValue for &str {
    fn write_json(self, buffer: &mut Vec<u8>) {
        escape_into(self, buffer);
    }
}

impl JsonValue for u64 {
    fn write_json(self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(itoa::Buffer::new().format(self).as_bytes());
    }
}

impl JsonValue for TraceId {
    fn write_json(self, buffer: &mut Vec<u8>) {
        // Digits need no escape, and writing to a `Vec` cannot fail.
        drop(write!(buffer, "\"{self}\""));
    }
}

/// A decimal, in thousandths.
struct Thousandths(u64);

impl JsonValue for Thousandths {
    fn write_json(self, buffer: &mut Vec<u8>) {
        (self.0 / 1000).write_json(buffer);
        let fraction = self.0 % 1000;
        if fraction > 0 {
            // Writing to a `Vec` cannot fail.
            drop(write!(buffer, ".{fraction:03}"));
        }
    }
}

impl JsonValue for Amount {
    fn write_json(self, buffer: &mut Vec<u8>) {
        // Writing to a `Vec` cannot fail.
        drop(write!(buffer, "{self}"));
    }
}

impl JsonValue for bool {
    fn write_json(self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(if self { b"true" } else { b"false" });
    }
}

impl JsonValue for IpAddr {
    fn write_json(self, buffer: &mut Vec<u8>) {
        buffer.push(b'"');
        match self.to_canonical() {
            Self::V4(address) => {
                for (index, octet) in address.octets().into_iter().enumerate() {
                    if index > 0 {
                        buffer.push(b'.');
                    }
                    u64::from(octet).write_json(buffer);
                }
            }
            // An IPv6 address has no character to escape, and writing to a `Vec` cannot fail.
            Self::V6(address) => drop(write!(buffer, "{address}")),
        }
        buffer.push(b'"');
    }
}

impl<V: JsonValue> JsonValue for Option<V> {
    fn write_json(self, buffer: &mut Vec<u8>) {
        match self {
            Some(value) => value.write_json(buffer),
            None => buffer.extend_from_slice(b"null"),
        }
    }
}

impl JsonValue for &AffinityRecord {
    fn write_json(self, buffer: &mut Vec<u8>) {
        let mut object = ObjectWriter::begin(buffer);
        object.write_field("by", self.by);
        object.write_field("how", self.how);
        object.write_field("resource", self.resource.as_ref().map(ResourceName::as_str));
        object.write_field("asked", self.denial_count() as u64);
        object.write_field("waited_ms", to_millis(self.waited));
        object.finish();
    }
}

impl JsonValue for CacheKey {
    fn write_json(self, buffer: &mut Vec<u8>) {
        // Writing to a `Vec` cannot fail.
        drop(write!(buffer, "\"{self}\""));
    }
}

impl JsonValue for CacheRecord {
    fn write_json(self, buffer: &mut Vec<u8>) {
        let mut object = ObjectWriter::begin(buffer);
        object.write_field("key", self.key);
        object.write_field("by", self.by);
        object.write_field("moved", self.moved);
        object.finish();
    }
}

impl JsonValue for &[AttemptRecord] {
    fn write_json(self, buffer: &mut Vec<u8>) {
        buffer.push(b'[');
        for (index, attempt) in self.iter().enumerate() {
            if index > 0 {
                buffer.push(b',');
            }
            let mut object = ObjectWriter::begin(buffer);
            object.write_field("backend", attempt.backend.as_str());
            object.write_field("status", attempt.status.map(u64::from));
            object.write_field("error", attempt.error_code);
            object.write_field("start_ms", to_millis(attempt.start));
            object.write_field("first_byte_ms", attempt.time_to_response_head.map(to_millis));
            object.write_field("ms", attempt.duration_ms);
            object.write_field("retry_after_ms", attempt.retry_after_ms);
            object.finish();
        }
        buffer.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::BackendName;
    use crate::record::affinity::{AskAnswer, AskedResource};
    use proptest::prelude::*;
    use serde_json::json;

    fn attempt_record(status: Option<u16>, error: Option<&'static str>) -> AttemptRecord {
        AttemptRecord {
            backend: BackendName::new("east"),
            status,
            error_code: error,
            start: Duration::from_micros(5_900),
            time_to_response_head: status.map(|_| Duration::from_millis(6)),
            duration_ms: 7,
            retry_after_ms: None,
            verdict: None,
            span_id: None,
        }
    }

    fn record_line<'a>(attempts: &'a [AttemptRecord], text: &'a str) -> RecordLine<'a> {
        RecordLine {
            time: "2026-01-02T03:04:05.000006Z".to_owned(),
            request_id: "019",
            client_request_id: Some("mine"),
            trace_id: None,
            socket_id: Some("018"),
            client: Some("team-a"),
            class: Some("batch"),
            client_ip: Some([10, 0, 0, 255].into()),
            peer_ip: "::ffff:127.0.0.1".parse().ok(),
            user_agent: Some(text),
            method: "POST",
            path: Some(text),
            operation: Some("chat"),
            api: Some("classic"),
            api_version: None,
            deployment: Some("gpt-4o"),
            stream: Some(true),
            status: Some(200),
            outcome: ExchangeOutcome::ClientGone,
            refusal: None,
            limited_by: None,
            reserved_tokens: Some(40),
            backend: Some("east"),
            upstream_deployment: None,
            region: Some("East US"),
            model: None,
            service_tier: Some("flex".to_owned()),
            affinity: None,
            cache: Some(CacheRecord { key: CacheKey::from_hash(0xabc), by: "session", moved: Some("rest") }),
            attempts,
            duration_ms: 0,
            waited_ms: 250,
            queued_ms: 1_500,
            first_byte_ms: None,
            request_bytes: Some(u64::MAX),
            response_bytes: 12,
            usage: TokenUsage {
                input: Some(3),
                cache_write: Some(1),
                input_audio: Some(2),
                audio_millis: Some(12_034),
                ..TokenUsage::default()
            },
            usage_source: "reported",
            usage_missing: None,
            cost: Some(Amount::from_millionths(1_250)),
            spilled: Some("throttled"),
            finish_reason: Some("stop".to_owned()),
            apim_request_id: None,
            prompt: Some(text.into()),
            completion: None,
            content_cut: false,
        }
    }

    fn to_json(line: &RecordLine<'_>) -> String {
        let mut bytes = Vec::new();
        line.write_json(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn record_fields_keep_their_names_and_order() {
        let attempts = [attempt_record(None, Some("reset")), attempt_record(Some(200), None)];
        let expected = concat!(
            r#"{"time":"2026-01-02T03:04:05.000006Z","request_id":"019","client_request_id":"mine","#,
            r#""trace_id":null,"socket_id":"018","client":"team-a","class":"batch","#,
            r#""client_ip":"10.0.0.255","peer_ip":"127.0.0.1","user_agent":"/a\"b","method":"POST","#,
            r#""path":"/a\"b","#,
            r#""operation":"chat","api":"classic","api_version":null,"deployment":"gpt-4o","stream":true,"#,
            r#""status":200,"outcome":"client_gone","refusal":null,"limited_by":null,"reserved_tokens":40,"backend":"east","#,
            r#""upstream_deployment":null,"region":"East US","model":null,"service_tier":"flex","affinity":null,"#,
            r#""cache":{"key":"0000000000000abc","by":"session","moved":"rest"},"attempts":["#,
            r#"{"backend":"east","status":null,"error":"reset","start_ms":5,"first_byte_ms":null,"#,
            r#""ms":7,"retry_after_ms":null},"#,
            r#"{"backend":"east","status":200,"error":null,"start_ms":5,"first_byte_ms":6,"#,
            r#""ms":7,"retry_after_ms":null}],"#,
            r#""duration_ms":0,"waited_ms":250,"queued_ms":1500,"first_byte_ms":null,"request_bytes":18446744073709551615,"#,
            r#""response_bytes":12,"input_tokens":3,"output_tokens":null,"cached_tokens":null,"#,
            r#""cache_write_tokens":1,"reasoning_tokens":null,"total_tokens":null,"input_audio_tokens":2,"#,
            r#""output_audio_tokens":null,"cached_audio_tokens":null,"audio_seconds":12.034,"#,
            r#""usage_source":"reported","usage_missing":null,"cost":0.00125,"spilled":"throttled","#,
            r#""finish_reason":"stop","apim_request_id":null,"prompt":"/a\"b","completion":null,"#,
            r#""content_cut":false}"#
        );
        assert_eq!(to_json(&record_line(&attempts, "/a\"b")), expected);
        let mut minimal = record_line(&[], "");
        minimal.client_ip = "2001:db8::1".parse().ok();
        let parsed: serde_json::Value = serde_json::from_str(&to_json(&minimal)).unwrap();
        assert_eq!((&parsed["attempts"], &parsed["client_ip"]), (&json!([]), &json!("2001:db8::1")));
        minimal.usage.audio_millis = Some(9_000);
        assert!(to_json(&minimal).contains(r#""audio_seconds":9,"#));
        let asked = |name, answer| AskedResource { resource: ResourceName::new(name), answer };
        let affinity = AffinityRecord {
            by: Some("file"),
            how: "asked",
            resource: Some(ResourceName::new("b:443")),
            asked: vec![asked("a:443", AskAnswer::Denied), asked("b:443", AskAnswer::Accepted)],
            waited: Duration::from_millis(20),
            read_lag: None,
        };
        minimal.affinity = Some(&affinity);
        let parsed: serde_json::Value = serde_json::from_str(&to_json(&minimal)).unwrap();
        let expected =
            json!({"by": "file", "how": "asked", "resource": "b:443", "asked": 1, "waited_ms": 20});
        assert_eq!(parsed["affinity"], expected);
    }

    proptest! {
        #[test]
        fn texts_survive_a_json_round_trip(text in "\\PC*|[\\x00-\\x7f]{0,80}") {
            let parsed: serde_json::Value = serde_json::from_str(&to_json(&record_line(&[], &text))).unwrap();
            prop_assert_eq!(&parsed["prompt"], &json!(text));
            prop_assert_eq!(&parsed["path"], &json!(text));
        }
    }
}
