//! `GET /healthz` and `GET /readyz` on every listener: any host, no key, no record.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;

use crate::proxy::ActiveConfig;

/// The status for a health check; `None` if the request is none.
pub(in crate::proxy) fn health_check_status(header: &RequestHeader, config: &ActiveConfig) -> Option<u16> {
    if !matches!(header.method, Method::GET | Method::HEAD) {
        return None;
    }
    let path = header.raw_path().split(|byte| *byte == b'?').next()?;
    match path {
        b"/healthz" => Some(200),
        // After a handover the successor is ready, so this stays 200 for the sockets that they share.
        b"/readyz" if config.gateway.process.is_stopping.load(Ordering::Acquire) => Some(503),
        b"/readyz" => Some(200),
        _ => None,
    }
}

/// Answers a health check. `closes` says that this process is being replaced or stopped, so that the
/// next one has to come on another connection.
pub(in crate::proxy) async fn respond_to_health_check(
    session: &mut ServerSession,
    status: u16,
    closes: bool,
) -> pingora::Result<bool> {
    let body: &'static [u8] = if status == 200 { b"ok\n" } else { b"stopping\n" };
    let mut header = ResponseHeader::build(status, Some(2))?;
    header.insert_header(header::CONTENT_TYPE, "text/plain")?;
    header.insert_header(header::CONTENT_LENGTH, body.len())?;
    if closes {
        session.set_keepalive(None);
    }
    let is_head = session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(header)).await?;
    if !is_head {
        session.write_response_body(Bytes::from_static(body), true).await?;
    }
    Ok(true)
}
