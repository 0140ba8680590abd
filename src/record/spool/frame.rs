//! The frame around each record in a segment: length, checksum, record. A torn write is detected by either of
//! the two.

/// The first bytes of every segment; the last of them is the version of the format.
pub(super) const SEGMENT_MAGIC: &[u8; 8] = b"aoailb\x001";
/// The length and the CRC-32 of the record, both as little-endian `u32`.
pub(in crate::record) const FRAME_HEADER_BYTES: usize = 8;
/// The memory that an empty buffer keeps.
const MAX_IDLE_BUFFER_BYTES: usize = 1024 * 1024;
/// No record is longer: a greater length is corrupt.
const MAX_RECORD_BYTES: usize = 256 * 1024 * 1024;

/// Records to be written, each in its frame. The frames get their lengths and checksums only when they are
/// appended to the spool: a sink that takes the records at once needs none.
#[derive(Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Where each frame ends. After the last one, there may be what a record left that panicked.
    ends: Vec<usize>,
}

impl FrameBuffer {
    /// Adds the record that `write` appends to the buffer. If `write` panics, nothing is added.
    pub fn push_record(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.truncate(self.byte_len());
        self.bytes.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// The length of all frames, in bytes.
    pub fn byte_len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The records.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let frames = starts.zip(&self.ends).filter_map(|(start, end)| self.bytes.get(start..*end));
        frames.filter_map(|frame| frame.get(FRAME_HEADER_BYTES..))
    }

    /// Adds copies of the records of another buffer.
    pub fn append(&mut self, other: &Self) {
        let start = self.byte_len();
        self.bytes.truncate(start);
        self.bytes.extend_from_slice(other.bytes.get(..other.byte_len()).unwrap_or_default());
        self.ends.extend(other.ends.iter().map(|end| start + end));
    }

    /// The record that was added last.
    pub fn last_record(&self) -> Option<&[u8]> {
        let start = self.ends.len().checked_sub(2).and_then(|index| self.ends.get(index)).copied();
        self.bytes.get(start.unwrap_or(0) + FRAME_HEADER_BYTES..*self.ends.last()?)
    }

    /// The frames with their lengths and checksums.
    pub(super) fn complete_frames(&mut self) -> &[u8] {
        let mut start = 0;
        for end in &self.ends {
            let frame = self.bytes.get_mut(start..*end);
            if let Some((head, record)) = frame.and_then(|f| f.split_at_mut_checked(FRAME_HEADER_BYTES)) {
                let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
                let (length_field, checksum_field) = head.split_at_mut(4);
                length_field.copy_from_slice(&length.to_le_bytes());
                checksum_field.copy_from_slice(&crc32fast::hash(record).to_le_bytes());
            }
            start = *end;
        }
        self.bytes.get(..start).unwrap_or_default()
    }

    /// The number of records.
    pub fn record_count(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Removes all records. Keeps the memory unless there is much more than usual.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(MAX_IDLE_BUFFER_BYTES);
        self.ends.clear();
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
            let mut frames = FrameBuffer::default();
            for record in &records {
                frames.push_record(|buffer| buffer.extend_from_slice(record));
            }
            prop_assert_eq!(frames.records().collect::<Vec<_>>(), records.iter().collect::<Vec<_>>());
            let mut bytes = frames.complete_frames().to_vec();
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
            let mut frames = FrameBuffer::default();
            frames.push_record(|buffer| buffer.extend_from_slice(&record));
            let mut bytes = frames.complete_frames().to_vec();
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
