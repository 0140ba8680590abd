//! Reads and checks `traces`: the collector that traces go to, and which of them.

use std::collections::HashSet;

use http::{HeaderName, HeaderValue};

use super::credentials::read_ca_file;
use crate::config::schema::TracesConfig;
use crate::config::values::{Endpoint, Percentage, Secret};
use crate::config::yaml::{YamlMapping, YamlNode};

const TRACES_KEYS: [&str; 5] = ["endpoint", "sample", "headers", "forward", "tls"];
/// What the path of the endpoint is followed by, in the words of the OTLP specification.
const TRACES_PATH: &str = "/v1/traces";
/// The header fields that follow from what is sent.
const OWN_HEADERS: [&str; 6] =
    ["host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection"];

/// Reads the block; `Some(None)` if there is none.
pub(super) fn read_traces(root: &YamlMapping<'_, '_>) -> Option<Option<TracesConfig>> {
    root.read_optional("traces", |node| {
        let map = node.read_mapping(&TRACES_KEYS)?;
        let endpoint = map
            .require("endpoint", "write the URL of a collector, such as http://127.0.0.1:4318")
            .and_then(|node| node.read_parsed(parse_collector_url));
        let sample = map.read_or("sample", Percentage::FIVE_PERCENT, YamlNode::read_percentage);
        let headers = map.read_or("headers", Vec::new(), read_headers);
        let forwards_context = map.read_or("forward", false, YamlNode::read_bool);
        let ca_file = map.read_block("tls", &["ca"]).and_then(|tls| tls.read_optional("ca", read_ca_file));
        let (endpoint, path) = endpoint?;
        let config = TracesConfig {
            endpoint,
            path,
            sample: sample?,
            headers: headers?,
            forwards_context: forwards_context?,
            ca_file: ca_file?,
        };
        check_tls(&map, &config)?;
        Some(config)
    })
}

/// Checks what must agree between the endpoint and the other keys.
fn check_tls(map: &YamlMapping<'_, '_>, config: &TracesConfig) -> Option<()> {
    let uses_tls = config.endpoint.uses_tls;
    if config.ca_file.is_some() && !uses_tls {
        return map
            .report_error_at("tls", "is of use with TLS only; write https:// in endpoint, or remove it");
    }
    if !uses_tls && !config.endpoint.is_loopback() {
        let what = if config.headers.is_empty() { "traces go" } else { "traces and headers go" };
        map.report_warning_at(
            "endpoint",
            format!("has no TLS: {what} over the network readable; write https:// if the collector has TLS"),
        );
    }
    Some(())
}

/// Parses `https://HOST[:PORT][/PATH]`. Returns the server and the whole path of requests. Errors do not repeat
/// the text, which may have a secret in it.
fn parse_collector_url(text: &str) -> Result<(Endpoint, String), &'static str> {
    const EXPECTED: &str = "must be a URL such as http://127.0.0.1:4318";
    if text.contains(['?', '#']) {
        return Err("must not have a query or a fragment; what authenticates belongs in traces.headers");
    }
    let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("must not have a user or password; what authenticates belongs in traces.headers");
    }
    let path = path.trim_end_matches('/');
    if path.ends_with(TRACES_PATH) {
        return Err("must not end with /v1/traces, which is added");
    }
    let is_path = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte);
    if !path.bytes().all(is_path) {
        return Err("must have a path of letters, digits and / - . _ ~ %");
    }
    let endpoint = Endpoint::parse(&format!("{scheme}://{authority}"))?;
    Ok((endpoint, format!("{path}{TRACES_PATH}")))
}

fn read_headers(node: &YamlNode<'_, '_>) -> Option<Vec<(HeaderName, Secret)>> {
    let mut names = HashSet::new();
    let entries = node.read_named_entries()?;
    let headers = entries.iter().map(|(name, node)| {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            return node.report_error("must be a header name of letters, digits and hyphens");
        };
        if OWN_HEADERS.contains(&name.as_str()) {
            return node.report_error("cannot be changed: it follows from what is sent");
        }
        if !names.insert(name.clone()) {
            return node.report_error("is set twice: header names are compared without case");
        }
        let text = node.read_secret_text()?;
        if HeaderValue::from_str(&text.value).is_err() {
            return node.report_error(format!(
                "must be a header value: printable ASCII without line breaks{}",
                text.source_note()
            ));
        }
        Some((name, Secret::new(&text.value)))
    });
    let headers: Vec<_> = headers.collect();
    headers.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{assert_errors, assert_warnings, parse_valid};

    fn traces(keys: &str) -> TracesConfig {
        parse_valid(&format!("traces: {{ {keys} }}")).config.traces.unwrap()
    }

    #[test]
    fn without_the_block_there_are_no_traces() {
        assert_eq!(parse_valid("").config.traces, None);
        let config = traces("endpoint: 'http://127.0.0.1:4318'");
        let endpoint = Endpoint { uses_tls: false, host: "127.0.0.1".to_owned(), port: 4318 };
        let expected = TracesConfig {
            endpoint,
            path: "/v1/traces".to_owned(),
            sample: Percentage::new(5).unwrap(),
            headers: Vec::new(),
            forwards_context: false,
            ca_file: None,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_path_follows_that_of_the_endpoint() {
        for (url, authority, path) in [
            ("http://localhost", "localhost", "/v1/traces"),
            ("https://otlp.example.com/", "otlp.example.com", "/v1/traces"),
            ("HTTPS://otlp.Example.com:4318/otlp/", "otlp.example.com:4318", "/otlp/v1/traces"),
            ("https://[::1]:4318/a/b%20c", "[::1]:4318", "/a/b%20c/v1/traces"),
        ] {
            let config = traces(&format!("endpoint: '{url}'"));
            assert_eq!(
                (config.endpoint.authority().as_str(), config.path.as_str()),
                (authority, path),
                "{url}"
            );
        }
    }

    #[test]
    fn headers_are_secrets() {
        let config = traces(
            "endpoint: 'https://a', sample: 100%, forward: true, headers: { Authorization: 'Bearer ${KEY}', x-team: a b }",
        );
        assert_eq!((config.sample.percent(), config.forwards_context), (100, true));
        let headers: Vec<_> =
            config.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
        assert_eq!(headers, [("authorization", "Bearer k3y-of-the-test"), ("x-team", "a b")]);
        assert!(!format!("{config:?}").contains("k3y"));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        let url = |url: &str| format!("traces: {{ endpoint: '{url}' }}");
        for (text, expected) in [
            ("127.0.0.1:4318", "must be a URL such as http://127.0.0.1:4318"),
            ("grpc://a:4317", "must begin with https:// or http://"),
            (
                "https://u:hush@a",
                "must not have a user or password; what authenticates belongs in traces.headers",
            ),
            (
                "https://a?key=hush",
                "must not have a query or a fragment; what authenticates belongs in traces.headers",
            ),
            ("https://a/v1/traces/", "must not end with /v1/traces, which is added"),
            ("https://a/b c", "must have a path of letters, digits and / - . _ ~ %"),
            ("https://a:0", "must have a port between 1 and 65535 after its `:`"),
        ] {
            assert_errors(&[(&url(text), &[&format!("traces.endpoint: {expected}")])]);
        }
        assert_errors(&[
            (
                "traces: {}",
                &["traces.endpoint: is missing; write the URL of a collector, such as http://127.0.0.1:4318"],
            ),
            (
                "traces: { endpoint: 'https://a', samples: 5%, headers: { 'a b': c, Host: x, x-a: 1, X-A: 2, x-b: '' } }",
                &[
                    "traces.samples: unknown key; did you mean `sample`?",
                    "traces.headers[…]: must be a header name of letters, digits and hyphens",
                    "traces.headers.Host: cannot be changed: it follows from what is sent",
                    "traces.headers.X-A: is set twice: header names are compared without case",
                    "traces.headers.x-b: must not be empty",
                ],
            ),
            (
                "traces: { endpoint: 'https://a', sample: 5, tls: { ca: missing.pem } }",
                &[
                    "traces.sample: has no unit; give it one, such as 10% or 10 %",
                    "traces.tls.ca: cannot read the file: No such file or directory",
                ],
            ),
        ]);
    }

    #[test]
    fn what_anybody_on_the_way_can_read_is_warned_about() {
        let warning = |what: &str| {
            format!(
                "traces.endpoint: has no TLS: {what} over the network readable; write https:// if the collector has TLS"
            )
        };
        assert_warnings(&[
            ("traces: { endpoint: 'http://10.0.0.1:4318' }", &[&warning("traces go")]),
            (
                "traces: { endpoint: 'http://a:4318', headers: { x: y } }",
                &[&warning("traces and headers go")],
            ),
            ("traces: { endpoint: 'https://10.0.0.1:4318', headers: { x: y } }", &[]),
            ("traces: { endpoint: 'http://localhost:4318', headers: { x: y } }", &[]),
        ]);
    }
}
