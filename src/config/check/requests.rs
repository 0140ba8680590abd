//! `requests`: what may be asked, how large it may be, and which headers change on the way.

use std::collections::HashSet;

use http::{HeaderName, HeaderValue};

use super::api_version;
use super::backends::{Backends, Found};
use crate::config::node::{Inner, Map};
use crate::config::{Allow, Requests};

const KEYS: [&str; 8] = [
    "allow",
    "api_version",
    "home",
    "max_body",
    "max_streamed_body",
    "body_memory",
    "set_headers",
    "remove_headers",
];

/// Reads the block; `home` has to be one of `backends`, where they are known.
pub(super) fn read(root: &Map<'_, '_>, backends: Option<&Backends>) -> Option<Requests> {
    let map = root.block("requests", &KEYS)?;
    let allow = map.or("allow", usual_allow(), |node| {
        node.some_of_each(
            "must not be an empty list, which would allow nothing; remove the key for the usual paths",
            |node| allow(node),
        )
    });
    let api_version = map.maybe("api_version", api_version);
    let home = match map.find("home") {
        Some(node) => home(&node, backends),
        None => backends.and_then(Backends::first),
    };
    let max_body = map.or("max_body", 100 << 20, Inner::size);
    // Defaults follow a larger max_body, so that raising one limit is one line.
    let at_least = |default: u64| max_body.map_or(default, |max_body| default.max(max_body));
    let max_streamed_body = map.or("max_streamed_body", at_least(600 << 20), Inner::size);
    let body_memory = map.or("body_memory", at_least(1 << 30), Inner::size);
    for (key, limit) in [("max_streamed_body", max_streamed_body), ("body_memory", body_memory)] {
        if max_body.zip(limit).is_some_and(|(max_body, limit)| limit < max_body) {
            root.report.error::<()>(&map.at(key), "must be at least requests.max_body");
        }
    }
    let set_headers = map.or("set_headers", Vec::new(), set_headers);
    let remove_headers = map.or("remove_headers", Vec::new(), |node| {
        let set = set_headers.as_deref().unwrap_or_default();
        node.each(|node| removed_header(node, set))
    });
    Some(Requests {
        allow: allow?,
        api_version: api_version?,
        home: home?,
        max_body: max_body?,
        max_streamed_body: max_streamed_body?,
        body_memory: body_memory?,
        set_headers: set_headers?,
        remove_headers: remove_headers?,
    })
}

fn usual_allow() -> Vec<Allow> {
    let usual = ["GET /openai/*", "POST /openai/*", "DELETE /openai/*"];
    usual.iter().filter_map(|line| Allow::parse(line).ok()).collect()
}

fn allow(node: &Inner<'_, '_>) -> Option<Allow> {
    let text = node.filled()?;
    match Allow::parse(&text.value) {
        Ok(allow) => Some(allow),
        Err(problem) => node.error(format!("{problem} ({})", text.shown())),
    }
}

fn home(node: &Inner<'_, '_>, backends: Option<&Backends>) -> Option<usize> {
    let text = node.filled()?;
    match backends?.find(&text.value) {
        Found::At(i) => Some(i),
        Found::Unknown => None,
        Found::Nowhere => {
            node.error(format!("must be the name of a backend, and none is called {}", text.shown()))
        }
    }
}

fn set_headers(node: &Inner<'_, '_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let mut seen = HashSet::new();
    let entries = node.entries()?;
    let read = entries.iter().map(|(name, node)| {
        let name = header_name(node, name, "this key is none");
        if let Some(name) = &name
            && !seen.insert(name.clone())
        {
            node.error::<()>("is set twice: header names compare without case");
        }
        let value = header_value(node);
        Some((name?, value?))
    });
    let read: Vec<_> = read.collect();
    read.into_iter().collect()
}

fn header_value(node: &Inner<'_, '_>) -> Option<HeaderValue> {
    let text = node.text()?;
    let Ok(mut value) = HeaderValue::from_str(&text.value) else {
        return node.error("must be printable ASCII without line breaks, as header values are");
    };
    value.set_sensitive(text.is_expanded());
    Some(value)
}

fn removed_header(node: &Inner<'_, '_>, set: &[(HeaderName, HeaderValue)]) -> Option<HeaderName> {
    let text = node.filled()?;
    let name = header_name(node, &text.value, &format!("{} is none", text.shown()))?;
    if set.iter().any(|(set, _)| *set == name) {
        return node.error("is also in requests.set_headers, which replaces what the client sent; remove it from one of them");
    }
    Some(name)
}

fn header_name(node: &Inner<'_, '_>, text: &str, otherwise: &str) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        return node.error(format!("a header name is letters, digits and hyphens; {otherwise}"));
    };
    match whose(name.as_str()) {
        Some(reason) => node.error(reason),
        None => Some(name),
    }
}

/// Why a header is not the operator's to set or remove. Hop-by-hop: RFC 9110 section 7.6.1.
fn whose(name: &str) -> Option<&'static str> {
    match name {
        "host" => Some("cannot be changed: the host is that of the backend's endpoint"),
        "content-length" | "transfer-encoding" => {
            Some("cannot be changed: it follows from the body that is sent")
        }
        "connection" | "keep-alive" | "te" | "trailer" | "upgrade" | "expect" => {
            Some("cannot be changed: it belongs to one connection and is never forwarded as it came")
        }
        "authorization" | "api-key" | "ocp-apim-subscription-key" | "subscription-key" | "cookie" => Some(
            "cannot be changed: credentials of clients are removed, and a backend's own belongs under its credential",
        ),
        "accept-encoding" => Some("cannot be changed: it is always identity, so that answers can be read"),
        _ if name.starts_with("proxy-") => {
            Some("cannot be changed: it belongs to one connection and is never forwarded as it came")
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

    use crate::config::tests::{assert_problems, good};

    #[test]
    fn defaults() {
        let requests = good("").config.requests;
        let allow: Vec<&Method> = requests.allow.iter().map(|allow| &allow.method).collect();
        assert_eq!(allow, [Method::GET, Method::POST, Method::DELETE]);
        assert!(requests.allow.iter().all(|allow| allow.path.matches("/openai/v1/models")));
        assert_eq!((requests.api_version, requests.home), (None, 0));
        let limits = (requests.max_body, requests.max_streamed_body, requests.body_memory);
        assert_eq!(limits, (100 << 20, 600 << 20, 1 << 30));
        assert!(requests.set_headers.is_empty() && requests.remove_headers.is_empty());
    }

    #[test]
    fn larger_bodies_take_the_other_limits_along() {
        let requests = good("requests: { max_body: 2GiB }").config.requests;
        assert_eq!((requests.max_streamed_body, requests.body_memory), (2 << 30, 2 << 30));
    }

    #[test]
    fn headers_are_read_and_expanded_values_marked() {
        let yaml = "requests: { set_headers: { Content-Type: application/json, X-Team: '${KEY}' }, remove_headers: [X-Old] }";
        let requests = good(yaml).config.requests;
        assert_eq!(
            requests.set_headers[0],
            (http::header::CONTENT_TYPE, "application/json".parse().unwrap())
        );
        assert!(requests.set_headers[1].1.is_sensitive() && !requests.set_headers[0].1.is_sensitive());
        assert_eq!(requests.remove_headers, ["x-old"]);
    }

    #[test]
    fn home_is_the_named_backend_or_the_first_of_the_lowest_tier() {
        let backend = |name: &str, tier: u16| {
            format!(
                "  - {{ name: {name}, tier: {tier}, endpoint: 'https://a.b', credential: {{ api_key: k }} }}\n"
            )
        };
        let backends = format!("backends:\n{}{}{}", backend("a", 2), backend("b", 1), backend("c", 1));
        assert_eq!(good(&backends).config.requests.home, 1);
        assert_eq!(good(&format!("{backends}requests: {{ home: c }}")).config.requests.home, 2);
    }

    #[test]
    fn problems() {
        assert_problems(&[
            (
                "requests: { home: west }",
                &["requests.home: must be the name of a backend, and none is called \"west\""],
            ),
            (
                "requests: { home: '${KEY}' }",
                &["requests.home: must be the name of a backend, and none is called the value from ${KEY}"],
            ),
            (
                "requests: { allow: [] }",
                &[
                    "requests.allow: must not be an empty list, which would allow nothing; remove the key for the usual paths",
                ],
            ),
            (
                "requests: { allow: [OPTIONS /x, /y, 'GET /openai/*', ] }",
                &[
                    "requests.allow[0]: OPTIONS cannot be allowed; it is always answered 405 (\"OPTIONS /x\")",
                    "requests.allow[1]: must be a method and a path, such as \"GET /openai/*\" (\"/y\")",
                ],
            ),
            (
                "requests: { max_body: 1GiB, max_streamed_body: 1MiB, body_memory: 1MiB }",
                &[
                    "requests.max_streamed_body: must be at least requests.max_body",
                    "requests.body_memory: must be at least requests.max_body",
                ],
            ),
            ("requests: { max_body: 100 }", &["requests.max_body: has no unit; write 100MiB or 100KiB"]),
            ("requests: { max_body: 0B }", &["requests.max_body: must be more than 0B"]),
            (
                "requests: { api_version: '2024-13-01' }",
                &[
                    "requests.api_version: must be a version such as 2024-10-21 or 2025-03-01-preview, not \"2024-13-01\"",
                ],
            ),
            (
                "requests: { set_headers: { Host: a, 'a b': c, X-A: 1, x-b: \"a\\nb\", x-c: d, X-C: e, API-key: f } }",
                &[
                    "requests.set_headers.Host: cannot be changed: the host is that of the backend's endpoint",
                    "requests.set_headers[\"a b\"]: a header name is letters, digits and hyphens; this key is none",
                    "requests.set_headers.X-A: must be a string, not a number; write it in quotes",
                    "requests.set_headers.x-b: must be printable ASCII without line breaks, as header values are",
                    "requests.set_headers.X-C: is set twice: header names compare without case",
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
