//! Classifies the first events of a stream. Azure answers streamed requests over the rate limit with
//! status 200 and an error event (seen in recorded traffic; not documented), so the balancer holds a
//! stream back until its first events show whether it can still fail over.

use std::borrow::Cow;

use memchr::memmem;

use super::sse::SseEvent;
use crate::azure::json;
use crate::azure::request::operation::Operation;

/// What one of the first events says about its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstEventKind {
    /// Nothing yet: a comment, Azure's first chunk with empty `choices`, `response.created`,
    /// `response.in_progress` or `response.queued`.
    Preamble,
    /// The content has begun, or the stream has ended normally. Failover is no longer possible.
    Content,
    /// The request was rejected. [`judge_error_event`](super::verdict::judge_error_event) says why.
    Error,
}

/// Classifies one of the first events of a stream.
pub fn classify_first_event(operation: Operation, event: &SseEvent<'_>) -> FirstEventKind {
    if event.data.is_empty() {
        return if event.name == b"error" { FirstEventKind::Error } else { FirstEventKind::Preamble };
    }
    let [event_type, error, choices, usage] = if event.is_oversized {
        [None; 4]
    } else {
        json::parse_fields(event.data, &["type", "error", "choices", "usage"])
            .map_or([None; 4], |fields| fields.values)
    };
    let event_type = event_type.and_then(json::decode_string).or_else(|| fallback_event_type(event));
    match event_type.as_deref() {
        Some("response.created" | "response.in_progress" | "response.queued") => FirstEventKind::Preamble,
        Some("error" | "response.failed") => FirstEventKind::Error,
        _ if error.is_some_and(|raw| !matches!(raw, "null" | "false" | "\"\"" | "{}")) => {
            FirstEventKind::Error
        }
        _ if matches!(operation, Operation::Chat | Operation::Completions) => {
            let is_empty = |raw: &str| raw.get(1..).is_some_and(|r| r.trim_start().starts_with(']'));
            let has_usage = usage.is_some_and(|raw| raw != "null");
            match choices {
                Some(raw) if is_empty(raw) && !has_usage => FirstEventKind::Preamble,
                None if event.is_oversized && starts_with_empty_choices(event.data) => {
                    FirstEventKind::Preamble
                }
                _ => FirstEventKind::Content,
            }
        }
        _ => FirstEventKind::Content,
    }
}

/// The type of an event without a readable `type` in its data: the `event` field, or, in truncated
/// data, the first string after `"type"`.
fn fallback_event_type<'a>(event: &SseEvent<'a>) -> Option<Cow<'a, str>> {
    if !event.name.is_empty() {
        return Some(String::from_utf8_lossy(event.name));
    }
    if !event.is_oversized {
        return None;
    }
    let position = memmem::find(event.data, b"\"type\"")?;
    let mut quoted = event.data.get(position + 6..)?.split(|b| *b == b'"').skip(1);
    quoted.next().map(String::from_utf8_lossy)
}

fn starts_with_empty_choices(data: &[u8]) -> bool {
    let mut bytes = data.iter().filter(|b| !b.is_ascii_whitespace());
    br#"{"choices":[]"#.iter().all(|b| bytes.next() == Some(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_events_are_classified() {
        use FirstEventKind::{Content, Error, Preamble};
        use Operation::{Chat, Images, Responses};
        let rows: &[(Operation, &str, &str, bool, FirstEventKind)] = &[
            (Chat, "", "", false, Preamble),
            (Chat, "", r#"{"choices":[],"id":"","prompt_filter_results":[]}"#, false, Preamble),
            (Chat, "", r#"{ "choices" : [ ] , "prompt_filter_results":[{"#, true, Preamble),
            (Chat, "", r#"{"choices":[{"delta":{"content":"","role":"assistant"}}]}"#, false, Content),
            (Chat, "", r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, false, Content),
            (Chat, "", r#"{"error":{"code":"429"}}"#, false, Error),
            (Chat, "", r#"{"error":null,"choices":[]}"#, false, Preamble),
            (Chat, "", "[DONE]", false, Content),
            (Chat, "error", "", false, Error),
            (Responses, "response.created", r#"{"type":"response.created","response":{}}"#, false, Preamble),
            (Responses, "", r#"{"type":"response.in_progress"}"#, false, Preamble),
            (Responses, "response.queued", r#"{"type":"#, true, Preamble),
            (Responses, "", r#"{"type": "response.created","response":{"#, true, Preamble),
            (Responses, "error", r#"{"type":"error","error":{}}"#, false, Error),
            (
                Responses,
                "response.failed",
                r#"{"type":"response.failed","response":{"error":null}}"#,
                false,
                Error,
            ),
            (
                Responses,
                "response.output_item.added",
                r#"{"type":"response.output_item.added"}"#,
                false,
                Content,
            ),
            (Images, "", r#"{"type":"image_generation.partial_image"}"#, false, Content),
        ];
        for (operation, name, data, oversized, expected) in rows {
            let event = SseEvent {
                start_offset: 0,
                end_offset: 0,
                name: name.as_bytes(),
                data: data.as_bytes(),
                is_oversized: *oversized,
            };
            assert_eq!(classify_first_event(*operation, &event), *expected, "{data}");
        }
    }
}
