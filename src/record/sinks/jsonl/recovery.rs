//! Recovery after a process was killed: cuts off an incomplete last line, and finds the records that are
//! already in the file.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::rotation::list_rotated_files;

/// How much of the end of the file is searched. A batch that was written but not marked as delivered is
/// shorter.
const MAX_TAIL_BYTES: u64 = 16 * 1024 * 1024;
/// The first bytes of every record.
const RECORD_PREFIX: &[u8] = b"{\"time\":\"";

/// Opens the file for appending, and creates it if necessary.
pub(super) fn open_for_appending(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).read(true).create(true).mode(0o640).open(path)
}

/// Makes the locked file of this length end with a whole line: cuts off an incomplete record, or ends a line that is
/// no record.
pub(super) fn repair_last_line(mut file: &File, length: u64) -> io::Result<()> {
    let mut last_byte = [0];
    if length == 0 || file.read_at(&mut last_byte, length - 1)? == 1 && last_byte == *b"\n" {
        return Ok(());
    }
    let start = length.saturating_sub(MAX_TAIL_BYTES);
    let mut tail = vec![0; usize::try_from(length - start).unwrap_or(0)];
    file.read_exact_at(&mut tail, start)?;
    let complete_bytes = memchr::memrchr(b'\n', &tail).map_or(0, |last| last + 1);
    let last_line = tail.get(complete_bytes..).unwrap_or_default();
    let is_partial_record = last_line.starts_with(RECORD_PREFIX) || RECORD_PREFIX.starts_with(last_line);
    match last_line {
        [] => Ok(()),
        _ if is_partial_record && (complete_bytes > 0 || start == 0) => {
            file.set_len(start + complete_bytes as u64)
        }
        _ => file.write_all(b"\n"),
    }
}

/// The request ids at the end of the file, and at the end of the newest rotated file if the file is short. A
/// rotated file that is already compressed is too old: its records were marked as delivered long ago.
pub(super) fn read_recent_request_ids(path: &Path) -> HashSet<Box<[u8]>> {
    let mut ids = HashSet::new();
    let newest = list_rotated_files(path)
        .unwrap_or_default()
        .pop()
        .filter(|path| path.extension().is_none_or(|e| e != "gz"));
    for path in [Some(path.to_owned()), newest].into_iter().flatten() {
        let Ok(mut file) = File::open(&path) else { continue };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let mut tail = Vec::new();
        if file.seek(SeekFrom::Start(length.saturating_sub(MAX_TAIL_BYTES))).is_ok() {
            let _ = file.take(MAX_TAIL_BYTES).read_to_end(&mut tail);
        }
        // An incomplete last line is not a record.
        tail.truncate(memchr::memrchr(b'\n', &tail).map_or(0, |last| last + 1));
        ids.extend(tail.split(|byte| *byte == b'\n').filter_map(request_id).map(Box::from));
        if length >= MAX_TAIL_BYTES {
            break;
        }
    }
    ids
}

/// The `request_id` of a record. It is the second field, so only the first 256 bytes are searched.
pub(super) fn request_id(record: &[u8]) -> Option<&[u8]> {
    const REQUEST_ID_KEY: &[u8] = b"\"request_id\":\"";
    let value_start =
        memchr::memmem::find(record.get(..256).unwrap_or(record), REQUEST_ID_KEY)? + REQUEST_ID_KEY.len();
    let rest = record.get(value_start..)?;
    rest.get(..memchr::memchr(b'"', rest)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_partial_last_line_of_a_killed_process_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.jsonl");
        for (content, expected) in [
            ("", ""),
            ("{\"time\":1}\nwhole\n", "{\"time\":1}\nwhole\n"),
            ("one\n{\"time\":\"2026-1", "one\n"),
            ("one\n{\"ti", "one\n"),
            ("{\"time\":\"2026-1", ""),
            // A line that is not one of our records is not cut off.
            ("no record of ours", "no record of ours\n"),
            ("one\n{\"name\":1}", "one\n{\"name\":1}\n"),
        ] {
            fs::write(&path, content).unwrap();
            repair_last_line(&open_for_appending(&path).unwrap(), content.len() as u64).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
        fs::write(&path, "{\"request_id\":\"a\"}\n{\"request_id\":\"b\",").unwrap();
        assert_eq!(read_recent_request_ids(&path).len(), 1, "half a line is no record");
    }

    #[test]
    fn request_ids_are_read_from_the_file_and_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.jsonl");
        let line = |n: usize| {
            format!(
                "{{\"time\":\"t\",\"request_id\":\"id-{n}\",\"prompt\":\"\\\"request_id\\\":\\\"no\\\"\"}}\n"
            )
        };
        fs::write(&path, line(1) + &line(2)).unwrap();
        fs::write(path.with_file_name("x-20261123T080000.000Z.jsonl"), line(3)).unwrap();
        let ids = read_recent_request_ids(&path);
        let mut ids: Vec<_> = ids.iter().map(|id| String::from_utf8_lossy(id).into_owned()).collect();
        ids.sort();
        assert_eq!(ids, ["id-1", "id-2", "id-3"]);
    }
}
