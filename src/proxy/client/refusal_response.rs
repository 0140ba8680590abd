//! Answers of our own: a refusal in Azure's error shape.

use bytes::Bytes;
use pingora::http::ResponseHeader;
use serde::Serialize;

use crate::refusal::Refusal;

/// `retry-after` and `retry-after-ms` never tell a client more: longer ones make an SDK
/// sleep for a day or give up.
pub(in crate::proxy) const LONGEST_HINT_MS: u128 = 60_000;

#[derive(Serialize)]
struct Envelope<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<()>,
    code: &'static str,
}

/// The body of a refusal: `{"error":{"message","type","param":null,"code"}}`.
pub(crate) fn body(refusal: &Refusal) -> Bytes {
    let error = Detail {
        message: &refusal.message,
        r#type: refusal.reason.kind(),
        param: None,
        code: refusal.reason.code(),
    };
    Bytes::from(serde_json::to_vec(&Envelope { error }).unwrap_or_default())
}

/// Head and body of a refusal.
pub(in crate::proxy) fn refusal(
    refusal: &Refusal,
    request_id: &str,
) -> pingora::Result<(ResponseHeader, Bytes)> {
    let body = body(refusal);
    let mut header = ResponseHeader::build(refusal.reason.status(), Some(8))?;
    header.insert_header("content-type", "application/json")?;
    header.insert_header("content-length", body.len())?;
    header.insert_header("x-request-id", request_id)?;
    if let Some(wait) = refusal.retry_after {
        hint(&mut header, wait.as_millis())?;
    }
    Ok((header, body))
}

/// Tells the client when to come back, in both headers the SDKs read.
pub(in crate::proxy) fn hint(header: &mut ResponseHeader, millis: u128) -> pingora::Result<()> {
    let millis = millis.clamp(1, LONGEST_HINT_MS);
    header.insert_header("retry-after-ms", millis.to_string())?;
    header.insert_header("retry-after", millis.div_ceil(1000).to_string())
}

/// A refusal before there is a request: bytes for a connection that is then closed.
pub(in crate::proxy) fn raw(refusal: &Refusal, request_id: &str) -> Vec<u8> {
    let body = body(refusal);
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
