//! The ids of other objects that a request refers to: in its path, its query and its body. What they mean for
//! where the request goes is decided elsewhere.

use super::body_references::BodyReference;
use super::json_body::BodyFacts;
use super::reference_kind::{ReferenceKind, encrypted_content_id};
use super::target::RequestTarget;
use crate::azure::json;
use crate::azure::json::JsonCursor;
use crate::azure::json_scan::{end_of_container, end_of_string};
use crate::azure::json_text::{decode_content, text_from_bytes};

/// Calls `on_reference` with the kind and the id of every object that a request refers to: those of the path, of
/// the query and of the body, each in their order. `body` has the bytes that the facts were parsed from. Ids are
/// decoded. One may be given more than once.
pub fn visit_references(
    target: &RequestTarget,
    body: Option<(&BodyFacts, &[u8])>,
    on_reference: &mut impl FnMut(ReferenceKind, &str),
) {
    visit_target_references(target, on_reference);
    if let Some((facts, bytes)) = body {
        visit_body_references(facts, bytes, on_reference);
    }
}

/// Like [`visit_references`], for the path and the query only.
pub fn visit_target_references(target: &RequestTarget, on_reference: &mut impl FnMut(ReferenceKind, &str)) {
    for (kind, id) in target.path_references() {
        on_reference(kind, &id);
    }
    if let Some(kind) = target.cursor_kind {
        target.query.cursors().filter(|id| !id.is_empty()).for_each(|id| on_reference(kind, &id));
    }
}

/// Like [`visit_references`], for a body only, or for a frame of a WebSocket. `bytes` are what the facts were
/// parsed from.
pub fn visit_body_references(
    facts: &BodyFacts,
    bytes: &[u8],
    on_reference: &mut impl FnMut(ReferenceKind, &str),
) {
    for BodyReference { kind, value_offset } in &facts.references {
        let value = bytes.get(*value_offset..).unwrap_or_default();
        visit_strings(value, &mut |content| visit_id(*kind, content, on_reference));
    }
}

/// Calls `on_item` with the id of each item in a body of Responses or of conversations that the resource has to look
/// up: an `item_reference`, reasoning without its encrypted content, and an approval request. Every other item brings
/// its own content; its id may be the client's own, and any resource can read it.
pub fn visit_items_without_content(body: &[u8], on_item: &mut impl FnMut(&str)) {
    let body = text_from_bytes(body);
    JsonCursor::new(&body).walk_object(|key, cursor| {
        if matches!(key, "input" | "items") {
            cursor.walk_array(|cursor| visit_item_without_content(cursor, on_item));
        }
    });
}

fn visit_item_without_content(cursor: &mut JsonCursor<'_>, on_item: &mut impl FnMut(&str)) {
    let (mut item_type, mut id, mut approval_request_id) = (None, None, None);
    let (mut has_content, mut has_encrypted_content) = (false, false);
    cursor.walk_object(|key, cursor| match key {
        "type" => item_type = cursor.next_value(),
        "id" => id = cursor.next_value(),
        "approval_request_id" => approval_request_id = cursor.next_value(),
        "content" => has_content = true,
        "encrypted_content" => has_encrypted_content = cursor.next_value().is_some_and(|raw| raw != "null"),
        _ => {}
    });
    let needs_look_up = match item_type.and_then(json::string_content) {
        Some("reasoning") => !has_encrypted_content,
        // An item without a type of its own is a message.
        Some("item_reference") | None => !has_content,
        Some(_) => false,
    };
    for id in [id.filter(|_| needs_look_up), approval_request_id].into_iter().flatten() {
        if let Some(id) = json::decode_non_empty_string(Some(id)) {
            on_item(&id);
        }
    }
}

/// Calls `on_content` with the content of the string at the start of `value`, or of each string in the array there.
fn visit_strings<'a>(value: &'a [u8], on_content: &mut impl FnMut(&'a [u8])) {
    let content = |start: usize, end: usize| value.get(start + 1..end - 1).unwrap_or_default();
    match value.first() {
        Some(b'"') => {
            if let Some(end) = end_of_string(value, 0) {
                on_content(content(0, end));
            }
        }
        Some(b'[') => {
            let mut position = 1;
            while let Some(byte) = value.get(position) {
                position = match byte {
                    b'"' => {
                        let Some(end) = end_of_string(value, position) else { return };
                        on_content(content(position, end));
                        end
                    }
                    b'{' | b'[' => {
                        let Some(end) = end_of_container(value, position) else { return };
                        end
                    }
                    b']' => return,
                    _ => position + 1,
                };
            }
        }
        _ => {}
    }
}

fn visit_id(kind: ReferenceKind, content: &[u8], on_reference: &mut impl FnMut(ReferenceKind, &str)) {
    let text;
    let id = if kind == ReferenceKind::EncryptedContent {
        encrypted_content_id(content)
    } else {
        text = text_from_bytes(content);
        decode_content(&text)
    };
    if !id.is_empty() {
        on_reference(kind, &id);
    }
}

#[cfg(test)]
#[path = "references_tests.rs"]
mod tests;
