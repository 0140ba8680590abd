//! The responses that the client gets as a whole: a held response of a backend, with corrected retry hints,
//! or an answer or refusal by the balancer. Also the header fields that every response gets.

use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use super::exhaustion;
use super::held_response::HeldResponse;
use super::rate_headers::replace_rate_headers;
use super::relayed_response::RelayedResponse;
use super::response_state::ResponseState;
use crate::azure::response::hints;
use crate::gateway::ModelsAnswer;
use crate::proxy::client::{models_response, refusal_response};
use crate::proxy::context::RequestContext;
use crate::refusal::{Refusal, RefusalReason};

static KEEP_ALIVE_HEADER: HeaderName = HeaderName::from_static("keep-alive");
const REQUEST_ID_HEADER: &str = "x-aoai-lb-request-id";
const BACKEND_HEADER: &str = "x-aoai-lb-backend";
const ATTEMPTS_HEADER: &str = "x-aoai-lb-attempts";

/// The response if no further attempt is made: the most useful held response, or a refusal.
///
/// # Errors
/// If a header field cannot be set.
pub(in crate::proxy) fn prepare_best_response_or_refusal(
    context: &mut RequestContext,
    now: Instant,
) -> pingora::Result<Vec<HttpTask>> {
    if let Some(retry) = &mut context.retry_state {
        retry.on_exhausted(now);
        // After a wait in the queue, an earlier 429 of a backend says nothing any more.
        let best = retry.take_best_response();
        let is_outdated =
            |held: &HeldResponse| held.header.status.as_u16() == 429 && retry.gave_up_queueing().is_some();
        if let Some(held) = best.filter(|held| !retry.must_not_deny() && !is_outdated(held)) {
            return prepare_held_response(context, held, now);
        }
    }
    let refusal = match &context.retry_state {
        Some(retry) => {
            exhaustion::exhaustion_refusal(retry, context.gateway().default_client_retry_after(), now)
        }
        None => Refusal::new(RefusalReason::NoBackend, "no backend is available"),
    };
    prepare_refusal(context, &refusal)
}

/// A refusal by the balancer.
///
/// # Errors
/// If a header field cannot be set.
pub(in crate::proxy) fn prepare_refusal(
    context: &mut RequestContext,
    refusal: &Refusal,
) -> pingora::Result<Vec<HttpTask>> {
    let (mut header, body) = refusal_response::refusal_response(refusal, &context.request.id)?;
    // First, because a refusal gets no field that names a backend.
    context.note_refusal(refusal);
    adjust_common_headers(context, &mut header)?;
    Ok(into_tasks(context, Box::new(header), body))
}

/// The balancer's answer to a request for models.
///
/// # Errors
/// If a header field cannot be set.
pub(in crate::proxy) fn prepare_models_answer(
    context: &mut RequestContext,
    answer: &ModelsAnswer,
) -> pingora::Result<Vec<HttpTask>> {
    let (mut header, body) = models_response::models_response(answer, &context.request.id)?;
    context.overhead_clock.pause(Instant::now());
    context.ending.client_status = Some(header.status.as_u16());
    adjust_common_headers(context, &mut header)?;
    Ok(into_tasks(context, Box::new(header), body))
}

/// A held response, with corrected retry hints.
///
/// # Errors
/// If a header field cannot be set.
pub(super) fn prepare_held_response(
    context: &mut RequestContext,
    held: HeldResponse,
    now: Instant,
) -> pingora::Result<Vec<HttpTask>> {
    let body = held.body_received_so_far();
    let HeldResponse { mut header, sent_by, .. } = held;
    if let Some(retry) = &mut context.retry_state {
        retry.set_answering_target(sent_by);
    }
    correct_retry_hints(context, &mut header, now)?;
    // Its length is known, now that it is complete. The response to a HEAD keeps the length that it has,
    // which is that of the response to a GET.
    header.remove_header(&http::header::TRANSFER_ENCODING);
    if context.request.method != Method::HEAD {
        header.insert_header(http::header::CONTENT_LENGTH, body.len())?;
    }
    context.ending.client_status = Some(header.status.as_u16());
    context.response_state = ResponseState::Relayed(Box::new(RelayedResponse::for_held_response(&header)));
    adjust_common_headers(context, &mut header)?;
    Ok(into_tasks(context, header, body))
}

/// Replaces the retry hints of a backend's error response. A 429 tells the client when the first backend
/// of the pool becomes available, not when this one does. No wait is longer than
/// [`refusal_response::MAX_RETRY_AFTER_MS`].
///
/// # Errors
/// If a header field cannot be set.
pub(super) fn correct_retry_hints(
    context: &RequestContext,
    header: &mut ResponseHeader,
    now: Instant,
) -> pingora::Result<()> {
    let default_cooldown = context.gateway().default_client_retry_after();
    let own_hint = || hints::cooldown_hint(&header.headers, SystemTime::now()).unwrap_or(default_cooldown);
    let wait = match header.status.as_u16() {
        429 => {
            let retry = context.retry_state.as_ref();
            // If nothing cools down, the 429 was about this request alone.
            let soonest = retry.and_then(|retry| exhaustion::time_until_available(retry, now));
            soonest.unwrap_or_else(own_hint)
        }
        408 | 500.. if hints::has_retry_after(&header.headers) => own_hint(),
        _ => return Ok(()),
    };
    header.remove_header("x-ms-retry-after-ms");
    refusal_response::set_retry_after(header, wait.as_millis())
}

/// Sets the header fields that every response gets, and removes those that no response may have.
///
/// # Errors
/// If a header field cannot be set.
pub(in crate::proxy) fn adjust_common_headers(
    context: &RequestContext,
    header: &mut ResponseHeader,
) -> pingora::Result<()> {
    // A backend's cookies are for its own host, and `keep-alive` is about its connection.
    for unwanted in [&http::header::SET_COOKIE, &KEEP_ALIVE_HEADER] {
        if header.headers.contains_key(unwanted) {
            header.remove_header(unwanted);
        }
    }
    header.insert_header(REQUEST_ID_HEADER, &*context.request.id)?;
    replace_rate_headers(context, header)?;
    let Some(retry) = &context.retry_state else {
        return header.insert_header(ATTEMPTS_HEADER, HeaderValue::from(0));
    };
    if context.ending.refusal_reason.is_none()
        && let Some(backend) = retry
            .current_or_last_target()
            .and_then(|target| context.gateway().backends.get(target.backend_index))
    {
        header.insert_header(BACKEND_HEADER, backend.name_header_value.clone())?;
    }
    header.insert_header(ATTEMPTS_HEADER, HeaderValue::from(retry.attempt_count()))
}

/// The parts of a complete response. Counts its body as sent.
fn into_tasks(context: &mut RequestContext, header: Box<ResponseHeader>, body: Bytes) -> Vec<HttpTask> {
    if body.is_empty() || context.request.method == Method::HEAD {
        return vec![HttpTask::Header(header, true)];
    }
    context.ending.note_response_body_bytes(body.len(), context.request.received_instant);
    vec![HttpTask::Header(header, false), HttpTask::Body(Some(body), true)]
}
