//! The sink that writes records as lines of JSON to a file, and rotates it.
//!
//! The file has only whole lines at any moment, so that `jq` can follow it. The writer of records appends them to it at
//! once (`line_file`). Those that could not be written, or that an earlier process has left, are in the spool: the
//! sink's thread writes them. During an upgrade two processes append to the same file: each locks it for a write, and
//! opens the new file if the other has rotated the old one. A rotated file is compressed later, when no process can be
//! writing to it any more.

mod line_file;
mod recovery;
mod rotation;

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::recovery::{read_recent_request_ids, request_id};

pub use self::line_file::LineFile;
pub use self::rotation::list_rotated_files;
use crate::config;
use crate::record::delivery;
use crate::record::metrics::Metrics;
use crate::record::spool::{RecordBatch, SpoolRead, SpoolReader};

/// About how many bytes are written at once.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// How long records are collected in the spool before the next write, to write fewer and larger pieces. No request
/// waits for it.
const BATCH_DELAY: Duration = Duration::from_millis(50);
/// How often a request to rotate is checked for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long to wait after a failed write.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long another process is waited for that has locked the file.
pub(in crate::record) const LOCK_PATIENCE: Duration = Duration::from_millis(50);

/// The sink, as the rest of the program sees it.
#[derive(Debug)]
pub struct JsonlControl {
    /// The file, which the writer of records appends to as well.
    file: Arc<Mutex<LineFile>>,
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
    let control = Arc::new(JsonlControl {
        file: Arc::new(Mutex::new(LineFile::new(config, metrics))),
        is_rotation_requested: AtomicBool::new(false),
        is_reopening_requested: AtomicBool::new(false),
        is_shutting_down: AtomicBool::new(false),
    });
    let mut sink = JsonlSink {
        config: config.clone(),
        control: Arc::clone(&control),
        metrics: Arc::clone(metrics),
        recent_ids_for_segment: None,
    };
    let thread = std::thread::Builder::new().name("jsonl".into()).spawn(move || sink.run(&reader))?;
    Ok((control, thread))
}

impl JsonlControl {
    /// The file of the sink.
    pub fn file(&self) -> Arc<Mutex<LineFile>> {
        Arc::clone(&self.file)
    }

    fn lock_file(&self) -> MutexGuard<'_, LineFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct JsonlSink {
    config: config::JsonlConfig,
    control: Arc<JsonlControl>,
    metrics: Arc<Metrics>,
    /// The ids at the end of the file, for the segment of this name: its records may be in the file already.
    recent_ids_for_segment: Option<(String, HashSet<Box<[u8]>>)>,
}

impl JsonlSink {
    fn run(&mut self, reader: &SpoolReader) {
        loop {
            if self.control.is_rotation_requested.swap(false, Ordering::Relaxed) {
                self.control.lock_file().rotate_on_request(LOCK_PATIENCE);
            }
            if self.control.is_reopening_requested.swap(false, Ordering::Relaxed) {
                self.control.lock_file().reopen();
            }
            match reader.wait_for_batch(MAX_BATCH_BYTES, POLL_INTERVAL) {
                SpoolRead::Batch(batch) => {
                    if !self.deliver_batch(&batch) {
                        return;
                    }
                    reader.mark_delivered(&batch);
                    if batch.byte_len() < MAX_BATCH_BYTES / 2
                        && !self.control.is_shutting_down.load(Ordering::Relaxed)
                    {
                        std::thread::sleep(BATCH_DELAY);
                    }
                }
                SpoolRead::TimedOut => self.control.lock_file().open_if_due(),
                SpoolRead::Closed => return,
            }
        }
    }

    /// Writes a batch, and tries again until it succeeds; `false` if the process ends first.
    fn deliver_batch(&mut self, batch: &RecordBatch) -> bool {
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
        let is_new = |record: &&[u8]| {
            !delivered_ids.is_some_and(|ids| request_id(record).is_some_and(|id| ids.contains(id)))
        };
        let records: Vec<&[u8]> = batch.records().filter(is_new).collect();
        let count = records.len() as u64;
        loop {
            let mut file = self.control.lock_file();
            let locked = file.lock(LOCK_PATIENCE);
            match locked.and_then(|locked| locked.append(records.iter().copied())) {
                Ok(()) => break,
                Err(problem) => {
                    file.on_write_failed(&problem);
                    drop(file);
                    self.metrics.count_records(delivery::JSONL, "retried", count);
                    if self.control.is_shutting_down.load(Ordering::Relaxed) {
                        return false;
                    }
                    std::thread::sleep(WRITE_RETRY_INTERVAL);
                }
            }
        }
        self.metrics.count_records(delivery::JSONL, "delivered", count);
        true
    }
}
