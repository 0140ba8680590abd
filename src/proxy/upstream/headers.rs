//! The request's head as a backend sees it: no credential but its own, no trace of what stood
//! in between, and as few headers as possible (Azure answers 431 above ten custom ones).

use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::uri::PathAndQuery;
use http::{Request, Uri, Version};
use pingora::http::RequestHeader;
use pingora::{ErrorType, OrErr};
use smallvec::SmallVec;

use crate::azure::request::multipart;
use crate::config::Requests;
use crate::gateway::Backend;

/// Whether a header never goes upstream: client credentials, addressing, tracing, and what concerns
/// one connection only or is set anew.
fn is_dropped(name: &str) -> bool {
    let is_one = matches!(
        name,
        "api-key"
            | "ocp-apim-subscription-key"
            | "subscription-key"
            | "authorization"
            | "cookie"
            | "forwarded"
            | "x-real-ip"
            | "via"
            | "client-ip"
            | "traceparent"
            | "tracestate"
            | "baggage"
            | "keep-alive"
            | "te"
            | "trailer"
            | "expect"
            | "content-length"
            | "transfer-encoding"
            | "host"
            | "accept-encoding"
            | "http2-settings"
    );
    is_one
        || match name.as_bytes().first() {
            Some(b'c') => name.starts_with("cf-"),
            Some(b'p') => name.starts_with("proxy-"),
            Some(b'x') => {
                let prefixes = [
                    "x-forwarded-",
                    "x-original-",
                    "x-azure-",
                    "x-appgw-",
                    "x-arr-",
                    "x-stainless-",
                    "x-aoai-lb-",
                ];
                prefixes.iter().any(|prefix| name.starts_with(prefix))
            }
            _ => false,
        }
}

/// What frames the body upstream.
pub(in crate::proxy) enum Framing {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// An upload of unknown length.
    Chunked,
}

/// What of a client's head may go upstream. What differs from backend to backend, the target among
/// it, is [`rewrite`]'s.
///
/// # Errors
/// Pingora's, for a header that cannot be set; these could be read.
pub(in crate::proxy) fn kept(header: &RequestHeader, upgrades: bool) -> pingora::Result<RequestHeader> {
    let mut kept = Request::new(()).into_parts().0;
    kept.method = header.method.clone();
    kept.version = header.version;
    // With what is set later.
    kept.headers.reserve(12);
    // A client names here what is for the next hop only (RFC 9110, section 7.6.1).
    let named: SmallVec<[&[u8]; 4]> = header
        .headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    for (name, value) in &header.headers {
        let is_for_one_hop = || {
            *name == CONNECTION
                || *name == UPGRADE
                || named.iter().any(|named| named.eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        if !is_dropped(name.as_str()) && !is_for_one_hop() {
            kept.headers.append(name.clone(), value.clone());
        }
    }
    let mut kept = RequestHeader::from(kept);
    if upgrades {
        strip_subprotocol_key(&mut kept)?;
        // The one other protocol that is spoken here.
        let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
        if header.headers.get(UPGRADE).is_some_and(is_websocket) {
            kept.insert_header("Connection", "Upgrade")?;
            kept.insert_header("Upgrade", "websocket")?;
        }
    }
    Ok(kept)
}

/// Makes what was [`kept`] the head for one backend.
///
/// # Errors
/// Pingora's, for a header that cannot be set; the values were checked with the
/// configuration.
pub(in crate::proxy) fn rewrite(
    header: &mut RequestHeader,
    backend: &Backend,
    requests: &Requests,
    path: String,
    framing: &Framing,
) -> pingora::Result<()> {
    header.set_uri(target(path)?);
    set(header, requests)?;
    address(header, backend)?;
    match framing {
        Framing::None => {}
        Framing::Length(length) => header.insert_header("Content-Length", HeaderValue::from(*length))?,
        // HTTP/2 frames by itself, and knows no such header (RFC 9113, section 8.2.2).
        Framing::Chunked if header.version == Version::HTTP_2 => {}
        Framing::Chunked => header.insert_header("Transfer-Encoding", HeaderValue::from_static("chunked"))?,
    }
    Ok(())
}

fn target(path: String) -> pingora::Result<Uri> {
    let path = PathAndQuery::from_maybe_shared(Bytes::from(path));
    path.map(Uri::from).or_err(ErrorType::InvalidHTTPHeader, "the target of a backend")
}

/// What a plain request's head becomes for one backend, in lines; `presented` is what the backend's
/// own credential is shown in.
///
/// # Errors
/// As [`rewrite`].
pub(in crate::proxy) fn preview(
    method: &http::Method,
    backend: &Backend,
    requests: &Requests,
    path: String,
    presented: &HeaderName,
    has_body: bool,
) -> pingora::Result<Vec<String>> {
    let mut header = RequestHeader::build(method.clone(), b"/", None)?;
    if has_body {
        header.insert_header(http::header::CONTENT_TYPE, "application/json")?;
    }
    let mut header = kept(&header, false)?;
    rewrite(&mut header, backend, requests, path, &Framing::None)?;
    header.remove_header(presented);
    let shown = |value: &http::HeaderValue| match value.to_str() {
        Ok(value_text) if !value.is_sensitive() => value_text.to_owned(),
        _ => "(not shown)".to_owned(),
    };
    let lines = header.headers.iter().map(|(name, value)| format!("{name}: {}", shown(value)));
    Ok(lines.chain([format!("{presented}: (the backend's own)")]).collect())
}

/// Whom the request is for.
///
/// # Errors
/// As [`rewrite`].
pub(in crate::proxy) fn address(header: &mut RequestHeader, backend: &Backend) -> pingora::Result<()> {
    header.insert_header("Host", backend.host.clone())?;
    // Tokens are read from replies as they pass.
    header.insert_header("Accept-Encoding", HeaderValue::from_static("identity"))
}

/// The operator's own headers. A form keeps its content type, which carries its boundary.
fn set(header: &mut RequestHeader, requests: &Requests) -> pingora::Result<()> {
    for name in &requests.remove_headers {
        header.remove_header(name);
    }
    for (name, value) in &requests.set_headers {
        if name == http::header::CONTENT_TYPE && is_form(header) {
            continue;
        }
        header.insert_header(name.clone(), value.clone())?;
    }
    Ok(())
}

fn is_form(header: &RequestHeader) -> bool {
    let value = header.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(multipart::is_form) || value.is_some_and(|value| value.starts_with("multipart/"))
}

/// Browsers cannot set headers on a WebSocket, so clients put their key among the
/// subprotocols (`openai-insecure-api-key.KEY`); it must not reach a backend.
fn strip_subprotocol_key(header: &mut RequestHeader) -> pingora::Result<()> {
    let name = http::header::SEC_WEBSOCKET_PROTOCOL;
    let offered: Vec<String> = header
        .headers
        .get_all(&name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|item| item.trim().to_owned())
        .filter(|item| !item.is_empty() && !item.to_ascii_lowercase().contains("api-key"))
        .collect();
    if header.headers.contains_key(&name) {
        header.remove_header(&name);
        if !offered.is_empty() {
            header.insert_header(name, offered.join(", "))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_go_upstream_is_known() {
        let dropped = [
            "api-key",
            "authorization",
            "cookie",
            "x-forwarded-for",
            "x-stainless-lang",
            "cf-ray",
            "via",
            "proxy-authorization",
            "traceparent",
            "x-aoai-lb-admin",
            "x-original-url",
        ];
        for name in dropped {
            assert!(is_dropped(name), "{name}");
        }
        let passed = [
            "content-type",
            "openai-beta",
            "x-ms-client-request-id",
            "aoai-evals",
            "user-agent",
            "x-ms-spillover-deployment",
            "accept",
            "api-keys",
        ];
        for name in passed {
            assert!(!is_dropped(name), "{name}");
        }
    }
}
