//! How a stream opens: which of its first events carry content, and which say that the 200
//! was a refusal. Azure answers streamed calls over their limit with 200 and an error event.

use std::borrow::Cow;

use memchr::memmem;

use super::sse::Event;
use crate::azure::json;
use crate::azure::request::operation::Operation;

/// What an event says about the stream it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Nothing yet: a comment, Azure's empty first chunk, `response.created` and its like.
    Quiet,
    /// The answer has begun, or has ended in good order: nothing can fail over any more.
    Content,
    /// The call was refused; `judge_event` says what for.
    Error,
}

/// Reads one of the first events of a stream.
pub fn opening(operation: Operation, event: &Event<'_>) -> Opening {
    if event.data.is_empty() {
        return if event.name == b"error" { Opening::Error } else { Opening::Quiet };
    }
    let [kind, error, choices, usage] = if event.oversized {
        [None; 4]
    } else {
        json::probe(event.data, &["type", "error", "choices", "usage"])
            .map_or([None; 4], |fields| fields.values)
    };
    let kind = kind.and_then(json::string).or_else(|| shortened_kind(event));
    match kind.as_deref() {
        Some("response.created" | "response.in_progress" | "response.queued") => Opening::Quiet,
        Some("error" | "response.failed") => Opening::Error,
        _ if error.is_some_and(|raw| !matches!(raw, "null" | "false" | "\"\"" | "{}")) => Opening::Error,
        _ if matches!(operation, Operation::Chat | Operation::Completions) => {
            let is_empty = |raw: &str| raw.get(1..).is_some_and(|r| r.trim_start().starts_with(']'));
            let has_usage = usage.is_some_and(|raw| raw != "null");
            match choices {
                Some(raw) if is_empty(raw) && !has_usage => Opening::Quiet,
                None if event.oversized && opens_empty(event.data) => Opening::Quiet,
                _ => Opening::Content,
            }
        }
        _ => Opening::Content,
    }
}

/// The type of an event of which only the beginning is known, or whose data has none.
fn shortened_kind<'a>(event: &Event<'a>) -> Option<Cow<'a, str>> {
    if !event.name.is_empty() {
        return Some(String::from_utf8_lossy(event.name));
    }
    if !event.oversized {
        return None;
    }
    let at = memmem::find(event.data, b"\"type\"")?;
    let mut quoted = event.data.get(at + 6..)?.split(|b| *b == b'"').skip(1);
    quoted.next().map(String::from_utf8_lossy)
}

fn opens_empty(data: &[u8]) -> bool {
    let mut bytes = data.iter().filter(|b| !b.is_ascii_whitespace());
    br#"{"choices":[]"#.iter().all(|b| bytes.next() == Some(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_told_apart() {
        use Opening::{Content, Error, Quiet};
        use Operation::{Chat, Images, Responses};
        let rows: &[(Operation, &str, &str, bool, Opening)] = &[
            (Chat, "", "", false, Quiet),
            (Chat, "", r#"{"choices":[],"id":"","prompt_filter_results":[]}"#, false, Quiet),
            (Chat, "", r#"{ "choices" : [ ] , "prompt_filter_results":[{"#, true, Quiet),
            (Chat, "", r#"{"choices":[{"delta":{"content":"","role":"assistant"}}]}"#, false, Content),
            (Chat, "", r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, false, Content),
            (Chat, "", r#"{"error":{"code":"429"}}"#, false, Error),
            (Chat, "", r#"{"error":null,"choices":[]}"#, false, Quiet),
            (Chat, "", "[DONE]", false, Content),
            (Chat, "error", "", false, Error),
            (Responses, "response.created", r#"{"type":"response.created","response":{}}"#, false, Quiet),
            (Responses, "", r#"{"type":"response.in_progress"}"#, false, Quiet),
            (Responses, "response.queued", r#"{"type":"#, true, Quiet),
            (Responses, "", r#"{"type": "response.created","response":{"#, true, Quiet),
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
            let event = Event {
                start: 0,
                end: 0,
                name: name.as_bytes(),
                data: data.as_bytes(),
                oversized: *oversized,
            };
            assert_eq!(opening(*operation, &event), *expected, "{data}");
        }
    }
}
