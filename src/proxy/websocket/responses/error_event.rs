//! Errors as events of a Responses socket: `{"type":"error","status":N,"error":{…},"retry_after_ms":N}`.

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::ResponseHeader;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::azure::request::socket_message::with_lane;
use crate::proxy::client::refusal_response::{MAX_RETRY_AFTER_MS, refusal_body};
use crate::refusal::{Refusal, RefusalReason};

#[derive(Serialize)]
struct ErrorEvent<'a> {
    r#type: &'static str,
    status: u16,
    error: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// The fields of a JSON error that are needed to make an event of it.
#[derive(serde::Deserialize)]
struct ErrorBody<'a> {
    r#type: Option<&'a str>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The event for a refusal.
pub(super) fn refusal_event(refusal: &Refusal, lane: Option<&str>) -> Bytes {
    let wait = refusal.retry_after.map(|wait| wait.as_millis().clamp(1, MAX_RETRY_AFTER_MS));
    let retry_after_ms = wait.and_then(|millis| u64::try_from(millis).ok());
    error_event(refusal.reason.status(), &refusal_body(refusal), retry_after_ms, lane)
}

/// The event for an error response. A backend's own event is unchanged unless its retry hint was replaced.
pub(super) fn response_event(header: &ResponseHeader, body: &Bytes, lane: Option<&str>) -> Bytes {
    let retry_after_ms = retry_after_ms(&header.headers);
    let is_event =
        || serde_json::from_slice::<ErrorBody<'_>>(body).is_ok_and(|error| error.r#type == Some("error"));
    if retry_after_ms.is_none() && is_event() {
        return lane.map_or_else(|| body.clone(), |lane| with_lane(body, lane));
    }
    error_event(header.status.as_u16(), body, retry_after_ms, lane)
}

/// The refusal that precedes the close of a socket between two turns. Azure sends it after an hour, so clients know it
/// and reconnect.
pub(super) fn connection_limit_refusal() -> Refusal {
    let message = "This WebSocket is about to be closed. Create a new one to continue, with the whole input if \
                   its last response is not stored.";
    Refusal::new(RefusalReason::SocketLimitReached, message)
}

fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    headers.get("retry-after-ms")?.to_str().ok()?.parse().ok()
}

/// The event for an error with this body: that of an error response, or an event.
fn error_event(status: u16, body: &[u8], retry_after_ms: Option<u64>, lane: Option<&str>) -> Bytes {
    // Clients cannot parse other bodies, such as the HTML page of a proxy.
    let message = format!("the backend answered with status {status}");
    let replacement = refusal_body(&Refusal::new(RefusalReason::UpstreamFailed, message));
    let Some(error) = error_object(body).or_else(|| error_object(&replacement)) else {
        return replacement;
    };
    let event = ErrorEvent { r#type: "error", status, error, retry_after_ms };
    let event = Bytes::from(serde_json::to_vec(&event).unwrap_or_default());
    match lane {
        Some(lane) => with_lane(&event, lane),
        None => event,
    }
}

/// The `error` of a body.
fn error_object(body: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice::<ErrorBody<'_>>(body).ok()?.error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_refusal_becomes_an_event() {
        let refusal =
            Refusal::new(RefusalReason::AllThrottled, "wait").with_retry_after(Duration::from_secs(2));
        assert_eq!(
            refusal_event(&refusal, Some("a")),
            r#"{"stream_id":"a","type":"error","status":429,"error":{"message":"wait","type":"rate_limit_error","param":null,"code":"all_throttled"},"retry_after_ms":2000}"#
        );
    }

    #[test]
    fn a_response_becomes_an_event_and_an_event_stays_as_it_is() {
        let event = |status: u16, retry_after_ms: Option<&str>, body: &'static str| {
            let mut header = ResponseHeader::build(status, None).unwrap();
            if let Some(wait) = retry_after_ms {
                header.insert_header("retry-after-ms", wait).unwrap();
            }
            String::from_utf8(response_event(&header, &Bytes::from_static(body.as_bytes()), None).to_vec())
                .unwrap()
        };
        let own = r#"{"type": "error", "status": 400, "error": {"code": "x"}, "event_id": "e"}"#;
        assert_eq!(event(400, None, own), own);
        assert_eq!(
            event(429, Some("5"), own),
            r#"{"type":"error","status":429,"error":{"code": "x"},"retry_after_ms":5}"#
        );
        assert_eq!(
            event(404, None, r#"{"error":{"code":"DeploymentNotFound"}}"#),
            r#"{"type":"error","status":404,"error":{"code":"DeploymentNotFound"}}"#
        );
        for body in ["", "<html>", "{}", r#"{"error":null}"#] {
            let event: serde_json::Value = serde_json::from_str(&event(502, None, body)).unwrap();
            assert_eq!((&event["type"], &event["status"]), (&"error".into(), &502.into()), "{body}");
            assert_eq!(event["error"]["code"], "upstream_failed", "{body}");
        }
    }
}
