//! A write-ahead log: keeps the records that wait for the writer over a kill of the process.
//!
//! It is a file in memory (tmpfs), where `/run` is: the kernel keeps it when the process is killed, and a write to it
//! waits for no disk unless the machine swaps, so that the threads that serve requests may write to it. It has two halves.
//! While the writer writes the records of one half to where they belong, records are appended to the other one.
//! A log belongs to the process that holds its lock. When a process was killed, another one takes what is left of its
//! logs into the spool: the next one, or its successor in an upgrade.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use crate::record::file_system::is_in_memory;
use crate::record::spool::frame::FRAME_HEADER_BYTES;

/// The length of a half, in bytes: with prompts of 2 KiB, some eighty records.
pub(super) const HALF_BYTES: usize = 256 * 1024;
/// The first bytes of every log; the last of them is the version of the format. The length of the spool's path follows
/// as a `u32`, little-endian, then the path.
const MAGIC: &[u8; 8] = b"aoailbw1";
/// The halves begin after this.
const FILE_HEADER_BYTES: usize = 8 * 1024;
const FILE_BYTES: usize = FILE_HEADER_BYTES + 2 * HALF_BYTES;
/// Before each record: its length, and the same with all bits inverted, both as little-endian `u32`. Zeros end a half. It is
/// as long as the head of a frame, so that a record is at the same offset as in a [`FrameBuffer`].
///
/// [`FrameBuffer`]: crate::record::spool::FrameBuffer
const RECORD_HEADER_BYTES: usize = FRAME_HEADER_BYTES;
const END_OF_HALF: [u8; RECORD_HEADER_BYTES] = [0; RECORD_HEADER_BYTES];
const EXTENSION: &str = "records";

/// Where logs are, and for the records of which spool.
#[derive(Clone, Debug)]
pub struct LogPlace {
    /// The directory of the logs.
    pub directory: PathBuf,
    /// Whether the directory outlives the process, however that ends: otherwise no logs are made.
    pub outlives_process: bool,
    /// The directory of the spool.
    pub spool_directory: PathBuf,
}

/// One of the two halves of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Half {
    #[default]
    First,
    Second,
}

/// A log that this process writes.
#[derive(Debug)]
pub(super) struct WriteAheadLog {
    path: PathBuf,
    file: File,
}

/// What a process left that was killed. It is locked by this one.
pub(super) struct OrphanedLog {
    path: PathBuf,
    /// Holds the lock.
    file: File,
    content: Vec<u8>,
}

impl Half {
    pub(super) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    fn start(self) -> usize {
        match self {
            Self::First => FILE_HEADER_BYTES,
            Self::Second => FILE_HEADER_BYTES + HALF_BYTES,
        }
    }
}

impl WriteAheadLog {
    /// Creates an empty log.
    ///
    /// # Errors
    /// If that is not possible; `Unsupported` if the directory is not in memory, `PermissionDenied` if others may use it.
    pub(super) fn create(place: &LogPlace) -> io::Result<Self> {
        if !is_in_memory(&place.directory)? {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the directory is not in memory"));
        }
        check_is_private(&place.directory)?;
        let header = file_header(place)?;
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (micros, pid, random) = (since_epoch.as_micros(), std::process::id(), fastrand::u32(..));
        let path = place.directory.join(format!("{micros:016}-{pid}-{random:08x}.{EXTENSION}"));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o640).open(&path)?;
        // Another process that looks for orphans may hold the lock at this moment: the writer tries again later.
        let prepared = flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .and_then(|()| file.write_all_at(&header, 0));
        match prepared {
            Ok(()) => Ok(Self { path, file }),
            Err(problem) => {
                let _ = fs::remove_file(&path);
                Err(problem)
            }
        }
    }

    /// Appends a record to a half that takes up this many bytes already; `false` if there is no room for it, or it
    /// cannot be written. The header is written last: a record without it is none.
    pub(super) fn append(&self, half: Half, offset: usize, record: &[u8]) -> bool {
        let Some(header) = record_header(record.len()) else { return false };
        let record_offset = offset + RECORD_HEADER_BYTES;
        if record_offset + record.len() + END_OF_HALF.len() > HALF_BYTES {
            return false;
        }
        let slices = [IoSlice::new(record), IoSlice::new(&END_OF_HALF)];
        let written = rustix::io::pwritev(&self.file, &slices, (half.start() + record_offset) as u64);
        written.is_ok_and(|written| written == record.len() + END_OF_HALF.len())
            && self.file.write_all_at(&header, (half.start() + offset) as u64).is_ok()
    }

    /// Removes all records of a half.
    pub(super) fn clear(&self, half: Half) {
        // If this fails, the records are delivered again after a kill.
        let _ = self.file.write_all_at(&END_OF_HALF, half.start() as u64);
    }

    /// Whether the file still has its name, so that another process would find it.
    pub(super) fn is_in_place(&self) -> bool {
        let (own, named) = (self.file.metadata(), fs::metadata(&self.path));
        own.is_ok_and(|own| named.is_ok_and(|named| (own.dev(), own.ino()) == (named.dev(), named.ino())))
    }

    /// Deletes the file.
    pub(super) fn delete(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl OrphanedLog {
    /// The records in it.
    pub(super) fn records(&self) -> impl Iterator<Item = &[u8]> {
        records(&self.content)
    }

    /// Deletes the file, once its records are somewhere else.
    pub(super) fn delete(self) {
        // If the file cannot be deleted, it is at least empty.
        let _ = self.file.set_len(0);
        let _ = fs::remove_file(&self.path);
    }
}

/// The logs with records of this spool whose processes were killed. Empty ones are deleted.
pub(super) fn take_orphans(place: &LogPlace) -> Vec<OrphanedLog> {
    let mut orphans = Vec::new();
    if check_is_private(&place.directory).is_err() {
        return orphans;
    }
    for path in list_logs(&place.directory) {
        // The kernel releases the lock when a process ends, however it ends.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !path.exists() {
            continue;
        }
        let Some(content) = read_log(&file, place) else { continue };
        let orphan = OrphanedLog { path, file, content };
        if orphan.records().next().is_some() { orphans.push(orphan) } else { orphan.delete() }
    }
    orphans
}

/// Visits the records of this spool in all logs of the directory, beside the processes that write them.
pub fn visit_records(place: &LogPlace, mut visit: impl FnMut(&[u8])) {
    for path in list_logs(&place.directory) {
        let content = File::open(path).ok().and_then(|file| read_log(&file, place));
        content.iter().flat_map(|content| records(content)).for_each(&mut visit);
    }
}

/// Fails if other users have access to the directory: with write access they could forge records.
fn check_is_private(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    if metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "other users have access to the directory"))
}

fn list_logs(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION))
        .collect();
    paths.sort();
    paths
}

/// The content of a log; `None` if it cannot be read, or is of another spool.
fn read_log(file: &File, place: &LogPlace) -> Option<Vec<u8>> {
    let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
    let mut content = vec![0; length.min(FILE_BYTES)];
    file.read_exact_at(&mut content, 0).ok()?;
    let header = file_header(place).ok()?;
    content.starts_with(&header).then_some(content)
}

fn file_header(place: &LogPlace) -> io::Result<Vec<u8>> {
    let path = std::path::absolute(&place.spool_directory)?;
    let path = path.as_os_str().as_bytes();
    let length = u32::try_from(path.len()).unwrap_or(u32::MAX);
    let header = [MAGIC.as_slice(), &length.to_le_bytes(), path].concat();
    if header.len() > FILE_HEADER_BYTES {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    Ok(header)
}

fn record_header(length: usize) -> Option<[u8; RECORD_HEADER_BYTES]> {
    let length = u32::try_from(length).ok()?;
    let mut header = [0; RECORD_HEADER_BYTES];
    let (direct, inverted) = header.split_at_mut(4);
    direct.copy_from_slice(&length.to_le_bytes());
    inverted.copy_from_slice(&(!length).to_le_bytes());
    Some(header)
}

/// The records in both halves of a log.
fn records(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    [Half::First, Half::Second].into_iter().flat_map(|half| {
        let mut rest = content.get(half.start()..).unwrap_or_default();
        rest = rest.get(..HALF_BYTES).unwrap_or(rest);
        std::iter::from_fn(move || {
            let (header, following) = rest.split_first_chunk::<RECORD_HEADER_BYTES>()?;
            let (length, _) = header.split_first_chunk::<4>()?;
            let length = u32::from_le_bytes(*length) as usize;
            let (record, next) = following.split_at_checked(length)?;
            rest = next;
            (length > 0 && record_header(length) == Some(*header)).then_some(record)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;
    use crate::record::testing::memory_directory;

    /// A directory in memory, and a log in it.
    fn log_in_memory() -> (tempfile::TempDir, LogPlace, WriteAheadLog) {
        let directory = memory_directory();
        let place = LogPlace {
            directory: directory.path().to_owned(),
            outlives_process: true,
            spool_directory: "/spool".into(),
        };
        let log = WriteAheadLog::create(&place).unwrap();
        (directory, place, log)
    }

    fn visited(place: &LogPlace) -> Vec<String> {
        let mut records = Vec::new();
        visit_records(place, |record| records.push(String::from_utf8(record.to_vec()).unwrap()));
        records
    }

    /// Appends records to a half, one after the other.
    fn append_all(log: &WriteAheadLog, half: Half, records: &[&str]) {
        let mut offset = 0;
        for record in records {
            assert!(log.append(half, offset, record.as_bytes()));
            offset += RECORD_HEADER_BYTES + record.len();
        }
    }

    #[test]
    fn records_are_there_until_their_half_is_cleared_and_others_overwrite_them() {
        let (_directory, place, log) = log_in_memory();
        append_all(&log, Half::First, &["one", "two", "three"]);
        append_all(&log, Half::Second, &["four"]);
        assert_eq!(visited(&place), ["one", "two", "three", "four"]);
        log.clear(Half::First);
        assert_eq!(visited(&place), ["four"]);
        append_all(&log, Half::First, &["6"]);
        assert_eq!(visited(&place), ["6", "four"], "nothing older appears again");
        assert!(take_orphans(&place).is_empty(), "its process is alive");
        let other = LogPlace { spool_directory: "/spoo".into(), ..place.clone() };
        assert_eq!(visited(&other), [""; 0]);
        drop(log);
        assert!(take_orphans(&other).is_empty());
        let orphans = take_orphans(&place);
        assert_eq!(orphans[0].records().collect::<Vec<_>>(), [&b"6"[..], b"four"]);
        assert!(take_orphans(&place).is_empty(), "it is locked");
        orphans.into_iter().for_each(OrphanedLog::delete);
        assert_eq!(fs::read_dir(&place.directory).unwrap().count(), 0);
    }

    #[test]
    fn an_empty_log_of_a_killed_process_is_deleted() {
        let (_directory, place, log) = log_in_memory();
        append_all(&log, Half::First, &["one"]);
        log.clear(Half::First);
        assert!(log.is_in_place());
        drop(log);
        assert!(take_orphans(&place).is_empty());
        assert_eq!(fs::read_dir(&place.directory).unwrap().count(), 0);
    }

    #[test]
    fn there_is_no_log_where_other_users_have_access() {
        let (directory, place, log) = log_in_memory();
        append_all(&log, Half::First, &["one"]);
        drop(log);
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(WriteAheadLog::create(&place).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(take_orphans(&place).is_empty());
    }

    #[test]
    fn a_log_needs_a_directory_in_memory() {
        for (directory, expected) in
            [("/proc", io::ErrorKind::Unsupported), ("/proc/missing", io::ErrorKind::NotFound)]
        {
            let place = LogPlace {
                directory: directory.into(),
                outlives_process: true,
                spool_directory: "/spool".into(),
            };
            assert_eq!(WriteAheadLog::create(&place).unwrap_err().kind(), expected);
        }
    }

    #[test]
    fn a_half_takes_no_more_than_its_length() {
        let (_directory, place, log) = log_in_memory();
        let longest = "x".repeat(HALF_BYTES - 2 * RECORD_HEADER_BYTES);
        assert!(!log.append(Half::First, 1, longest.as_bytes()));
        append_all(&log, Half::Second, &["other half"]);
        append_all(&log, Half::First, &[&longest]);
        assert_eq!(visited(&place), [longest.as_str(), "other half"]);
    }

    proptest! {
        #[test]
        fn what_a_kill_leaves_is_whole_records_whatever_was_there_before(
            before in prop::collection::vec("[a-z]{1,30}", 0..8),
            after in prop::collection::vec("[A-Z]{1,30}", 0..8),
            torn in "[0-9]{1,30}",
            torn_bytes in 0_usize..30,
        ) {
            let (_directory, place, log) = log_in_memory();
            append_all(&log, Half::First, &before.iter().map(String::as_str).collect::<Vec<_>>());
            log.clear(Half::First);
            append_all(&log, Half::First, &after.iter().map(String::as_str).collect::<Vec<_>>());
            // The process was killed before the header of the next record was written.
            let end = after.iter().map(|record| RECORD_HEADER_BYTES + record.len()).sum::<usize>();
            let torn = &torn.as_bytes()[..torn_bytes.min(torn.len())];
            log.file.write_all_at(torn, (FILE_HEADER_BYTES + end + RECORD_HEADER_BYTES) as u64).unwrap();
            prop_assert_eq!(visited(&place), after);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let content = [vec![0; FILE_HEADER_BYTES], bytes].concat();
            let _ = records(&content).count();
        }
    }
}
