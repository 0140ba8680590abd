//! The request head as a backend gets it: with no credential but the backend's own, without traces of the
//! proxies in between, and with as few fields as possible, because Azure OpenAI answers 431 to more than
//! ten custom ones.

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version};
use pingora::http::RequestHeader;
use pingora::{ErrorType, OrErr};
use smallvec::SmallVec;

use crate::azure::request::multipart;
use crate::azure::request::subprotocol::offered_subprotocols;
use crate::config::RequestsConfig;
use crate::gateway::Backend;

/// Whether a header field is never forwarded: credentials of the client, its address and the proxies'
/// fields, tracing, hop-by-hop fields, and fields that the balancer sets itself.
fn is_stripped(name: &str) -> bool {
    let is_listed = matches!(
        name,
        "cookie"
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
    is_listed
        || is_credential_name(name)
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
                    // App Service adds the tokens of a signed-in user.
                    "x-ms-token-",
                    "x-ms-client-principal",
                ];
                prefixes.iter().any(|prefix| name.starts_with(prefix))
            }
            _ => false,
        }
}

/// Whether this is the name of a header field with a credential, in any spelling: `api-key`, `x-api-key`,
/// `APIKEY`, `Ocp-Apim-Subscription-Key`, `x-functions-key`, `Authorization`, `x-auth-token`, `Helicone-Auth`,
/// `x-client-secret`. Each of them is the client's, for the balancer or for a proxy before it.
fn is_credential_name(name: &str) -> bool {
    const ENDINGS: [&str; 16] = [
        "apikey",
        "subscriptionkey",
        "functionskey",
        "accesskey",
        "masterkey",
        "authorization",
        "authtoken",
        "accesstoken",
        "apitoken",
        "bearertoken",
        "sessiontoken",
        "securitytoken",
        "idtoken",
        "secret",
        "password",
        "auth",
    ];
    // All of them end like this, and few other names do.
    const LAST_LETTERS: [&str; 6] = ["key", "token", "authorization", "secret", "password", "auth"];
    let name = name.strip_suffix('s').unwrap_or(name);
    if !LAST_LETTERS.iter().any(|letters| name.ends_with(letters)) {
        return false;
    }
    let letters: SmallVec<[u8; 64]> = name.bytes().filter(|byte| *byte != b'-' && *byte != b'_').collect();
    ENDINGS.iter().any(|ending| letters.ends_with(ending.as_bytes()))
}

/// How the request's body is framed towards the backend.
pub(in crate::proxy) enum BodyFraming {
    /// No body.
    None,
    /// `Content-Length`, in bytes.
    Length(u64),
    /// For an upload of unknown length.
    Chunked,
}

/// Those fields of the client's request head that may be forwarded to any backend. What differs from
/// backend to backend, such as the target, is added by [`rewrite_for_backend`].
///
/// # Errors
/// If a header field cannot be set.
pub(in crate::proxy) fn forwardable_head(
    header: &RequestHeader,
    is_upgrade: bool,
) -> pingora::Result<RequestHeader> {
    let mut parts = Request::new(()).into_parts().0;
    parts.method = header.method.clone();
    parts.version = header.version;
    // For the fields that are set later as well.
    parts.headers.reserve(12);
    // `Connection` names the fields that are meant for the next hop only (RFC 9110, section 7.6.1).
    let nominated: SmallVec<[&[u8]; 4]> = header
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
                || nominated.iter().any(|field| field.eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        // Without an upgrade they mean nothing, and one may contain a client key.
        let is_websocket_field = || !is_upgrade && name.as_str().starts_with("sec-websocket-");
        if !is_stripped(name.as_str()) && !is_for_one_hop() && !is_websocket_field() {
            parts.headers.append(name.clone(), value.clone());
        }
    }
    let mut forwarded = RequestHeader::from(parts);
    if is_upgrade {
        strip_subprotocol_key(&mut forwarded)?;
        // Usage is read from the frames as they pass, which is not possible if they are compressed.
        forwarded.remove_header(&SEC_WEBSOCKET_EXTENSIONS);
        forwarded.insert_header("Connection", "Upgrade")?;
        forwarded.insert_header("Upgrade", "websocket")?;
    }
    Ok(forwarded)
}

/// Completes a [`forwardable_head`] for one backend, except for its credential.
///
/// # Errors
/// If a header field cannot be set. The configured values were checked with the configuration.
pub(in crate::proxy) fn rewrite_for_backend(
    header: &mut RequestHeader,
    backend: &Backend,
    requests: &RequestsConfig,
    path: String,
    framing: &BodyFraming,
) -> pingora::Result<()> {
    header.set_uri(upstream_uri(path)?);
    // Before the fields that follow, which the configuration cannot change.
    apply_configured_headers(header, requests)?;
    set_host_and_accept_encoding(header, backend)?;
    match framing {
        BodyFraming::None => {}
        BodyFraming::Length(length) => header.insert_header("Content-Length", HeaderValue::from(*length))?,
        // HTTP/2 has its own framing and forbids this field (RFC 9113, section 8.2.2).
        BodyFraming::Chunked if header.version == Version::HTTP_2 => {}
        BodyFraming::Chunked => {
            header.insert_header("Transfer-Encoding", HeaderValue::from_static("chunked"))?;
        }
    }
    Ok(())
}

fn upstream_uri(path: String) -> pingora::Result<Uri> {
    let path = PathAndQuery::from_maybe_shared(Bytes::from(path));
    path.map(Uri::from).or_err(ErrorType::InvalidHTTPHeader, "the request target for the backend")
}

/// The header fields that this backend gets with a minimal request, one line each. Secrets are not shown.
pub fn preview_header_lines(
    method: &Method,
    backend: &Backend,
    requests: &RequestsConfig,
    path: &str,
) -> Vec<String> {
    let credential_field = backend.credential.current_auth_header().map_or(AUTHORIZATION, |(name, _)| name);
    let head = preview_head(method, backend, requests, path);
    let Ok(mut head) = head else { return Vec::new() };
    head.remove_header(&credential_field);
    // A value of `requests.set_headers` may be a secret, also if it is written in the file.
    let is_configured = |name: &HeaderName| requests.set_headers.iter().any(|(set, _)| set == name);
    let shown = |name: &HeaderName, value: &HeaderValue| match value.to_str() {
        Ok(text) if name == CONTENT_TYPE || !is_configured(name) => text.to_owned(),
        _ => "(from requests.set_headers)".to_owned(),
    };
    let lines = head.headers.iter().map(|(name, value)| format!("{name}: {}", shown(name, value)));
    lines.chain([format!("{credential_field}: (the backend's own)")]).collect()
}

fn preview_head(
    method: &Method,
    backend: &Backend,
    requests: &RequestsConfig,
    path: &str,
) -> pingora::Result<RequestHeader> {
    let mut head = RequestHeader::build(method.clone(), b"/", None)?;
    if *method == Method::POST {
        head.insert_header(CONTENT_TYPE, "application/json")?;
    }
    let mut head = forwardable_head(&head, false)?;
    rewrite_for_backend(&mut head, backend, requests, path.to_owned(), &BodyFraming::None)?;
    Ok(head)
}

/// Sets `Host` and `Accept-Encoding`.
///
/// # Errors
/// As [`rewrite_for_backend`].
pub(super) fn set_host_and_accept_encoding(
    header: &mut RequestHeader,
    backend: &Backend,
) -> pingora::Result<()> {
    // Azure shares addresses and certificates between resources, so this must be the backend's own host.
    header.insert_header("Host", backend.host_header_value.clone())?;
    // Usage is read from the response as it is relayed, which is not possible if it is compressed.
    header.insert_header("Accept-Encoding", HeaderValue::from_static("identity"))
}

/// Applies `requests.remove_headers` and `requests.set_headers`. A multipart form keeps its content type,
/// which has its boundary.
fn apply_configured_headers(header: &mut RequestHeader, requests: &RequestsConfig) -> pingora::Result<()> {
    for name in &requests.remove_headers {
        header.remove_header(name);
    }
    for (name, value) in &requests.set_headers {
        if name == http::header::CONTENT_TYPE && is_multipart(header) {
            continue;
        }
        header.insert_header(name.clone(), value.clone())?;
    }
    Ok(())
}

fn is_multipart(header: &RequestHeader) -> bool {
    let value = header.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(multipart::is_multipart_form)
        || value.is_some_and(|value| value.starts_with("multipart/"))
}

/// Removes the client's key from the offered WebSocket subprotocols.
fn strip_subprotocol_key(header: &mut RequestHeader) -> pingora::Result<()> {
    let offered = offered_subprotocols(&header.headers).collect::<Vec<_>>().join(", ");
    header.remove_header(&SEC_WEBSOCKET_PROTOCOL);
    if !offered.is_empty() {
        header.insert_header(SEC_WEBSOCKET_PROTOCOL, offered)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_addressing_and_tracing_are_not_forwarded() {
        let stripped = [
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
            "x-api-key",
            "apikey",
            "x-apikey",
            "api_key",
            "openai-api-key",
            "x-goog-api-key",
            "ocp-apim-subscription-key",
            "subscription-key",
            "x-functions-key",
            "x-auth-token",
            "x-access-token",
            "x-amz-security-token",
            "x-authorization",
            "x-api-token",
            "x-session-token",
            "x-master-key",
            "helicone-auth",
            "x-client-secret",
            "x-secrets",
            "x-password",
            "x-ms-token-aad-access-token",
            "x-ms-client-principal-id",
        ];
        for name in stripped {
            assert!(is_stripped(name), "{name}");
        }
        let forwarded = [
            "content-type",
            "openai-beta",
            "x-ms-client-request-id",
            "aoai-evals",
            "user-agent",
            "x-ms-spillover-deployment",
            "accept",
            "idempotency-key",
            "x-prompt-cache-key",
            "sec-websocket-key",
            "x-max-tokens",
            "openai-organization",
        ];
        for name in forwarded {
            assert!(!is_stripped(name), "{name}");
        }
    }
}
