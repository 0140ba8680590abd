//! The record as it is written: one line of JSON, its fields in the order of the contract.
//!
//! Written by hand, since every request pays for it: names are constants, and most values are
//! numbers or short words.

use std::io::Write as _;
use std::net::IpAddr;

use json_escape_simd::escape_into;

use super::exchange::{Attempt, Outcome};
use crate::azure::response::usage::Usage;

/// A record, ready to be written. Unknown is `None`.
pub struct Line<'a> {
    pub(super) time: String,
    pub(super) request_id: &'a str,
    pub(super) client: Option<&'a str>,
    pub(super) client_ip: Option<IpAddr>,
    pub(super) peer_ip: Option<IpAddr>,
    pub(super) method: &'a str,
    pub(super) path: Option<&'a str>,
    pub(super) operation: Option<&'static str>,
    pub(super) api: Option<&'static str>,
    pub(super) api_version: Option<&'a str>,
    pub(super) deployment: Option<&'a str>,
    pub(super) stream: Option<bool>,
    pub(super) status: Option<u16>,
    pub(super) outcome: Outcome,
    pub(super) refusal: Option<&'static str>,
    pub(super) backend: Option<&'a str>,
    pub(super) upstream_deployment: Option<&'a str>,
    pub(super) region: Option<&'a str>,
    pub(super) model: Option<String>,
    pub(super) attempts: &'a [Attempt],
    pub(super) duration_ms: u64,
    pub(super) first_byte_ms: Option<u64>,
    pub(super) request_bytes: Option<u64>,
    pub(super) response_bytes: u64,
    pub(super) usage: Usage,
    pub(super) usage_source: &'static str,
    pub(super) finish_reason: Option<String>,
    pub(super) apim_request_id: Option<&'a str>,
    pub(super) prompt: Option<String>,
    pub(super) completion: Option<String>,
    pub(super) content_cut: bool,
}

impl Line<'_> {
    /// Appends it, without an end of the line.
    pub fn write(&self, to: &mut Vec<u8>) {
        let mut object = Object::begin(to);
        object.field("time", self.time.as_str());
        object.field("request_id", self.request_id);
        object.field("client", self.client);
        object.field("client_ip", self.client_ip);
        object.field("peer_ip", self.peer_ip);
        object.field("method", self.method);
        object.field("path", self.path);
        object.field("operation", self.operation);
        object.field("api", self.api);
        object.field("api_version", self.api_version);
        object.field("deployment", self.deployment);
        object.field("stream", self.stream);
        object.field("status", self.status.map(u64::from));
        object.field("outcome", self.outcome.word());
        object.field("refusal", self.refusal);
        object.field("backend", self.backend);
        object.field("upstream_deployment", self.upstream_deployment);
        object.field("region", self.region);
        object.field("model", self.model.as_deref());
        object.field("attempts", self.attempts);
        object.field("duration_ms", self.duration_ms);
        object.field("first_byte_ms", self.first_byte_ms);
        object.field("request_bytes", self.request_bytes);
        object.field("response_bytes", self.response_bytes);
        object.field("input_tokens", self.usage.input);
        object.field("output_tokens", self.usage.output);
        object.field("cached_tokens", self.usage.cached);
        object.field("reasoning_tokens", self.usage.reasoning);
        object.field("total_tokens", self.usage.total);
        object.field("usage_source", self.usage_source);
        object.field("finish_reason", self.finish_reason.as_deref());
        object.field("apim_request_id", self.apim_request_id);
        object.field("prompt", self.prompt.as_deref());
        object.field("completion", self.completion.as_deref());
        object.field("content_cut", self.content_cut);
        object.end();
    }
}

/// An object under way.
struct Object<'t> {
    to: &'t mut Vec<u8>,
    /// What stands before the next name.
    before: u8,
}

impl<'t> Object<'t> {
    fn begin(to: &'t mut Vec<u8>) -> Self {
        Self { to, before: b'{' }
    }

    /// `name` needs no escapes.
    fn field(&mut self, name: &str, value: impl Value) {
        self.to.extend_from_slice(&[self.before, b'"']);
        self.to.extend_from_slice(name.as_bytes());
        self.to.extend_from_slice(b"\":");
        value.write(self.to);
        self.before = b',';
    }

    fn end(self) {
        self.to.push(b'}');
    }
}

/// What a field can have.
trait Value {
    fn write(self, to: &mut Vec<u8>);
}

impl Value for &str {
    fn write(self, to: &mut Vec<u8>) {
        escape_into(self, to);
    }
}

impl Value for u64 {
    fn write(self, to: &mut Vec<u8>) {
        to.extend_from_slice(itoa::Buffer::new().format(self).as_bytes());
    }
}

impl Value for bool {
    fn write(self, to: &mut Vec<u8>) {
        to.extend_from_slice(if self { b"true" } else { b"false" });
    }
}

impl Value for IpAddr {
    fn write(self, to: &mut Vec<u8>) {
        to.push(b'"');
        match self.to_canonical() {
            Self::V4(address) => {
                for (n, octet) in address.octets().into_iter().enumerate() {
                    if n > 0 {
                        to.push(b'.');
                    }
                    u64::from(octet).write(to);
                }
            }
            // Has nothing that would have to be escaped; writing to memory cannot fail.
            Self::V6(address) => drop(write!(to, "{address}")),
        }
        to.push(b'"');
    }
}

impl<V: Value> Value for Option<V> {
    fn write(self, to: &mut Vec<u8>) {
        match self {
            Some(value) => value.write(to),
            None => to.extend_from_slice(b"null"),
        }
    }
}

impl Value for &[Attempt] {
    fn write(self, to: &mut Vec<u8>) {
        to.push(b'[');
        for (n, attempt) in self.iter().enumerate() {
            if n > 0 {
                to.push(b',');
            }
            let mut object = Object::begin(to);
            object.field("backend", attempt.backend.as_str());
            object.field("status", attempt.status.map(u64::from));
            object.field("error", attempt.error);
            object.field("ms", attempt.ms);
            object.field("retry_after_ms", attempt.retry_after_ms);
            object.end();
        }
        to.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::BackendName;
    use proptest::prelude::*;
    use serde_json::json;

    fn attempt(status: Option<u16>, error: Option<&'static str>) -> Attempt {
        Attempt { backend: BackendName::new("east"), status, error, ms: 7, retry_after_ms: None }
    }

    fn line<'a>(attempts: &'a [Attempt], text: &'a str) -> Line<'a> {
        Line {
            time: "2026-01-02T03:04:05.000006Z".to_owned(),
            request_id: "019",
            client: Some("team-a"),
            client_ip: Some([10, 0, 0, 255].into()),
            peer_ip: "::ffff:127.0.0.1".parse().ok(),
            method: "POST",
            path: Some(text),
            operation: Some("chat"),
            api: Some("classic"),
            api_version: None,
            deployment: Some("gpt-4o"),
            stream: Some(true),
            status: Some(200),
            outcome: Outcome::ClientGone,
            refusal: None,
            backend: Some("east"),
            upstream_deployment: None,
            region: Some("East US"),
            model: None,
            attempts,
            duration_ms: 0,
            first_byte_ms: None,
            request_bytes: Some(u64::MAX),
            response_bytes: 12,
            usage: Usage { input: Some(3), ..Usage::default() },
            usage_source: "reported",
            finish_reason: Some("stop".to_owned()),
            apim_request_id: None,
            prompt: Some(text.to_owned()),
            completion: None,
            content_cut: false,
        }
    }

    fn written(line: &Line<'_>) -> String {
        let mut bytes = Vec::new();
        line.write(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn fields_are_those_of_the_contract_in_its_order() {
        let attempts = [attempt(None, Some("reset")), attempt(Some(200), None)];
        let expected = concat!(
            r#"{"time":"2026-01-02T03:04:05.000006Z","request_id":"019","client":"team-a","#,
            r#""client_ip":"10.0.0.255","peer_ip":"127.0.0.1","method":"POST","path":"/a\"b","#,
            r#""operation":"chat","api":"classic","api_version":null,"deployment":"gpt-4o","stream":true,"#,
            r#""status":200,"outcome":"client_gone","refusal":null,"backend":"east","#,
            r#""upstream_deployment":null,"region":"East US","model":null,"attempts":["#,
            r#"{"backend":"east","status":null,"error":"reset","ms":7,"retry_after_ms":null},"#,
            r#"{"backend":"east","status":200,"error":null,"ms":7,"retry_after_ms":null}],"#,
            r#""duration_ms":0,"first_byte_ms":null,"request_bytes":18446744073709551615,"#,
            r#""response_bytes":12,"input_tokens":3,"output_tokens":null,"cached_tokens":null,"#,
            r#""reasoning_tokens":null,"total_tokens":null,"usage_source":"reported","#,
            r#""finish_reason":"stop","apim_request_id":null,"prompt":"/a\"b","completion":null,"#,
            r#""content_cut":false}"#
        );
        assert_eq!(written(&line(&attempts, "/a\"b")), expected);
        let mut none = line(&[], "");
        none.client_ip = "2001:db8::1".parse().ok();
        let parsed: serde_json::Value = serde_json::from_str(&written(&none)).unwrap();
        assert_eq!((&parsed["attempts"], &parsed["client_ip"]), (&json!([]), &json!("2001:db8::1")));
    }

    proptest! {
        #[test]
        fn texts_come_back_as_they_were(text in "\\PC*|[\\x00-\\x7f]{0,80}") {
            let parsed: serde_json::Value = serde_json::from_str(&written(&line(&[], &text))).unwrap();
            prop_assert_eq!(&parsed["prompt"], &json!(text));
            prop_assert_eq!(&parsed["path"], &json!(text));
        }
    }
}
