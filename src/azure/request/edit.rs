//! Edits of a body. An edited body is a list of pieces, so that the bytes that stay are shared
//! and not copied.

use std::ops::Range;

use bytes::Bytes;

/// One edit of a body: bytes to replace and what takes their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyEdit {
    /// The bytes to replace, as offsets in the body; empty for an insertion.
    pub range: Range<usize>,
    /// What takes their place.
    pub replacement: Bytes,
}

impl BodyEdit {
    pub(in crate::azure) fn insert(at: usize, text: &'static [u8]) -> Self {
        Self { range: at..at, replacement: Bytes::from_static(text) }
    }
}

/// The bytes of `body` with the edits made, as pieces to send one after the other. Edits may
/// come in any order; one that is out of bounds or overlaps another is left out.
pub fn apply_edits(body: &Bytes, edits: &[BodyEdit]) -> Vec<Bytes> {
    let mut order: Vec<&BodyEdit> = edits.iter().collect();
    order.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut pieces = Vec::with_capacity(2 * edits.len() + 1);
    let mut done = 0;
    for BodyEdit { range, replacement } in order {
        if range.start < done || range.end < range.start || range.end > body.len() {
            debug_assert!(false, "edits overlap or leave the body");
            continue;
        }
        pieces.push(body.slice(done..range.start));
        pieces.push(replacement.clone());
        done = range.end;
    }
    pieces.push(body.slice(done..));
    pieces.retain(|piece| !piece.is_empty());
    pieces
}
