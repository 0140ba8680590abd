//! Edits of a request body. An edited body is a list of pieces, so that unchanged bytes are shared
//! with the original and not copied.

use std::ops::Range;

use bytes::Bytes;

/// One replacement in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyEdit {
    /// The bytes to replace, as offsets in the body; empty for an insertion.
    pub range: Range<usize>,
    /// The bytes to write instead.
    pub replacement: Bytes,
}

impl BodyEdit {
    pub(in crate::azure) fn insert(at: usize, text: &'static [u8]) -> Self {
        Self { range: at..at, replacement: Bytes::from_static(text) }
    }
}

/// Applies the edits and returns the new body as pieces to send one after the other. The order of
/// `edits` does not matter. An edit that is out of bounds or overlaps an earlier one is skipped.
pub fn apply_edits(body: &Bytes, edits: &[BodyEdit]) -> Vec<Bytes> {
    let mut order: Vec<&BodyEdit> = edits.iter().collect();
    order.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut pieces = Vec::with_capacity(2 * edits.len() + 1);
    let mut done = 0;
    for BodyEdit { range, replacement } in order {
        if range.start < done || range.end < range.start || range.end > body.len() {
            debug_assert!(false, "an edit overlaps another or is out of bounds");
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
