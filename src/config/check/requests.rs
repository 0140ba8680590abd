//! Reads and checks `requests`: which requests are allowed, how large they may be, and which headers are
//! changed.

use std::collections::HashSet;

use http::{HeaderName, HeaderValue};

use super::partial_backends::{NameLookup, PartialBackends};
use super::shared::read_api_version;
use crate::config::schema::{ModelsSource, RequestsConfig};
use crate::config::values::AllowRule;
use crate::config::yaml::{YamlMapping, YamlNode};

const REQUESTS_KEYS: [&str; 9] = [
    "allow",
    "api_version",
    "home",
    "models",
    "max_body",
    "max_streamed_body",
    "body_memory",
    "set_headers",
    "remove_headers",
];

/// Reads the block. `home` must be one of `backends`.
pub(super) fn read_requests(
    root: &YamlMapping<'_, '_>,
    backends: Option<&PartialBackends>,
) -> Option<RequestsConfig> {
    let map = root.read_block("requests", &REQUESTS_KEYS)?;
    let allow_rules = map.read_or("allow", default_allow_rules(), |node| {
        node.read_nonempty_list(
            "must not be an empty list, which would allow nothing; remove the key to allow the usual paths",
            |node| read_allow_rule(node),
        )
    });
    let default_api_version = map.read_optional("api_version", read_api_version);
    let default_backend_index = match map.get("home") {
        Some(node) => read_default_backend_index(&node, backends),
        None => backends.and_then(PartialBackends::first_index_of_lowest_tier).map(Some),
    };
    let models_source = map.read_or("models", ModelsSource::Deployments, |node| {
        node.read_choice(&[
            ("deployments", ModelsSource::Deployments),
            ("home", ModelsSource::DefaultBackend),
        ])
    });
    let max_body = map.read_or("max_body", 100 << 20, YamlNode::read_byte_size);
    // The defaults of the other limits follow a larger max_body, so that it can be raised alone.
    let at_least = |default: u64| max_body.map_or(default, |max_body| default.max(max_body));
    let max_streamed_body = map.read_or("max_streamed_body", at_least(600 << 20), YamlNode::read_byte_size);
    let body_memory = map.read_or("body_memory", at_least(1 << 30), YamlNode::read_byte_size);
    for (key, limit) in [("max_streamed_body", max_streamed_body), ("body_memory", body_memory)] {
        if max_body.zip(limit).is_some_and(|(max_body, limit)| limit < max_body) {
            map.report_error_at::<()>(key, "must be at least requests.max_body");
        }
    }
    let set_headers = map.read_or("set_headers", Vec::new(), read_set_headers);
    let remove_headers = map.read_or("remove_headers", Vec::new(), |node| {
        let set_headers = set_headers.as_deref().unwrap_or_default();
        node.read_each(|node| read_removed_header(node, set_headers))
    });
    Some(RequestsConfig {
        allow_rules: allow_rules?,
        default_api_version: default_api_version?,
        default_backend_index: default_backend_index?,
        models_source: models_source?,
        max_buffered_body_bytes: max_body?,
        max_streamed_body_bytes: max_streamed_body?,
        max_total_buffered_bytes: body_memory?,
        set_headers: set_headers?,
        remove_headers: remove_headers?,
    })
}

fn default_allow_rules() -> Vec<AllowRule> {
    let rules = ["GET /openai/*", "POST /openai/*", "DELETE /openai/*"];
    rules.iter().filter_map(|rule| AllowRule::parse(rule).ok()).collect()
}

fn read_allow_rule(node: &YamlNode<'_, '_>) -> Option<AllowRule> {
    let text = node.read_nonempty_text()?;
    match AllowRule::parse(&text.value) {
        Ok(rule) => Some(rule),
        Err(problem) => node.report_error(format!("{problem}{}", text.source_note())),
    }
}

/// The inner `None` is a disabled backend.
fn read_default_backend_index(
    node: &YamlNode<'_, '_>,
    backends: Option<&PartialBackends>,
) -> Option<Option<usize>> {
    let text = node.read_nonempty_text()?;
    match backends?.look_up_name(&text.value) {
        NameLookup::Enabled(index) => Some(Some(index)),
        NameLookup::Disabled => {
            node.report_warning(
                "is disabled (enabled: false): calls that name no deployment, such as files and batches, are refused \
                 with 503 until it is enabled or another backend is named here",
            );
            Some(None)
        }
        NameLookup::Undetermined => None,
        NameLookup::NotFound => node.report_error(format!(
            "must be the name of a backend, and there is none with this one{}",
            text.source_note()
        )),
    }
}

fn read_set_headers(node: &YamlNode<'_, '_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let mut names = HashSet::new();
    let entries = node.read_named_entries()?;
    let headers = entries.iter().map(|(name, node)| {
        let name = parse_changeable_header_name(node, name, "");
        if let Some(name) = &name
            && !names.insert(name.clone())
        {
            node.report_error::<()>("is set twice: header names are compared without case");
        }
        let value = read_header_value(node);
        Some((name?, value?))
    });
    let headers: Vec<_> = headers.collect();
    headers.into_iter().collect()
}

fn read_header_value(node: &YamlNode<'_, '_>) -> Option<HeaderValue> {
    let text = if node.problems.ignores_secrets() { node.read_secret_text()? } else { node.read_text()? };
    let Ok(mut value) = HeaderValue::from_str(&text.value) else {
        return node.report_error("must be a header value: printable ASCII without line breaks");
    };
    // It may be a secret. A sensitive value is hidden in debug output and not kept in HTTP/2 header tables.
    value.set_sensitive(text.is_expanded());
    Some(value)
}

fn read_removed_header(
    node: &YamlNode<'_, '_>,
    set_headers: &[(HeaderName, HeaderValue)],
) -> Option<HeaderName> {
    let text = node.read_nonempty_text()?;
    let name = parse_changeable_header_name(node, &text.value, &text.source_note())?;
    if set_headers.iter().any(|(set_name, _)| *set_name == name) {
        return node.report_error("is also in requests.set_headers, which replaces what the client sent; remove it from one of them");
    }
    Some(name)
}

fn parse_changeable_header_name(
    node: &YamlNode<'_, '_>,
    text: &str,
    source_note: &str,
) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        return node
            .report_error(format!("must be a header name of letters, digits and hyphens{source_note}"));
    };
    match reserved_header_reason(name.as_str()) {
        Some(reason) => node.report_error(reason),
        None => Some(name),
    }
}

/// Why a header cannot be set or removed by the configuration. Hop-by-hop headers: RFC 9110 section 7.6.1.
pub(crate) fn reserved_header_reason(name: &str) -> Option<&'static str> {
    match name {
        "host" => Some("cannot be changed: the host is that of the backend's endpoint"),
        "content-length" | "transfer-encoding" => {
            Some("cannot be changed: it follows from the body that is sent")
        }
        "connection" | "keep-alive" | "te" | "trailer" | "upgrade" | "expect" => {
            Some("cannot be changed: it belongs to one connection and is never forwarded")
        }
        "authorization" | "api-key" | "ocp-apim-subscription-key" | "subscription-key" | "cookie" => Some(
            "cannot be changed: credentials of clients are removed, and a backend's own belongs under its credential",
        ),
        "accept-encoding" => Some("cannot be changed: it is always identity, so that responses can be read"),
        _ if name.starts_with("proxy-") => {
            Some("cannot be changed: it belongs to one connection and is never forwarded")
        }
        _ if name.starts_with("sec-websocket-") => {
            Some("cannot be changed: it belongs to the WebSocket handshake")
        }
        _ if name.starts_with("x-aoai-lb-") => {
            Some("cannot be changed: the prefix x-aoai-lb- is the balancer's own")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::ModelsSource;
    use crate::config::testing::{assert_errors, parse_valid};

    #[test]
    fn optional_request_keys_have_defaults() {
        let requests = parse_valid("").config.requests;
        let allow: Vec<&Method> = requests.allow_rules.iter().map(|allow| &allow.method).collect();
        assert_eq!(allow, [Method::GET, Method::POST, Method::DELETE]);
        assert!(requests.allow_rules.iter().all(|allow| allow.path_pattern.matches("/openai/v1/models")));
        assert_eq!((requests.default_api_version, requests.default_backend_index), (None, Some(0)));
        assert_eq!(requests.models_source, ModelsSource::Deployments);
        let limits = (
            requests.max_buffered_body_bytes,
            requests.max_streamed_body_bytes,
            requests.max_total_buffered_bytes,
        );
        assert_eq!(limits, (100 << 20, 600 << 20, 1 << 30));
        assert!(requests.set_headers.is_empty() && requests.remove_headers.is_empty());
    }

    #[test]
    fn a_larger_max_body_raises_the_default_of_the_other_limits() {
        let requests = parse_valid("requests: { max_body: 2GiB }").config.requests;
        assert_eq!((requests.max_streamed_body_bytes, requests.max_total_buffered_bytes), (2 << 30, 2 << 30));
    }

    #[test]
    fn header_values_from_expansions_are_marked_sensitive() {
        let yaml = "requests: { set_headers: { Content-Type: application/json, X-Team: '${KEY}' }, remove_headers: [X-Old] }";
        let requests = parse_valid(yaml).config.requests;
        assert_eq!(
            requests.set_headers[0],
            (http::header::CONTENT_TYPE, "application/json".parse().unwrap())
        );
        assert!(requests.set_headers[1].1.is_sensitive() && !requests.set_headers[0].1.is_sensitive());
        assert_eq!(requests.remove_headers, ["x-old"]);
    }

    #[test]
    fn the_default_backend_is_the_named_one_or_the_first_of_the_lowest_tier() {
        let backend = |name: &str, tier: u16| {
            format!(
                "  - {{ name: {name}, tier: {tier}, endpoint: 'https://a.b', credential: {{ api_key: k }} }}\n"
            )
        };
        let backends = format!("backends:\n{}{}{}", backend("a", 2), backend("b", 1), backend("c", 1));
        assert_eq!(parse_valid(&backends).config.requests.default_backend_index, Some(1));
        assert_eq!(
            parse_valid(&format!("{backends}requests: {{ home: c }}")).config.requests.default_backend_index,
            Some(2)
        );
    }

    #[test]
    fn invalid_request_settings_are_reported() {
        assert_errors(&[
            (
                "requests: { home: west }",
                &["requests.home: must be the name of a backend, and there is none with this one"],
            ),
            (
                "requests: { home: '${KEY}' }",
                &[
                    "requests.home: must be the name of a backend, and there is none with this one (the value is from ${KEY})",
                ],
            ),
            ("requests: { models: all }", &["requests.models: must be deployments or home"]),
            (
                "requests: { allow: [] }",
                &[
                    "requests.allow: must not be an empty list, which would allow nothing; remove the key to allow the usual paths",
                ],
            ),
            (
                "requests: { allow: [OPTIONS /x, /y, 'GET /openai/*', ] }",
                &[
                    "requests.allow[0]: OPTIONS cannot be allowed: it is always refused with 405",
                    "requests.allow[1]: must be a method and a path, such as \"GET /openai/*\"",
                ],
            ),
            (
                "requests: { max_body: 1GiB, max_streamed_body: 1MiB, body_memory: 1MiB }",
                &[
                    "requests.max_streamed_body: must be at least requests.max_body",
                    "requests.body_memory: must be at least requests.max_body",
                ],
            ),
            (
                "requests: { max_body: 100 }",
                &["requests.max_body: has no unit; give it one, such as 10MiB or 10KiB"],
            ),
            ("requests: { max_body: 0B }", &["requests.max_body: must be more than 0B"]),
            (
                "requests: { api_version: '2024-13-01' }",
                &["requests.api_version: must be a version such as 2024-10-21 or 2025-03-01-preview"],
            ),
            (
                "requests: { set_headers: { Host: a, 'a b': c, X-A: 1, x-b: \"a\\nb\", x-c: d, X-C: e, API-key: f } }",
                &[
                    "requests.set_headers.Host: cannot be changed: the host is that of the backend's endpoint",
                    "requests.set_headers[…]: must be a header name of letters, digits and hyphens",
                    "requests.set_headers.x-b: must be a header value: printable ASCII without line breaks",
                    "requests.set_headers.X-C: is set twice: header names are compared without case",
                    "requests.set_headers.API-key: cannot be changed: credentials of clients are removed, and a backend's own belongs under its credential",
                ],
            ),
            (
                "requests: { set_headers: { x-c: d }, remove_headers: [X-C, Content-Length, x-aoai-lb-me] }",
                &[
                    "requests.remove_headers[0]: is also in requests.set_headers, which replaces what the client sent; remove it from one of them",
                    "requests.remove_headers[1]: cannot be changed: it follows from the body that is sent",
                    "requests.remove_headers[2]: cannot be changed: the prefix x-aoai-lb- is the balancer's own",
                ],
            ),
        ]);
    }
}
