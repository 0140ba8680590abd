//! The response that the client gets whole: one that was held back, with true retry hints, or a
//! refusal of the balancer. Also the header fields that every response carries.

use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use super::exhaustion;
use super::held_response::HeldResponse;
use super::relayed_response::RelayedResponse;
use super::response_state::ResponseState;
use crate::azure::response::hints;
use crate::proxy::client::refusal_response;
use crate::proxy::context::RequestContext;
use crate::refusal::{Refusal, RefusalReason};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const REQUEST_ID: &str = "x-aoai-lb-request-id";
const BACKEND: &str = "x-aoai-lb-backend";
const ATTEMPTS: &str = "x-aoai-lb-attempts";

/// The response when no further attempt is made: the most useful one that was held back, or a refusal.
///
/// # Errors
/// Pingora's, for a header that cannot be set.
pub(in crate::proxy) fn conclude(
    context: &mut RequestContext,
    now: Instant,
) -> pingora::Result<Vec<HttpTask>> {
    if let Some(held) = context.retry.as_mut().and_then(|retry| retry.take_best_response()) {
        return relay_held(context, held, now);
    }
    let refusal = match &context.retry {
        Some(retry) => exhaustion::refusal(retry, context.gateway().default_cooldown(), now),
        None => Refusal::new(RefusalReason::NoBackend, "no backend is available"),
    };
    refuse(context, &refusal)
}

/// A refusal of the balancer.
///
/// # Errors
/// Pingora's, for a header that cannot be set.
pub(in crate::proxy) fn refuse(
    context: &mut RequestContext,
    refusal: &Refusal,
) -> pingora::Result<Vec<HttpTask>> {
    let (mut header, body) = refusal_response::refusal_response(refusal, &context.request.id)?;
    context.note_refusal(refusal);
    set_common_headers(context, &mut header)?;
    Ok(into_tasks(context, Box::new(header), body))
}

/// A response that was held back, its retry hints corrected.
///
/// # Errors
/// Pingora's, for a header that cannot be set.
pub(super) fn relay_held(
    context: &mut RequestContext,
    held: HeldResponse,
    now: Instant,
) -> pingora::Result<Vec<HttpTask>> {
    let body = held.whole_body();
    let HeldResponse { mut header, sent_by, .. } = held;
    if let Some(retry) = &mut context.retry {
        retry.set_last_target(sent_by);
    }
    correct_retry_hints(context, &mut header, now)?;
    header.remove_header(&http::header::TRANSFER_ENCODING);
    if context.request.method != Method::HEAD {
        header.insert_header(http::header::CONTENT_LENGTH, body.len())?;
    }
    context.ending.status = Some(header.status.as_u16());
    context.response = ResponseState::Relayed(Box::new(RelayedResponse::already_sent(&header)));
    set_common_headers(context, &mut header)?;
    Ok(into_tasks(context, header, body))
}

/// Tells the client when some backend can be tried again, not when this one can; and never more than a
/// minute, since there are SDKs that sleep for a day if told to.
///
/// # Errors
/// Pingora's, for a header that cannot be set.
pub(super) fn correct_retry_hints(
    context: &RequestContext,
    header: &mut ResponseHeader,
    now: Instant,
) -> pingora::Result<()> {
    let default_cooldown = context.gateway().default_cooldown();
    let wait = match header.status.as_u16() {
        429 => match &context.retry {
            Some(retry) => exhaustion::soonest_retry(retry, default_cooldown, now),
            None => default_cooldown,
        },
        408 | 500.. if hints::has_retry_after(&header.headers) => {
            hints::cooldown_hint(&header.headers, SystemTime::now()).unwrap_or(default_cooldown)
        }
        _ => return Ok(()),
    };
    header.remove_header("x-ms-retry-after-ms");
    refusal_response::set_retry_after(header, wait.as_millis())
}

/// Sets what every response carries, and removes what none does.
///
/// # Errors
/// Pingora's, for a header that cannot be set.
pub(super) fn set_common_headers(
    context: &RequestContext,
    header: &mut ResponseHeader,
) -> pingora::Result<()> {
    for unwanted in [&http::header::SET_COOKIE, &KEEP_ALIVE] {
        if header.headers.contains_key(unwanted) {
            header.remove_header(unwanted);
        }
    }
    header.insert_header(REQUEST_ID, &*context.request.id)?;
    let Some(retry) = &context.retry else { return Ok(()) };
    if context.ending.refusal.is_none()
        && let Some(backend) =
            retry.last_target().and_then(|target| context.gateway().backends.get(target.backend))
    {
        header.insert_header(BACKEND, backend.name_header.clone())?;
    }
    header.insert_header(ATTEMPTS, HeaderValue::from(retry.attempt_count()))
}

fn into_tasks(context: &mut RequestContext, header: Box<ResponseHeader>, body: Bytes) -> Vec<HttpTask> {
    if body.is_empty() || context.request.method == Method::HEAD {
        return vec![HttpTask::Header(header, true)];
    }
    context.ending.note_body_bytes(body.len(), context.request.arrival);
    vec![HttpTask::Header(header, false), HttpTask::Body(Some(body), true)]
}
