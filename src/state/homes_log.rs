//! The log of homes in the state directory: which resource made which id. A successor gets the same bytes over
//! a socket.
//!
//! A header with the hash key, twice, then records of 32 bytes. Each has a checksum and its place is a multiple
//! of its length, so a damaged one costs nothing but itself. The state is what all records say in their order.

use std::io::{self, ErrorKind, Read};

/// The name of the file.
pub const FILE_NAME: &str = "homes.log";
/// The length of the header.
pub const HEADER_BYTES: usize = 2 * HEADER_COPY_BYTES;
/// The length of a record.
pub const RECORD_BYTES: usize = 32;

const MAGIC: &[u8; 8] = b"aoaihome";
const VERSION: u32 = 1;
const HEADER_COPY_BYTES: usize = 32;
const CHECKED_BYTES: usize = RECORD_BYTES - 4;
/// How much is read at a time.
const CHUNK_BYTES: usize = 2048 * RECORD_BYTES;

const STORED: u8 = 1;
const FORGOTTEN: u8 = 2;
const SNAPSHOT_END: u8 = 3;
const LAGS: u8 = 1;

/// The secret that keys and tags are hashed with.
pub type HashKeyBytes = [u8; 16];

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeEntry {
    /// The hash of the id.
    pub key: u64,
    /// The hash of its resource.
    pub resource: u32,
    /// The hash of the client that made it, or 0.
    pub maker: u32,
    /// When it was made, in Unix seconds, or 0.
    pub made_at: u32,
    /// When it was last used, in Unix seconds.
    pub used_at: u32,
    /// Whether it may be unreadable for a while after it was made.
    pub lags: bool,
}

/// A record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HomeRecord {
    /// The entry of this key is now this.
    Stored(HomeEntry),
    /// The entry of this key is gone.
    Forgotten(u64),
    /// Over a socket: everything that the sender knew when the connection was made has been sent.
    SnapshotEnd,
}

/// Why a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It is no header of this kind, or both of its copies are damaged.
    #[error("it does not begin as a log of homes does")]
    Malformed,
    /// Another version of aoai-lb wrote it.
    #[error("it has version {0}, and this binary knows version {VERSION}")]
    UnknownVersion(u32),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What was found besides whole records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Records that are skipped since their checksums are wrong.
    pub records: u64,
    /// The bytes of a record at the end that is not complete.
    pub torn_bytes: usize,
}

/// The header for this hash key.
pub fn header(hash_key: HashKeyBytes) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    for copy in header.chunks_exact_mut(HEADER_COPY_BYTES) {
        put(copy, 0, MAGIC);
        put(copy, 8, &VERSION.to_le_bytes());
        put(copy, 12, &hash_key);
        seal(copy);
    }
    header
}

/// Reads a header.
///
/// # Errors
/// [`HeaderError`].
pub fn read_header(reader: &mut impl Read) -> Result<HashKeyBytes, HeaderError> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).map_err(|problem| match problem.kind() {
        ErrorKind::UnexpectedEof => HeaderError::Malformed,
        _ => problem.into(),
    })?;
    let mut copies = header.chunks_exact(HEADER_COPY_BYTES);
    let copy = copies.find(|copy| copy.starts_with(MAGIC) && is_whole(copy)).ok_or(HeaderError::Malformed)?;
    match u32::from_le_bytes(take(copy, 8)) {
        VERSION => Ok(take(copy, 12)),
        other => Err(HeaderError::UnknownVersion(other)),
    }
}

/// Appends a record to `into`.
pub fn encode(record: HomeRecord, into: &mut Vec<u8>) {
    let mut bytes = [0; RECORD_BYTES];
    let kind = match record {
        HomeRecord::Stored(entry) => {
            put(&mut bytes, 1, &[u8::from(entry.lags) * LAGS]);
            put(&mut bytes, 4, &entry.key.to_le_bytes());
            put(&mut bytes, 12, &entry.resource.to_le_bytes());
            put(&mut bytes, 16, &entry.maker.to_le_bytes());
            put(&mut bytes, 20, &entry.made_at.to_le_bytes());
            put(&mut bytes, 24, &entry.used_at.to_le_bytes());
            STORED
        }
        HomeRecord::Forgotten(key) => {
            put(&mut bytes, 4, &key.to_le_bytes());
            FORGOTTEN
        }
        HomeRecord::SnapshotEnd => SNAPSHOT_END,
    };
    put(&mut bytes, 0, &[kind]);
    seal(&mut bytes);
    into.extend_from_slice(&bytes);
}

/// Reads records until the end.
///
/// # Errors
/// If they cannot be read.
pub fn read_records(reader: &mut impl Read, mut on_record: impl FnMut(HomeRecord)) -> io::Result<Damage> {
    let mut damage = Damage::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut filled = 0;
    loop {
        let Some(free) = buffer.get_mut(filled..) else { return Ok(damage) };
        let read = match reader.read(free) {
            Ok(0) => {
                damage.torn_bytes = filled;
                return Ok(damage);
            }
            Ok(read) => read,
            Err(problem) if problem.kind() == ErrorKind::Interrupted => continue,
            Err(problem) => return Err(problem),
        };
        filled += read;
        let whole = filled - filled % RECORD_BYTES;
        for bytes in buffer.get(..whole).unwrap_or_default().chunks_exact(RECORD_BYTES) {
            match decode(bytes) {
                Some(record) => on_record(record),
                None => damage.records += 1,
            }
        }
        // Less than a record is left.
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

/// The record in these bytes; `None` if it is damaged, or of a kind that only a later version knows.
fn decode(bytes: &[u8]) -> Option<HomeRecord> {
    if !is_whole(bytes) {
        return None;
    }
    let key = u64::from_le_bytes(take(bytes, 4));
    match *bytes.first()? {
        STORED => Some(HomeRecord::Stored(HomeEntry {
            key,
            resource: u32::from_le_bytes(take(bytes, 12)),
            maker: u32::from_le_bytes(take(bytes, 16)),
            made_at: u32::from_le_bytes(take(bytes, 20)),
            used_at: u32::from_le_bytes(take(bytes, 24)),
            lags: bytes.get(1)? & LAGS != 0,
        })),
        FORGOTTEN => Some(HomeRecord::Forgotten(key)),
        SNAPSHOT_END => Some(HomeRecord::SnapshotEnd),
        _ => None,
    }
}

/// Writes the checksum of all other bytes into the last four.
fn seal(bytes: &mut [u8]) {
    let checksum = checksum(bytes);
    put(bytes, CHECKED_BYTES, &checksum.to_le_bytes());
}

fn is_whole(bytes: &[u8]) -> bool {
    take(bytes, CHECKED_BYTES) == checksum(bytes).to_le_bytes()
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes.get(..CHECKED_BYTES).unwrap_or_default())
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(offset..offset + value.len()) {
        place.copy_from_slice(value);
    }
}

fn take<const LENGTH: usize>(bytes: &[u8], offset: usize) -> [u8; LENGTH] {
    let found = bytes.get(offset..offset + LENGTH).and_then(|found| found.try_into().ok());
    found.unwrap_or([0; LENGTH])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: HashKeyBytes = *b"0123456789abcdef";

    fn read_all(mut text: &[u8]) -> (Vec<HomeRecord>, Damage) {
        let mut records = Vec::new();
        let damage = read_records(&mut text, |record| records.push(record)).unwrap();
        (records, damage)
    }

    fn written(records: &[HomeRecord]) -> Vec<u8> {
        let mut text = Vec::new();
        records.iter().for_each(|record| encode(*record, &mut text));
        text
    }

    fn any_record() -> impl Strategy<Value = HomeRecord> {
        let entry = any::<(u64, u32, u32, u32, u32, bool)>().prop_map(
            |(key, resource, maker, made_at, used_at, lags)| HomeEntry {
                key,
                resource,
                maker,
                made_at,
                used_at,
                lags,
            },
        );
        prop_oneof![
            entry.prop_map(HomeRecord::Stored),
            any::<u64>().prop_map(HomeRecord::Forgotten),
            Just(HomeRecord::SnapshotEnd)
        ]
    }

    #[test]
    fn the_bytes_are_those_of_earlier_versions() {
        let entry = HomeEntry { key: 0x0102, resource: 3, maker: 4, made_at: 5, used_at: 6, lags: true };
        let text = written(&[HomeRecord::Stored(entry)]);
        assert_eq!(text[..28], *b"\x01\x01\0\0\x02\x01\0\0\0\0\0\0\x03\0\0\0\x04\0\0\0\x05\0\0\0\x06\0\0\0");
        assert_eq!(text.len(), RECORD_BYTES);
        assert_eq!(header(KEY)[..28], *b"aoaihome\x01\0\0\x000123456789abcdef");
    }

    #[test]
    fn one_damaged_copy_of_the_header_is_made_up_for_by_the_other() {
        let whole = header(KEY);
        for flipped in 0..HEADER_BYTES {
            let mut damaged = whole;
            damaged[flipped] ^= 0x10;
            assert_eq!(read_header(&mut &damaged[..]).unwrap(), KEY, "byte {flipped}");
        }
        let mut both = whole;
        (both[0], both[40]) = (0, 0);
        for (text, reason) in [
            (both.to_vec(), "it does not begin as a log of homes does"),
            (whole[..63].to_vec(), "it does not begin as a log of homes does"),
            (Vec::new(), "it does not begin as a log of homes does"),
            (later_version(), "it has version 7, and this binary knows version 1"),
        ] {
            assert_eq!(read_header(&mut &text[..]).unwrap_err().to_string(), reason);
        }
    }

    fn later_version() -> Vec<u8> {
        let mut header = header(KEY);
        for copy in header.chunks_exact_mut(HEADER_COPY_BYTES) {
            copy[8] = 7;
            seal(copy);
        }
        header.to_vec()
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(records in proptest::collection::vec(any_record(), 0..40)) {
            prop_assert_eq!(read_all(&written(&records)), (records, Damage::default()));
        }

        #[test]
        fn a_log_that_was_cut_anywhere_has_all_records_before_the_cut(
            records in proptest::collection::vec(any_record(), 0..8),
        ) {
            let text = written(&records);
            for cut in 0..=text.len() {
                let damage = Damage { records: 0, torn_bytes: cut % RECORD_BYTES };
                prop_assert_eq!(read_all(&text[..cut]), (records[..cut / RECORD_BYTES].to_vec(), damage));
            }
        }

        #[test]
        fn a_flipped_bit_costs_one_record(
            records in proptest::collection::vec(any_record(), 1..8),
            bit in any::<proptest::sample::Index>(),
        ) {
            let mut text = written(&records);
            let bit = bit.index(text.len() * 8);
            text[bit / 8] ^= 1 << (bit % 8);
            let mut rest = records;
            rest.remove(bit / 8 / RECORD_BYTES);
            prop_assert_eq!(read_all(&text), (rest, Damage { records: 1, torn_bytes: 0 }));
        }

        #[test]
        fn other_bytes_are_no_records(text in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = read_header(&mut &text[..]);
            let (records, damage) = read_all(&text);
            prop_assert_eq!(records.len() as u64 + damage.records, (text.len() / RECORD_BYTES) as u64);
        }
    }
}
