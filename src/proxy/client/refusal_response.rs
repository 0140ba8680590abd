//! Refusals as HTTP responses, in the shape of Azure's errors.

use bytes::Bytes;
use pingora::http::ResponseHeader;
use serde::Serialize;

use crate::refusal::{Refusal, RefusalReason};

/// Longest wait in `retry-after` and `retry-after-ms`. Azure may send 86400 s; depending on its version,
/// OpenAI's SDK then sleeps for a day or does not retry at all.
pub(in crate::proxy) const MAX_RETRY_AFTER_MS: u128 = 60_000;

#[derive(Serialize)]
struct ErrorEnvelope<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

/// The body of a refusal: `{"error":{"message","type","param":null,"code"}}`.
pub(crate) fn refusal_body(refusal: &Refusal) -> Bytes {
    let error = ErrorDetail {
        message: &refusal.message,
        r#type: refusal.reason.error_type(),
        param: refusal.reason.param(),
        code: refusal.reason.client_code(),
    };
    Bytes::from(serde_json::to_vec(&ErrorEnvelope { error }).unwrap_or_default())
}

/// Head and body of a refusal.
pub(in crate::proxy) fn refusal_response(
    refusal: &Refusal,
    request_id: &str,
) -> pingora::Result<(ResponseHeader, Bytes)> {
    let body = refusal_body(refusal);
    let mut header = ResponseHeader::build(refusal.reason.status(), Some(8))?;
    header.insert_header("content-type", "application/json")?;
    header.insert_header("content-length", body.len())?;
    header.insert_header("x-request-id", request_id)?;
    if refusal.reason == RefusalReason::UnsupportedWebSocketVersion {
        // RFC 6455, section 4.4, and RFC 9110, section 15.5.22.
        header.insert_header("sec-websocket-version", "13")?;
        header.insert_header("upgrade", "websocket")?;
    }
    match refusal.retry_after {
        // To the end of the day or month.
        Some(wait) if refusal.reason == RefusalReason::InsufficientQuota => {
            header.insert_header("retry-after", (wait.as_secs() + 1).to_string())?;
        }
        Some(wait) => set_retry_after(&mut header, wait.as_millis())?,
        None => {}
    }
    if refusal.forbids_retry() {
        // OpenAI's SDKs obey it.
        header.insert_header("x-should-retry", "false")?;
    }
    Ok((header, body))
}

/// Sets `retry-after-ms` and `retry-after`, rounded up to seconds. OpenAI's SDKs prefer the former.
pub(in crate::proxy) fn set_retry_after(header: &mut ResponseHeader, millis: u128) -> pingora::Result<()> {
    let millis = millis.clamp(1, MAX_RETRY_AFTER_MS);
    header.insert_header("retry-after-ms", millis.to_string())?;
    header.insert_header("retry-after", millis.div_ceil(1000).to_string())
}

/// A refusal as the bytes of an HTTP/1.1 response, for a connection on which no request could be parsed and
/// which is closed afterwards.
pub(super) fn raw_refusal(refusal: &Refusal, request_id: &str) -> Vec<u8> {
    let body = refusal_body(refusal);
    let status = refusal.reason.status();
    let phrase = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let head = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         x-request-id: {request_id}\r\nx-aoai-lb-request-id: {request_id}\r\nconnection: close\r\n\r\n",
        phrase.unwrap_or(""),
        body.len(),
    );
    [head.as_bytes(), &body].concat()
}
