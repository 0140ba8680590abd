//! An id that a response tells, and how it is read from what the scanner finds in an event.

use super::id_scanner::{Found, IdScanner};
use crate::azure::json_text::{decode_content, text_from_bytes};
use crate::azure::request::reference_kind::{ReferenceKind, encrypted_content_id};

/// Longer ids are not Azure's.
const MAX_ID_BYTES: usize = 256;

/// The id of an object on the resource that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedId<'a> {
    /// What the id names. It is never [`ReferenceKind::PreviousResponse`].
    pub kind: ReferenceKind,
    /// The id, decoded; of encrypted content, its beginning.
    pub id: &'a str,
}

/// Reads bytes of an event. Returns whether they say that the response is not stored.
pub(super) fn scan_event(
    scanner: &mut IdScanner,
    bytes: &[u8],
    on_id: &mut impl FnMut(LearnedId<'_>),
) -> bool {
    let mut says_not_stored = false;
    scanner.feed(bytes, &mut |found| match found {
        Found::Id(Some(kind), content) => {
            decode_id(kind, content, |id| on_id(LearnedId { kind, id }));
        }
        Found::Store(is_stored) => says_not_stored |= !is_stored,
        // An event has no id of its own and is no list.
        Found::OwnId(_) | Found::Id(None, _) | Found::Deleted | Found::End => {}
    });
    says_not_stored
}

/// Calls `use_id` with the decoded content of a JSON string, unless it is empty or too long to be an id.
pub(super) fn decode_id(kind: ReferenceKind, content: &[u8], use_id: impl FnOnce(&str)) {
    let text;
    let id = if kind == ReferenceKind::EncryptedContent {
        encrypted_content_id(content)
    } else {
        text = text_from_bytes(content);
        decode_content(&text)
    };
    if !id.is_empty() && id.len() <= MAX_ID_BYTES {
        use_id(&id);
    }
}
