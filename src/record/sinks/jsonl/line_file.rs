//! The file of the sink: whole lines are appended to it, and it is rotated.
//!
//! Two threads write to it: the one that has a record, at once, and the sink's thread, what has waited in the spool.
//! During an upgrade a second process does so as well. Each locks the file for a write.

use std::fs::{self, File};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{error, warn};
use rustix::fs::{FlockOperation, flock};

use super::recovery::{open_for_appending, repair_last_line};
use super::rotation::{COMPRESSION_DELAY, delete_and_compress_rotated_files, new_rotated_path};
use crate::config::JsonlConfig;
use crate::record::delivery;
use crate::record::metrics::Metrics;
use crate::record::sinks::incident::DeliveryIncident;
use crate::routing::episodes::duration_in_words;
use crate::system_error::describe;

/// How long a file that cannot be opened is not tried again.
const OPEN_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often the file is opened again because another process has rotated it meanwhile.
const MAX_REOPEN_ATTEMPTS: usize = 10;
/// How often the lock of another process is tried again.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_micros(500);
/// How much lower than that of requests the priority of compression is.
const COMPRESSION_NICENESS: i32 = 10;

/// The file of the configured name.
#[derive(Debug)]
pub struct LineFile {
    config: JsonlConfig,
    metrics: Arc<Metrics>,
    /// `None` until it could be opened.
    open: Option<OpenFile>,
    last_open_attempt: Option<Instant>,
    /// Since when and why the file cannot be opened or written to. Each reason is logged once.
    incident: Option<DeliveryIncident>,
    /// Only one thread at a time compresses and deletes rotated files.
    cleanup_lock: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// Its length after the last write of this process; 0 if there was none.
    length: u64,
}

/// The file, locked for one write. Dropping it releases the lock.
pub struct LockedFile<'a> {
    owner: &'a mut LineFile,
}

impl LineFile {
    /// The file of this configuration, opened if that is possible now. What is left of earlier rotations is tidied up.
    pub(super) fn new(config: &JsonlConfig, metrics: &Arc<Metrics>) -> Self {
        let mut file = Self {
            config: config.clone(),
            metrics: Arc::clone(metrics),
            open: None,
            last_open_attempt: None,
            incident: None,
            cleanup_lock: Arc::default(),
        };
        file.open_if_due();
        file.schedule_rotation_cleanup();
        file
    }

    /// Opens the file if it is not open. After a failure it is tried again, but not at once.
    pub(super) fn open_if_due(&mut self) {
        if self.open.is_some()
            || self.last_open_attempt.is_some_and(|attempt| attempt.elapsed() < OPEN_RETRY_INTERVAL)
        {
            return;
        }
        self.last_open_attempt = Some(Instant::now());
        match OpenFile::open(&self.config) {
            Ok(open) => {
                self.open = Some(open);
                self.on_write_succeeded();
            }
            Err(problem) => self.on_write_failed(&problem),
        }
    }

    /// Closes the file and opens the one that has the configured name now.
    pub(super) fn reopen(&mut self) {
        self.open = None;
        self.last_open_attempt = None;
        self.open_if_due();
    }

    /// Locks the file of the configured name for a write. Opens it first if it is not open, or again if another
    /// process has rotated it. Waits at most this long for another process.
    ///
    /// # Errors
    /// If the file cannot be opened or locked; `WouldBlock` if another process has locked it all the time.
    pub fn lock(&mut self, patience: Duration) -> io::Result<LockedFile<'_>> {
        for _ in 0..MAX_REOPEN_ATTEMPTS {
            let open = match self.open.take() {
                Some(open) => self.open.insert(open),
                None => self.open.insert(OpenFile::open(&self.config)?),
            };
            open.lock_within(patience)?;
            match open.check_name_and_length(&self.config) {
                Ok(true) => return Ok(LockedFile { owner: self }),
                // Closing the file releases its lock, too.
                Ok(false) => self.open = None,
                Err(problem) => {
                    self.open = None;
                    return Err(problem);
                }
            }
        }
        Err(io::Error::other("another process keeps renaming the file"))
    }

    /// Logs each reason once.
    pub fn on_write_failed(&mut self, problem: &io::Error) {
        let problem = match problem.kind() {
            io::ErrorKind::WouldBlock => "another program has locked it".to_owned(),
            _ => describe(problem),
        };
        let message = format!("cannot write to its file: {problem}");
        self.metrics.deliveries.on_failed(delivery::JSONL, &message, SystemTime::now());
        if self.incident.get_or_insert_with(|| DeliveryIncident::new(Instant::now())).is_news(&message) {
            let path = self.config.path.display();
            error!("records stay in the spool: cannot write to {path}: {problem}");
        }
    }

    fn on_write_succeeded(&mut self) {
        if let Some(incident) = self.incident.take() {
            self.metrics.deliveries.on_working(delivery::JSONL);
            let lasted = duration_in_words(incident.lasted(Instant::now()));
            warn!("records are written to {} again, after {lasted}", self.config.path.display());
        }
    }

    /// Rotates the file unless it is empty.
    pub(super) fn rotate_on_request(&mut self, patience: Duration) {
        let rotated = self.lock(patience).map(|locked| {
            if locked.owner.open.as_ref().is_some_and(|open| open.length > 0) {
                locked.rotate();
            }
        });
        if let Err(problem) = rotated {
            warn!("cannot rotate {}: {}", self.config.path.display(), describe(&problem));
        }
    }

    /// Compresses and deletes rotated files after a delay, on a thread of its own.
    fn schedule_rotation_cleanup(&self) {
        let (path, max_files) = (self.config.path.clone(), self.config.max_rotated_files);
        let cleanup_lock = Arc::clone(&self.cleanup_lock);
        let cleanup = move || {
            // On Linux the priority is that of the thread. If it cannot be lowered, compression is not worse.
            let _ = rustix::process::nice(COMPRESSION_NICENESS);
            std::thread::sleep(COMPRESSION_DELAY);
            let _guard = cleanup_lock.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(problem) = delete_and_compress_rotated_files(&path, max_files) {
                let problem = describe(&problem);
                warn!("cannot compress or delete rotated files of {}: {problem}", path.display());
            }
        };
        let _ = std::thread::Builder::new().name("tidy".into()).spawn(cleanup);
    }
}

impl OpenFile {
    fn open(config: &JsonlConfig) -> io::Result<Self> {
        let file = open_for_appending(&config.path)?;
        Ok(Self { file, length: 0 })
    }

    /// Locks the file against other processes.
    fn lock_within(&self, patience: Duration) -> io::Result<()> {
        let mut waited = Duration::ZERO;
        loop {
            match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if waited < patience => {
                    std::thread::sleep(LOCK_RETRY_INTERVAL);
                    waited += LOCK_RETRY_INTERVAL;
                }
                locked => return Ok(locked?),
            }
        }
    }

    /// Whether the locked file still has the configured name. Notes its length, and repairs its last line if another
    /// process has written to it: that one may have been killed while it did.
    fn check_name_and_length(&mut self, config: &JsonlConfig) -> io::Result<bool> {
        let opened = self.file.metadata()?;
        let named = fs::metadata(&config.path);
        if !named.is_ok_and(|named| opened.ino() == named.ino() && opened.dev() == named.dev()) {
            return Ok(false);
        }
        if opened.len() != self.length {
            repair_last_line(&self.file, opened.len())?;
            self.length = self.file.metadata()?.len();
        }
        Ok(true)
    }
}

impl LockedFile<'_> {
    /// Appends a line for each record, all or none of them, and rotates the file if it is then full.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn append<'r>(self, records: impl Iterator<Item = &'r [u8]>) -> io::Result<()> {
        let mut slices = Vec::with_capacity(records.size_hint().0 * 2);
        for record in records {
            slices.push(IoSlice::new(record));
            slices.push(IoSlice::new(b"\n"));
        }
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let Some(open) = &mut self.owner.open else { return Err(io::ErrorKind::NotFound.into()) };
        write_all_vectored(&open.file, &mut slices).inspect_err(|_| {
            let _ = open.file.set_len(open.length);
        })?;
        open.length += bytes as u64;
        let is_full = open.length >= self.owner.config.rotate_at_bytes;
        self.owner.on_write_succeeded();
        if is_full {
            self.rotate();
        }
        Ok(())
    }

    fn rotate(&self) {
        let path = &self.owner.config.path;
        match fs::rename(path, new_rotated_path(path, SystemTime::now())) {
            // The next write finds no file of that name and creates it.
            Ok(()) => self.owner.schedule_rotation_cleanup(),
            Err(problem) => warn!("cannot rotate {}: {}", path.display(), describe(&problem)),
        }
    }
}

impl Drop for LockedFile<'_> {
    fn drop(&mut self) {
        if let Some(open) = &self.owner.open {
            let _ = flock(&open.file, FlockOperation::Unlock);
        }
    }
}

fn write_all_vectored(mut file: &File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(problem) if problem.kind() == io::ErrorKind::Interrupted => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_file(directory: &std::path::Path, rotate_at_bytes: u64) -> LineFile {
        let path = directory.join("x.jsonl");
        LineFile::new(&JsonlConfig { path, rotate_at_bytes, max_rotated_files: 3 }, &Arc::default())
    }

    fn append(file: &mut LineFile, records: &[&str]) -> io::Result<()> {
        file.lock(Duration::ZERO)?.append(records.iter().map(|record| record.as_bytes()))
    }

    #[test]
    fn lines_are_whole_whatever_others_do_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.jsonl");
        let text = || fs::read_to_string(&path).unwrap();
        let mut file = line_file(directory.path(), 1000);
        append(&mut file, &["{\"time\":\"1", "{\"time\":\"2"]).unwrap();
        assert_eq!(text(), "{\"time\":\"1\n{\"time\":\"2\n");
        // Another process was killed while it wrote.
        let mut other = open_for_appending(&path).unwrap();
        other.write_all(b"{\"time\":\"2026-").unwrap();
        append(&mut file, &["3"]).unwrap();
        assert_eq!(text(), "{\"time\":\"1\n{\"time\":\"2\n3\n");
        // An operator empties it, or writes a line without its end.
        other.set_len(0).unwrap();
        append(&mut file, &["4"]).unwrap();
        other.write_all(b"a note").unwrap();
        append(&mut file, &["5"]).unwrap();
        assert_eq!(text(), "4\na note\n5\n");
        fs::rename(&path, directory.path().join("taken")).unwrap();
        append(&mut file, &["6"]).unwrap();
        fs::remove_file(&path).unwrap();
        append(&mut file, &["7"]).unwrap();
        assert_eq!(text(), "7\n");
    }

    #[test]
    fn a_full_file_is_rotated_and_one_that_another_process_has_rotated_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.jsonl");
        let (mut one, mut two) = (line_file(directory.path(), 10), line_file(directory.path(), 10));
        append(&mut one, &["123"]).unwrap();
        append(&mut two, &["456789"]).unwrap();
        assert!(!path.exists());
        append(&mut one, &["a"]).unwrap();
        append(&mut two, &["b"]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\n");
        assert_eq!(super::super::list_rotated_files(&path).unwrap().len(), 1);
    }

    #[test]
    fn a_lock_of_another_process_is_waited_for_only_so_long() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = line_file(directory.path(), 1000);
        let other = open_for_appending(&directory.path().join("x.jsonl")).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        assert_eq!(append(&mut file, &["1"]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(file.lock(2 * LOCK_RETRY_INTERVAL).is_err());
        flock(&other, FlockOperation::Unlock).unwrap();
        append(&mut file, &["1"]).unwrap();
        // Its own lock is released after each write.
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
