//! The sink that writes records as lines of JSON to a file, and rotates it.
//!
//! The file has only whole lines at any moment, so that `jq` can follow it. During an upgrade two processes
//! append to the same file: each locks it for a write, and opens the new file if the other has rotated the
//! old one. A rotated file is compressed later, when no process can be writing to it any more.

mod recovery;
mod rotation;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use log::{error, warn};
use rustix::fs::{FlockOperation, flock};

use self::recovery::{open_and_repair, read_recent_request_ids, request_id};
use self::rotation::{COMPRESSION_DELAY, delete_and_compress_rotated_files, new_rotated_path};

pub use self::rotation::list_rotated_files;
use crate::config;
use crate::record::delivery;
use crate::record::metrics::Metrics;
use crate::record::sinks::incident::DeliveryIncident;
use crate::record::spool::{RecordBatch, SpoolRead, SpoolReader};
use crate::routing::episodes::duration_in_words;
use crate::system_error::describe;

/// About how many bytes are written at once.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// How long records are collected before the next write, to write fewer and larger pieces. No request waits
/// for it.
const BATCH_DELAY: Duration = Duration::from_millis(50);
/// How often a request to rotate is checked for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long to wait after a failed write.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The memory that an empty buffer of lines keeps.
const MAX_IDLE_BUFFER_BYTES: usize = 1024 * 1024;
/// How often the file is opened again because another process has rotated it meanwhile.
const MAX_REOPEN_ATTEMPTS: usize = 10;

/// Tells the sink's thread what to do.
#[derive(Debug, Default)]
pub struct JsonlControl {
    /// The file is to be rotated, though it is not full.
    pub is_rotation_requested: AtomicBool,
    /// The file is to be opened again: another program has renamed it.
    pub is_reopening_requested: AtomicBool,
    /// The process ends: records that cannot be written at once stay in the spool.
    pub is_shutting_down: AtomicBool,
}

/// Starts the thread of the sink. A file that cannot be opened is logged, and tried again until it can.
///
/// # Errors
/// If the thread cannot be started.
pub fn start_sink(
    config: &config::JsonlConfig,
    reader: SpoolReader,
    metrics: &Arc<Metrics>,
) -> io::Result<(Arc<JsonlControl>, JoinHandle<()>)> {
    let control = Arc::<JsonlControl>::default();
    let mut sink = JsonlSink {
        file: None,
        config: config.clone(),
        control: Arc::clone(&control),
        metrics: Arc::clone(metrics),
        recent_ids_for_segment: None,
        cleanup_lock: Arc::default(),
        pending_lines: Vec::new(),
        incident: None,
        last_open_attempt: None,
    };
    sink.open_if_due();
    sink.schedule_rotation_cleanup(COMPRESSION_DELAY);
    let thread = std::thread::Builder::new().name("jsonl".into()).spawn(move || sink.run(&reader))?;
    Ok((control, thread))
}

struct JsonlSink {
    /// `None` until it could be opened.
    file: Option<File>,
    config: config::JsonlConfig,
    control: Arc<JsonlControl>,
    metrics: Arc<Metrics>,
    /// The ids at the end of the file, for the segment of this name: its records may be in the file already.
    recent_ids_for_segment: Option<(String, HashSet<Box<[u8]>>)>,
    /// Only one thread at a time compresses and deletes rotated files.
    cleanup_lock: Arc<Mutex<()>>,
    pending_lines: Vec<u8>,
    /// Since when and why the file cannot be opened or written to. Each reason is logged once.
    incident: Option<DeliveryIncident>,
    last_open_attempt: Option<Instant>,
}

impl JsonlSink {
    fn run(&mut self, reader: &SpoolReader) {
        loop {
            if self.control.is_rotation_requested.swap(false, Ordering::Relaxed) {
                self.rotate_on_request();
            }
            if self.control.is_reopening_requested.swap(false, Ordering::Relaxed) {
                self.file = None;
                self.last_open_attempt = None;
                self.open_if_due();
            }
            match reader.wait_for_batch(MAX_BATCH_BYTES, POLL_INTERVAL) {
                SpoolRead::Batch(batch) => {
                    if !self.deliver_batch(&batch) {
                        return;
                    }
                    reader.mark_delivered(&batch);
                    self.pending_lines.shrink_to(MAX_IDLE_BUFFER_BYTES);
                    if self.pending_lines.len() < MAX_BATCH_BYTES / 2
                        && !self.control.is_shutting_down.load(Ordering::Relaxed)
                    {
                        std::thread::sleep(BATCH_DELAY);
                    }
                }
                SpoolRead::TimedOut => self.open_if_due(),
                SpoolRead::Closed => return,
            }
        }
    }

    /// Opens the file if it is not open. After a failure it is tried again, but not at once.
    fn open_if_due(&mut self) {
        if self.file.is_some()
            || self.last_open_attempt.is_some_and(|attempt| attempt.elapsed() < WRITE_RETRY_INTERVAL)
        {
            return;
        }
        self.last_open_attempt = Some(Instant::now());
        match open_and_repair(&self.config.path) {
            Ok(file) => {
                self.file = Some(file);
                self.on_write_succeeded();
            }
            Err(problem) => self.on_write_failed(&problem),
        }
    }

    /// Logs each reason once.
    fn on_write_failed(&mut self, problem: &io::Error) {
        let problem = describe(problem);
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

    /// Writes a batch, and tries again until it succeeds; `false` if the process ends first.
    fn deliver_batch(&mut self, batch: &RecordBatch) -> bool {
        self.pending_lines.clear();
        if !batch.may_contain_duplicates {
            self.recent_ids_for_segment = None;
        }
        if batch.may_contain_duplicates
            && self
                .recent_ids_for_segment
                .as_ref()
                .is_none_or(|(segment_name, _)| segment_name != batch.segment_name())
        {
            self.recent_ids_for_segment =
                Some((batch.segment_name().to_owned(), read_recent_request_ids(&self.config.path)));
        }
        let delivered_ids =
            self.recent_ids_for_segment.as_ref().map(|(_, ids)| ids).filter(|_| batch.may_contain_duplicates);
        let mut count = 0;
        for record in batch.records() {
            if delivered_ids.is_some_and(|ids| request_id(record).is_some_and(|id| ids.contains(id))) {
                continue;
            }
            self.pending_lines.extend_from_slice(record);
            self.pending_lines.push(b'\n');
            count += 1;
        }
        loop {
            match self.write_lines() {
                Ok(()) => break,
                Err(problem) => {
                    self.metrics.count_records(delivery::JSONL, "retried", count);
                    self.on_write_failed(&problem);
                    if self.control.is_shutting_down.load(Ordering::Relaxed) {
                        return false;
                    }
                    std::thread::sleep(WRITE_RETRY_INTERVAL);
                }
            }
        }
        self.on_write_succeeded();
        self.metrics.count_records(delivery::JSONL, "delivered", count);
        true
    }

    /// Writes the pending lines, all or none of them. The lock keeps another process from writing at the same
    /// time.
    fn write_lines(&mut self) -> io::Result<()> {
        let file = self.take_current_file_locked()?;
        let written = self.write_locked_and_rotate_if_full(&file);
        let _ = flock(&file, FlockOperation::Unlock);
        self.file = Some(file);
        written
    }

    /// Takes the file of the configured name out of `file` and locks it. Opens it first if it is not open, or
    /// again if another process has rotated it.
    fn take_current_file_locked(&mut self) -> io::Result<File> {
        for _ in 0..MAX_REOPEN_ATTEMPTS {
            let file = match self.file.take() {
                Some(file) => file,
                None => open_and_repair(&self.config.path)?,
            };
            flock(&file, FlockOperation::LockExclusive)?;
            let opened = file.metadata()?;
            let named = fs::metadata(&self.config.path);
            if named.is_ok_and(|named| opened.ino() == named.ino() && opened.dev() == named.dev()) {
                return Ok(file);
            }
            // Closing the old file releases its lock.
        }
        Err(io::Error::other("another process keeps renaming the file"))
    }

    /// Writes the pending lines to the locked file, and rotates it if it is then full.
    fn write_locked_and_rotate_if_full(&self, mut file: &File) -> io::Result<()> {
        let length_before = file.metadata()?.len();
        file.write_all(&self.pending_lines).inspect_err(|_| {
            let _ = file.set_len(length_before);
        })?;
        if length_before + self.pending_lines.len() as u64 >= self.config.rotate_at_bytes {
            self.rotate_locked();
        }
        Ok(())
    }

    /// Rotates the file unless it is empty.
    fn rotate_on_request(&mut self) {
        match self.take_current_file_locked() {
            Ok(file) => {
                if file.metadata().is_ok_and(|metadata| metadata.len() > 0) {
                    self.rotate_locked();
                }
                let _ = flock(&file, FlockOperation::Unlock);
                self.file = Some(file);
            }
            Err(problem) => warn!("cannot rotate {}: {}", self.config.path.display(), describe(&problem)),
        }
    }

    /// Rotates the locked file.
    fn rotate_locked(&self) {
        let path = &self.config.path;
        match fs::rename(path, new_rotated_path(path, SystemTime::now())) {
            // The next write finds no file of that name and creates it.
            Ok(()) => self.schedule_rotation_cleanup(COMPRESSION_DELAY),
            Err(problem) => warn!("cannot rotate {}: {}", path.display(), describe(&problem)),
        }
    }

    /// Compresses and deletes rotated files after a delay, on a thread of its own.
    fn schedule_rotation_cleanup(&self, delay: Duration) {
        let (path, max_files) = (self.config.path.clone(), self.config.max_rotated_files);
        let cleanup_lock = Arc::clone(&self.cleanup_lock);
        let cleanup = move || {
            std::thread::sleep(delay);
            let _guard = cleanup_lock.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(problem) = delete_and_compress_rotated_files(&path, max_files) {
                let problem = describe(&problem);
                warn!("cannot compress or delete rotated files of {}: {problem}", path.display());
            }
        };
        let _ = std::thread::Builder::new().name("tidy".into()).spawn(cleanup);
    }
}
