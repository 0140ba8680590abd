//! Reads from the events of a Responses socket which response begins, which HTTP status an error event stands for, and
//! whether the socket has reached its time limit.

use std::borrow::Cow;

use super::error_body::ErrorBody;
use crate::azure::json;
use crate::azure::json_keys::KeySet;

/// The most header fields that are read from an event.
const MAX_HEADERS: usize = 32;

/// The id of the response that this event begins; `None` for every other event.
pub fn made_response_id(event: &[u8]) -> Option<Cow<'_, str>> {
    // Nearly no event begins a response, and this search rules the others out without parsing.
    memchr::memmem::find(event, b"response.created")?;
    let fields = json::parse_fields(event, &const { KeySet::new(["type", "response"]) }).ok()?;
    let [event_type, response] = fields.values;
    if json::decode_non_empty_string(event_type).as_deref() != Some("response.created") {
        return None;
    }
    let [id] = json::find_fields(response?, &["id"]);
    json::decode_non_empty_string(id)
}

/// The status of an error event that stands for an error response; `None` for every other event.
pub fn error_event_status(event: &[u8]) -> Option<u16> {
    memchr::memmem::find(event, b"error")?;
    let fields = json::parse_fields(event, &const { KeySet::new(["type", "status"]) }).ok()?;
    let [event_type, status] = fields.values;
    let is_error = json::decode_non_empty_string(event_type).as_deref() == Some("error");
    status.filter(|_| is_error)?.parse().ok().filter(|status| (400..600).contains(status))
}

/// The header fields of the response that an error event stands for, by names and values: `headers` of the event or of
/// its error (as in the types of openai-python), and its hints when to try again.
pub fn error_event_headers(event: &[u8]) -> Vec<(String, String)> {
    let Ok(fields) = json::parse_fields(event, &const { KeySet::new(["headers", "error"]) }) else {
        return Vec::new();
    };
    let [headers, error] = fields.values;
    let [headers_of_error] = error.map_or([None], |error| json::find_fields(error, &["headers"]));
    let mut result = Vec::new();
    for headers in [headers, headers_of_error].into_iter().flatten() {
        json::JsonCursor::new(headers).walk_object(|name, cursor| {
            if let Some(value) = cursor.next_value().and_then(json::decode_string_or_number)
                && result.len() < MAX_HEADERS
            {
                result.push((name.to_ascii_lowercase(), value.into_owned()));
            }
        });
    }
    for (source, key, name) in [
        (Some(event_text(event)), "retry_after_ms", "retry-after-ms"),
        (error, "retry_after_ms", "retry-after-ms"),
        (error, "retry_after", "retry-after"),
    ] {
        let [value] = source.map_or([None], |source| json::find_fields(source, &[key]));
        if let Some(value) = value.and_then(json::decode_string_or_number)
            && !result.iter().any(|(given, _)| given == name)
        {
            result.push((name.to_owned(), value.into_owned()));
        }
    }
    result
}

fn event_text(event: &[u8]) -> &str {
    simdutf8::basic::from_utf8(event).unwrap_or_default()
}

/// Whether an error event says that the socket has reached its time limit of 60 minutes.
pub fn is_socket_limit(event: &[u8]) -> bool {
    ErrorBody::parse(event).code.as_deref() == Some("websocket_connection_limit_reached")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_say_which_response_they_begin() {
        let id = |event: &'static str| made_response_id(event.as_bytes()).map(Cow::into_owned);
        assert_eq!(
            id(r#"{"type":"response.created","response":{"id":"resp_1","status":"in_progress"}}"#).as_deref(),
            Some("resp_1")
        );
        for event in [
            r#"{"type":"response.in_progress","response":{"id":"resp_1"}}"#,
            r#"{"type":"response.output_text.delta","delta":"response.created"}"#,
            r#"{"type":"response.created"}"#,
            "response.created",
        ] {
            assert_eq!(id(event), None, "{event}");
        }
    }

    #[test]
    fn error_events_have_a_status() {
        for (event, status) in [
            (r#"{"type":"error","status":429,"error":{}}"#, Some(429)),
            (r#"{"status":400,"type":"error"}"#, Some(400)),
            (r#"{"type":"error","error":{}}"#, None),
            (r#"{"type":"error","status":200}"#, None),
            (r#"{"type":"error","status":"429"}"#, None),
            (r#"{"type":"response.failed","status":429,"error":{}}"#, None),
            ("error", None),
        ] {
            assert_eq!(error_event_status(event.as_bytes()), status, "{event}");
        }
        let event = br#"{"type":"error","status":429,"error":{"retry_after":2},"retry_after_ms":1500,"headers":{"Retry-After":"3","x":null}}"#;
        let headers =
            [("retry-after", "3"), ("retry-after-ms", "1500")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(error_event_headers(event), headers);
        let event =
            br#"{"type":"error","status":429,"error":{"code":"x","headers":{"retry-after-ms":"250"}}}"#;
        assert_eq!(error_event_headers(event), [("retry-after-ms".to_owned(), "250".to_owned())]);
        assert!(is_socket_limit(
            br#"{"type":"error","error":{"code":"websocket_connection_limit_reached"}}"#
        ));
        assert!(!is_socket_limit(br#"{"type":"error","error":{"code":"other"}}"#));
    }
}
