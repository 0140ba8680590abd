//! Health and readiness on every listener: no key, no record, any host.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;

use crate::proxy::Serving;

/// Whether this is a health probe, and if so the status it is answered with.
pub(in crate::proxy) fn probe(header: &RequestHeader, serving: &Serving) -> Option<u16> {
    if !matches!(header.method, Method::GET | Method::HEAD) {
        return None;
    }
    let path = header.raw_path().split(|byte| *byte == b'?').next()?;
    match path {
        b"/healthz" => Some(200),
        // What another process has taken over is as ready as ever.
        b"/readyz" if serving.gateway.process.stopping.load(Ordering::Acquire) => Some(503),
        b"/readyz" => Some(200),
        _ => None,
    }
}

/// Answers a probe; `leaving` says that the next one is for another process.
pub(in crate::proxy) async fn answer(
    session: &mut ServerSession,
    status: u16,
    leaving: bool,
) -> pingora::Result<bool> {
    let body: &'static [u8] = if status == 200 { b"ok\n" } else { b"stopping\n" };
    let mut header = ResponseHeader::build(status, Some(2))?;
    header.insert_header(header::CONTENT_TYPE, "text/plain")?;
    header.insert_header(header::CONTENT_LENGTH, body.len())?;
    if leaving {
        session.set_keepalive(None);
    }
    let head_only = session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(header)).await?;
    if !head_only {
        session.write_response_body(Bytes::from_static(body), true).await?;
    }
    Ok(true)
}
