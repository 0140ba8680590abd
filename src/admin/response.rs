//! Builds the responses of the admin API.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use crate::proxy::client::refusal_response;
use crate::refusal::{Refusal, RefusalReason};

/// A response with its whole body.
pub(super) type FullResponse = Response<Vec<u8>>;

/// A response of any media type. No response of the admin API may be cached.
pub(super) fn with_body(status: u16, content_type: &'static str, body: Vec<u8>) -> FullResponse {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    let length = HeaderValue::from(response.body().len());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A JSON document that is serialized already.
pub(super) fn with_json(status: u16, body: Vec<u8>) -> FullResponse {
    with_body(status, "application/json", body)
}

/// A line of plain text.
pub(super) fn with_text(status: u16, body: &str) -> FullResponse {
    with_body(status, "text/plain", body.as_bytes().to_vec())
}

/// An error in the format of Azure OpenAI.
pub(super) fn with_refusal(status: u16, refusal: &Refusal) -> FullResponse {
    let mut response = with_json(status, refusal_response::refusal_body(refusal).to_vec());
    if let Some(wait) = refusal.retry_after {
        let seconds = wait.as_millis().div_ceil(1000);
        let value = HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX));
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// 404 for a path that does not exist.
pub(super) fn not_found() -> FullResponse {
    let message = "the admin API has GET /, /healthz, /readyz, /metrics, /api/status, /api/events, \
                   /api/requests, and POST /api/reload, /api/backends/NAME/drain, /api/backends/NAME/undrain";
    with_refusal(404, &Refusal::new(RefusalReason::PathNotAllowed, message))
}

/// The parts of a response that are sent, without its body for HEAD.
pub(super) fn to_tasks(response: FullResponse, is_head: bool) -> Vec<HttpTask> {
    let (parts, body) = response.into_parts();
    let header = Box::new(ResponseHeader::from(parts));
    let mut tasks = vec![HttpTask::Header(header, is_head || body.is_empty())];
    if !is_head && !body.is_empty() {
        tasks.push(HttpTask::Body(Some(Bytes::from(body)), true));
    }
    tasks
}
