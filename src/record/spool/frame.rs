//! The frame around each record in a segment: length, checksum, record. A torn write is detected by either of
//! the two.

/// The first bytes of every segment; the last of them is the version of the format.
pub(super) const SEGMENT_MAGIC: &[u8; 8] = b"aoailb\x001";
/// The length and the CRC-32 of the record, both as little-endian `u32`.
pub(super) const FRAME_HEADER_BYTES: usize = 8;
/// The memory that an empty buffer keeps.
const MAX_IDLE_BUFFER_BYTES: usize = 1024 * 1024;
/// No record is longer: a greater length is corrupt.
const MAX_RECORD_BYTES: usize = 256 * 1024 * 1024;

/// Records to append to the spool, one frame after the other.
#[derive(Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// The length of the complete frames. A frame is incomplete if its record panicked while it was written.
    complete_length: usize,
    record_count: u64,
}

impl FrameBuffer {
    /// Adds the record that `write` appends to the buffer. If `write` panics, nothing is added.
    pub fn push_record(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.truncate(self.complete_length);
        append_frame(&mut self.bytes, write);
        self.complete_length = self.bytes.len();
        self.record_count += 1;
    }

    /// The length of all frames, in bytes.
    pub fn byte_len(&self) -> usize {
        self.complete_length
    }

    /// The frames, without one that a panic left incomplete.
    pub(super) fn complete_frames(&self) -> &[u8] {
        self.bytes.get(..self.complete_length).unwrap_or_default()
    }

    /// The number of records.
    pub fn record_count(&self) -> u64 {
        self.record_count
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Removes all records. Keeps the memory unless there is much more than usual.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(MAX_IDLE_BUFFER_BYTES);
        self.complete_length = 0;
        self.record_count = 0;
    }
}

/// Appends a frame with the record that `write` appends to the buffer.
fn append_frame(buffer: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    write(buffer);
    if let Some((head, record)) =
        buffer.get_mut(start..).and_then(|frame| frame.split_at_mut_checked(FRAME_HEADER_BYTES))
    {
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
        let (length_field, checksum_field) = head.split_at_mut(4);
        length_field.copy_from_slice(&length.to_le_bytes());
        checksum_field.copy_from_slice(&crc32fast::hash(record).to_le_bytes());
    }
}

/// What is at the start of some bytes of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum ParsedFrame<'a> {
    /// A whole record, and the length of its frame.
    Record(&'a [u8], usize),
    /// The start of a frame; at least this many bytes are needed.
    Incomplete(usize),
    /// No frame: the write was torn, or the file is damaged.
    Corrupt,
}

/// Reads the frame at the start of `bytes`.
pub fn parse_frame(bytes: &[u8]) -> ParsedFrame<'_> {
    let Some((head, rest)) = bytes.split_at_checked(FRAME_HEADER_BYTES) else {
        return ParsedFrame::Incomplete(FRAME_HEADER_BYTES);
    };
    let read_u32 = |offset: usize| {
        head.get(offset..offset + 4).and_then(|raw| raw.try_into().ok()).map_or(0, u32::from_le_bytes)
    };
    let (length, checksum) = (read_u32(0) as usize, read_u32(4));
    if length == 0 || length > MAX_RECORD_BYTES {
        return ParsedFrame::Corrupt;
    }
    match rest.get(..length) {
        None => ParsedFrame::Incomplete(FRAME_HEADER_BYTES + length),
        Some(record) if crc32fast::hash(record) == checksum => {
            ParsedFrame::Record(record, FRAME_HEADER_BYTES + length)
        }
        Some(_) => ParsedFrame::Corrupt,
    }
}

/// The records in these frames, up to the first that is not whole.
pub(super) fn records(frames: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = frames;
    std::iter::from_fn(move || match parse_frame(rest) {
        ParsedFrame::Record(record, length) => {
            rest = rest.get(length..).unwrap_or_default();
            Some(record)
        }
        ParsedFrame::Incomplete(_) | ParsedFrame::Corrupt => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn truncation_loses_only_the_last_records(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..10),
            cut in 1_usize..48,
        ) {
            let mut bytes = Vec::new();
            for record in &records {
                append_frame(&mut bytes, |buffer| buffer.extend_from_slice(record));
            }
            let full_length = bytes.len();
            bytes.truncate(full_length - cut.min(full_length));
            let mut rest = &bytes[..];
            let mut parsed = Vec::new();
            while let ParsedFrame::Record(record, length) = parse_frame(rest) {
                parsed.push(record.to_vec());
                rest = &rest[length..];
            }
            prop_assert!(records.starts_with(&parsed) && parsed.len() < records.len());
            prop_assert!(matches!(parse_frame(rest), ParsedFrame::Incomplete(_)));
        }

        #[test]
        fn a_flipped_bit_is_detected(record in prop::collection::vec(any::<u8>(), 1..40), bit in 0_usize..64) {
            let mut bytes = Vec::new();
            append_frame(&mut bytes, |buffer| buffer.extend_from_slice(&record));
            let bit_index = bit % (bytes.len() * 8);
            bytes[bit_index / 8] ^= 1 << (bit_index % 8);
            prop_assert!(!matches!(parse_frame(&bytes), ParsedFrame::Record(parsed, _) if parsed == record));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_frame(&bytes);
        }
    }
}
