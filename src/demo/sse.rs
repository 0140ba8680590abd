//! Writing server-sent events as Azure frames them: LF, one `data:` line, a blank line.

use bytes::Bytes;
use serde_json::Value;

use super::answer::{Piece, Role};

/// The content type of every event stream.
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// `data: {...}`
pub(super) fn data(role: Role, value: &Value) -> Piece {
    Piece { role, bytes: Bytes::from(format!("data: {value}\n\n")) }
}

/// `event: {type}` and `data: {...}`; the name is the value's own `type`.
pub(super) fn event(role: Role, value: &Value) -> Piece {
    let name = value.get("type").and_then(Value::as_str).unwrap_or("message");
    Piece { role, bytes: Bytes::from(format!("event: {name}\ndata: {value}\n\n")) }
}

/// `data: [DONE]`
pub(super) fn done() -> Piece {
    Piece { role: Role::Terminal, bytes: Bytes::from_static(b"data: [DONE]\n\n") }
}

/// The JSON of an event written above.
pub(super) fn payload(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("data: "))?;
    serde_json::from_str(line).ok()
}
