//! The health checks of every listener, `GET /healthz` and `GET /readyz`. They need no key, accept any host,
//! and are not recorded.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::{HttpTask, ServerSession};

use super::response_writer::write_to_client;
use super::timeouts::LAST_BYTES_TIMEOUT;
use crate::proxy::ActiveConfig;

/// The status of the response to a health check; `None` for any other request.
pub(in crate::proxy) fn health_check_status(header: &RequestHeader, config: &ActiveConfig) -> Option<u16> {
    if !matches!(header.method, Method::GET | Method::HEAD) {
        return None;
    }
    let path = header.raw_path().split(|byte| *byte == b'?').next()?;
    match path {
        b"/healthz" => Some(200),
        // During a handover it stays 200: the successor serves the same listeners, and a probe may reach
        // either process.
        b"/readyz" if config.gateway.process_state.is_stopping.load(Ordering::Acquire) => Some(503),
        b"/readyz" => Some(200),
        _ => None,
    }
}

/// Responds to a health check. `is_draining` says that this process is being replaced or stopped, so the
/// connection is closed and the next check needs a new one. Returns true, which ends the request.
pub(in crate::proxy) async fn respond_to_health_check(
    session: &mut ServerSession,
    status: u16,
    is_draining: bool,
) -> pingora::Result<bool> {
    let body: &'static [u8] = if status == 200 { b"ok\n" } else { b"stopping\n" };
    let mut header = ResponseHeader::build(status, Some(2))?;
    header.insert_header(header::CONTENT_TYPE, "text/plain")?;
    header.insert_header(header::CONTENT_LENGTH, body.len())?;
    if is_draining {
        session.set_keepalive(None);
    }
    let is_head = session.req_header().method == Method::HEAD;
    let mut tasks = vec![HttpTask::Header(Box::new(header), is_head)];
    if !is_head {
        tasks.push(HttpTask::Body(Some(Bytes::from_static(body)), true));
    }
    write_to_client(session, tasks, LAST_BYTES_TIMEOUT, || None).await?;
    Ok(true)
}
