//! Reads the log of homes without taking part in it, as a command may that runs beside the process.

use std::path::Path;

use super::records::apply;
use crate::routing::homes::{HashKey, Homes};
use crate::state::homes_log::{FILE_NAME, HeaderError, read_header, read_records};
use crate::state::open_to_read;

/// What the log in a directory tells, whoever writes it at the moment; `None` if there is no log. It goes into a
/// memory of this size.
///
/// # Errors
/// If the log cannot be read.
pub fn read_homes(directory: &Path, memory_bytes: u64) -> Result<Option<Homes>, HeaderError> {
    let Some(mut file) = open_to_read(directory, FILE_NAME)? else { return Ok(None) };
    let hash_key = HashKey::from_bytes(read_header(&mut file)?);
    let homes = Homes::with_hash_key(memory_bytes, hash_key);
    // Damaged records cost nothing but themselves, and an incomplete one at the end is being written.
    read_records(&mut file, |record| apply(record, &homes))?;
    Ok(Some(homes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::homes_log::{HomeEntry, HomeRecord, encode, header};

    #[test]
    fn the_log_of_a_process_that_writes_it_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read_homes(directory.path(), 1 << 16).unwrap().is_none());
        let writer = Homes::new(1 << 16);
        let (key, resource) = (writer.key_of(b"resp_1"), writer.resource_tag("east:443"));
        let entry = HomeEntry {
            key: key.hash(),
            resource: resource.hash(),
            maker: 0,
            made_at: 5,
            used_at: 6,
            lags: true,
        };
        let mut bytes = header(writer.hash_key().to_bytes()).to_vec();
        encode(HomeRecord::Stored(entry), &mut bytes);
        bytes.extend(b"the beginning of a record");
        std::fs::write(directory.path().join(FILE_NAME), &bytes).unwrap();
        let read = read_homes(directory.path(), 1 << 16).unwrap().unwrap();
        let home = read.find(read.key_of(b"resp_1"), 7).unwrap();
        assert_eq!((home.resource, home.made_at, home.lags), (read.resource_tag("east:443"), Some(5), true));
        assert_eq!(read.find(read.key_of(b"resp_2"), 7), None);
        std::fs::write(directory.path().join(FILE_NAME), "other bytes").unwrap();
        assert!(read_homes(directory.path(), 1 << 16).is_err());
    }
}
