//! Writes server-sent events as Azure frames them: LF line ends, one `data:` line, an empty line.

use bytes::Bytes;
use serde_json::Value;

use super::response::{EventRole, StreamEvent};

pub(in crate::demo) const EVENT_STREAM_CONTENT_TYPE: &str = "text/event-stream";

/// An event without a name: `data: {...}`.
pub(in crate::demo) fn data_event(role: EventRole, value: &Value) -> StreamEvent {
    StreamEvent { role, bytes: Bytes::from(format!("data: {value}\n\n")) }
}

/// An event with a name, which is the `type` of the value: `event: {type}`, then `data: {...}`.
pub(in crate::demo) fn named_event(role: EventRole, value: &Value) -> StreamEvent {
    let name = value.get("type").and_then(Value::as_str).unwrap_or("message");
    StreamEvent { role, bytes: Bytes::from(format!("event: {name}\ndata: {value}\n\n")) }
}

/// `data: [DONE]`
pub(in crate::demo) fn done_event() -> StreamEvent {
    StreamEvent { role: EventRole::Terminal, bytes: Bytes::from_static(b"data: [DONE]\n\n") }
}

/// The JSON of an event that one of the functions above has written.
pub(in crate::demo) fn event_json(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("data: "))?;
    serde_json::from_str(line).ok()
}
