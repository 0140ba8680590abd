//! Classifies the first events of a stream. Azure answers streamed requests over the rate limit with
//! status 200 and an error event (seen in recorded traffic; not documented), so the balancer holds a
//! stream back until its first events show whether it can still fail over.

use super::sse::SseEvent;
use crate::azure::json;
use crate::azure::json_keys::KeySet;
use crate::azure::json_text::text_from_bytes;
use crate::azure::request::operation::Operation;

/// What one of the first events says about its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstEventKind {
    /// Nothing yet: a comment, Azure's first chunk with empty `choices`, a chunk that has only the role,
    /// `response.created`, `response.in_progress` or `response.queued`.
    Preamble,
    /// The content has begun, or the stream has ended normally. Failover is no longer possible.
    Content,
    /// The request was rejected. [`judge_error_event`](super::verdict::judge_error_event) says why.
    Error,
}

/// Classifies one of the first events of a stream.
pub fn classify_first_event(operation: Operation, event: &SseEvent<'_>) -> FirstEventKind {
    if event.data.is_empty() && !event.is_oversized {
        return if event.name == b"error" { FirstEventKind::Error } else { FirstEventKind::Preamble };
    }
    let data = text_from_bytes(event.data);
    let [event_type, error, choices, usage] =
        json::parse_fields(data.as_bytes(), &const { KeySet::new(["type", "error", "choices", "usage"]) })
            .map_or([None; 4], |fields| fields.values);
    let name = Some(event.name).filter(|name| !name.is_empty());
    let event_type = event_type.and_then(json::decode_string).or_else(|| name.map(text_from_bytes));
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
                Some(raw) if (is_empty(raw) || !has_content(raw)) && !has_usage => FirstEventKind::Preamble,
                _ => FirstEventKind::Content,
            }
        }
        _ => FirstEventKind::Content,
    }
}

/// Whether one of the `choices` has content or has ended. Azure's second chunk has only the role and an
/// empty `content`, and a refusal may follow it.
fn has_content(choices: &str) -> bool {
    let mut has_content = false;
    let is_array = json::JsonCursor::new(choices)
        .walk_array(|cursor| has_content |= cursor.next_value().is_none_or(choice_has_content));
    has_content || !is_array
}

fn choice_has_content(choice: &str) -> bool {
    let is_nothing = |raw: &str| matches!(raw, "null" | "\"\"" | "[]" | "{}");
    let [delta, text, finish_reason] = json::find_fields(choice, &["delta", "text", "finish_reason"]);
    let delta_has_content = |delta: &str| {
        let mut has_content = false;
        let is_object = json::JsonCursor::new(delta).walk_object(|key, cursor| {
            has_content |= key != "role" && !cursor.next_value().is_some_and(is_nothing);
        });
        has_content || !is_object
    };
    delta.is_some_and(delta_has_content)
        || [text, finish_reason].into_iter().flatten().any(|raw| !is_nothing(raw))
        || (delta.is_none() && text.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_events_are_classified() {
        use FirstEventKind::{Content, Error, Preamble};
        use Operation::{Chat, Completions, Images, Responses};
        let rows: &[(Operation, &str, &str, bool, FirstEventKind)] = &[
            (Chat, "", "", false, Preamble),
            (Chat, "", r#"{"choices":[],"id":"","prompt_filter_results":[]}"#, false, Preamble),
            (Chat, "", r#"{"choices":[ ]}"#, true, Preamble),
            (Chat, "", r#"{"model":"m"}"#, true, Content),
            (Chat, "", r#"{"error":{"code":"429"}}"#, true, Error),
            (Chat, "", "", true, Content),
            (Chat, "", r#"{"choices":[{"delta":{"content":"","role":"assistant"}}]}"#, false, Preamble),
            (
                Chat,
                "",
                r#"{"choices":[{"index":0,"delta":{"content":"","refusal":null,"role":"assistant"},"finish_reason":null}]}"#,
                false,
                Preamble,
            ),
            (Chat, "", r#"{"choices":[{"delta":{"role":"assistant","content":"H"}}]}"#, false, Content),
            (Chat, "", r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, false, Content),
            (Chat, "", r#"{"choices":[{"delta":{"reasoning_content":"H"}}]}"#, false, Content),
            (Chat, "", r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, false, Content),
            (
                Chat,
                "",
                r#"{"choices":[{"delta":{"content":""}},{"index":1,"delta":{"content":"H"}}]}"#,
                false,
                Content,
            ),
            (Chat, "", r#"{"choices":[{"delta":"?"}]}"#, false, Content),
            (Chat, "", r#"{"choices":[{"unknown":1}]}"#, false, Content),
            (Completions, "", r#"{"choices":[{"text":"","finish_reason":null}]}"#, false, Preamble),
            (Completions, "", r#"{"choices":[{"text":"H","finish_reason":null}]}"#, false, Content),
            (Chat, "", r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, false, Content),
            (Chat, "", r#"{"error":{"code":"429"}}"#, false, Error),
            (Chat, "", r#"{"error":null,"choices":[]}"#, false, Preamble),
            (Chat, "", "[DONE]", false, Content),
            (Chat, "error", "", false, Error),
            (Responses, "response.created", r#"{"type":"response.created","response":{}}"#, false, Preamble),
            (Responses, "", r#"{"type":"response.in_progress"}"#, false, Preamble),
            (Responses, "response.queued", "", true, Preamble),
            (Responses, "", r#"{"type": "response.created","response":{}}"#, true, Preamble),
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
                oversized_ids: None,
            };
            assert_eq!(classify_first_event(*operation, &event), *expected, "{data}");
        }
    }
}
