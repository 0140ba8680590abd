//! Ranges of a text, sorted and apart from each other, and where they are once the text is decoded or encoded.

use std::ops::Range;

/// Sorts ranges and merges those that overlap. Ranges that only touch stay apart.
pub(super) fn merge_overlapping(ranges: &mut Vec<Range<usize>>) {
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    ranges.dedup_by(|later, earlier| {
        let overlaps = later.start < earlier.end;
        if overlaps {
            earlier.end = earlier.end.max(later.end);
        }
        overlaps
    });
}

/// The parts of sorted ranges that lie within `window`, counted from its start.
pub(super) fn clip(ranges: &[Range<usize>], window: &Range<usize>) -> Vec<Range<usize>> {
    let first = ranges.partition_point(|range| range.end <= window.start);
    let overlapping = ranges.iter().skip(first).take_while(|range| range.start < window.end);
    overlapping
        .map(|range| range.start.max(window.start) - window.start..range.end.min(window.end) - window.start)
        .collect()
}

/// Whether any of the sorted ranges overlaps `window`.
pub(super) fn overlaps_any(ranges: &[Range<usize>], window: &Range<usize>) -> bool {
    let first = ranges.partition_point(|range| range.end <= window.start);
    ranges.get(first).is_some_and(|range| range.start < window.end)
}

/// Translates sorted ranges of one text to another text that has the same pieces in the same order, of which
/// `piece_lengths` are the lengths in both. A range that has a part of a piece of unequal lengths gets all of
/// it.
pub(super) fn translate<'r>(
    piece_lengths: impl Iterator<Item = (usize, usize)>,
    ranges: impl Iterator<Item = &'r mut Range<usize>>,
) {
    let mut cursor = PieceCursor { pieces: piece_lengths, from: 0..0, to: 0..0 };
    for range in ranges {
        cursor.advance_past(range.start);
        let start = cursor.position_in_piece(range.start).unwrap_or(cursor.to.start);
        if range.end > cursor.from.end {
            cursor.advance_past(range.end - 1);
        }
        let end = cursor.position_in_piece(range.end).unwrap_or(cursor.to.end);
        *range = start..end;
    }
}

/// A piece, and where it is in both texts.
struct PieceCursor<I> {
    pieces: I,
    from: Range<usize>,
    to: Range<usize>,
}

impl<I: Iterator<Item = (usize, usize)>> PieceCursor<I> {
    /// Goes on to the piece that ends after `position`.
    fn advance_past(&mut self, position: usize) {
        while self.from.end <= position {
            let Some((from_bytes, to_bytes)) = self.pieces.next() else { return };
            self.from = self.from.end..self.from.end + from_bytes;
            self.to = self.to.end..self.to.end + to_bytes;
        }
    }

    /// Where `position` is in the other text, if the piece has the same length there.
    fn position_in_piece(&self, position: usize) -> Option<usize> {
        (self.from.len() == self.to.len())
            .then(|| self.to.start + position.clamp(self.from.start, self.from.end) - self.from.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::json_text::{decode_content, piece_lengths};
    use proptest::prelude::*;

    #[test]
    fn overlapping_ranges_are_merged_and_clipped() {
        let mut ranges = vec![5..8, 0..3, 2..4, 4..5, 6..7];
        merge_overlapping(&mut ranges);
        assert_eq!(ranges, [0..4, 4..5, 5..8]);
        assert_eq!(clip(&ranges, &(3..6)), [0..1, 1..2, 2..3]);
        for (window, expected) in [(0..1, true), (8..9, false), (7..9, true)] {
            assert_eq!(overlaps_any(&ranges, &window), expected);
            assert_eq!(!clip(&ranges, &window).is_empty(), expected);
        }
    }

    #[test]
    fn ranges_are_translated_with_whole_escapes() {
        let content = r"ab\n\u00fccd";
        assert_eq!(decode_content(content), "ab\nücd");
        for (range, decoded) in
            [(0..2, 0..2), (1..3, 1..3), (3..4, 2..3), (2..12, 2..7), (4..11, 3..6), (10..12, 5..7)]
        {
            let mut ranges = [range.clone()];
            translate(piece_lengths(content), ranges.iter_mut());
            assert_eq!(ranges, [decoded], "{range:?}");
        }
        let mut ranges = [0..1, 1..2, 2..5, 5..7];
        translate(piece_lengths(content).map(|(source, decoded)| (decoded, source)), ranges.iter_mut());
        assert_eq!(ranges, [0..1, 1..2, 2..10, 10..12]);
    }

    proptest! {
        #[test]
        fn every_match_is_found_again_where_it_was_encoded(content in r#"(\\n|\\u00e9|\\ud83d\\ude00|\\u0078|x|y|é|\\){0,16}"#) {
            let decoded = decode_content(&content);
            let mut ranges: Vec<_> = decoded.match_indices('x').map(|(start, found)| start..start + found.len()).collect();
            let count = ranges.len();
            translate(piece_lengths(&content).map(|(source, decoded)| (decoded, source)), ranges.iter_mut());
            prop_assert!(ranges.iter().all(|range| decode_content(&content[range.clone()]) == "x"));
            merge_overlapping(&mut ranges);
            prop_assert_eq!(ranges.len(), count);
        }
    }
}
