//! Records as they lie in a segment: length, checksum, bytes. What a torn write leaves behind is
//! seen by either.

/// What every segment begins with.
pub(super) const MAGIC: &[u8; 8] = b"aoailb\x001";
/// Length and checksum.
const HEAD: usize = 8;
/// Longer than any record: a length above it is no length.
const LONGEST: usize = 256 * 1024 * 1024;

/// Appends what `write` writes as a record.
pub(super) fn push(to: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let begin = to.len();
    to.extend_from_slice(&[0; HEAD]);
    write(to);
    if let Some((head, record)) = to.get_mut(begin..).and_then(|frame| frame.split_at_mut_checked(HEAD)) {
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
        let (first, second) = head.split_at_mut(4);
        first.copy_from_slice(&length.to_le_bytes());
        second.copy_from_slice(&crc32fast::hash(record).to_le_bytes());
    }
}

/// The first record of these bytes and how many of them it takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A whole record.
    Record(&'a [u8], usize),
    /// It goes on beyond these bytes; so many are needed at least.
    More(usize),
    /// No record: what follows is torn.
    Torn,
}

pub(super) fn next(bytes: &[u8]) -> Next<'_> {
    let Some((head, rest)) = bytes.split_at_checked(HEAD) else { return Next::More(HEAD) };
    let number =
        |at: usize| head.get(at..at + 4).and_then(|raw| raw.try_into().ok()).map_or(0, u32::from_le_bytes);
    let (length, checksum) = (number(0) as usize, number(4));
    if length == 0 || length > LONGEST {
        return Next::Torn;
    }
    match rest.get(..length) {
        None => Next::More(HEAD + length),
        Some(record) if crc32fast::hash(record) == checksum => Next::Record(record, HEAD + length),
        Some(_) => Next::Torn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_back_and_a_cut_loses_only_the_last(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..10),
            cut in 1_usize..48,
        ) {
            let mut bytes = Vec::new();
            for record in &records {
                push(&mut bytes, |to| to.extend_from_slice(record));
            }
            let whole = bytes.len();
            bytes.truncate(whole - cut.min(whole));
            let mut rest = &bytes[..];
            let mut seen = Vec::new();
            while let Next::Record(record, length) = next(rest) {
                seen.push(record.to_vec());
                rest = &rest[length..];
            }
            prop_assert!(records.starts_with(&seen) && seen.len() < records.len());
            prop_assert!(matches!(next(rest), Next::More(_)));
        }

        #[test]
        fn a_flipped_bit_is_no_record(record in prop::collection::vec(any::<u8>(), 1..40), bit in 0_usize..64) {
            let mut bytes = Vec::new();
            push(&mut bytes, |to| to.extend_from_slice(&record));
            let at = bit % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(!matches!(next(&bytes), Next::Record(seen, _) if seen == record));
        }

        #[test]
        fn anything_may_lie_there(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = next(&bytes);
        }
    }
}
