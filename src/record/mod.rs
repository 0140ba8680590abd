//! Afterwards: what was asked, what was answered, from where, and how many tokens it took.
//!
//! Knows finished exchanges, not requests in flight. A finished exchange goes through the
//! `writer` into the `spool`, and from there to each of the `sinks`.

pub mod exchange;
pub mod redact;
pub mod sinks;
pub mod spool;
pub mod writer;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{error, warn};

use self::exchange::{Exchange, Keep};
use self::redact::Redaction;
use self::sinks::jsonl;
use self::spool::Spool;
use self::writer::{Queue, Receipt, Tally};
use crate::config;

/// How long the end waits for a disk.
const CLOSING: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);

/// Where records go.
#[derive(Debug)]
pub struct Recorder {
    queue: Queue,
    jsonl: Arc<jsonl::Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Why records cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file of JSON lines.
    #[error("record.jsonl.path: cannot open {path}: {problem}")]
    Jsonl {
        /// Its path.
        path: String,
        /// The system's reason.
        problem: io::Error,
    },
    /// The directory of the spool.
    #[error("record.spool.path: cannot use {path}: {problem}")]
    Spool {
        /// Its path.
        path: String,
        /// The system's reason.
        problem: io::Error,
    },
}

impl Recorder {
    /// Opens spool and sinks, and goes on where a process before left off.
    ///
    /// # Errors
    /// [`RecordError`] for what cannot be opened.
    pub fn open(config: &config::Record) -> Result<Self, RecordError> {
        let in_spool =
            |problem| RecordError::Spool { path: config.spool.path.display().to_string(), problem };
        let in_jsonl =
            |problem| RecordError::Jsonl { path: config.jsonl.path.display().to_string(), problem };
        let opened = Spool::open(&config.spool.path, config.spool.maximum, &["jsonl"]);
        let (spool, mut readers) = opened.map_err(in_spool)?;
        let reader = readers.pop().ok_or_else(|| in_spool(io::ErrorKind::NotFound.into()))?;
        let (jsonl, sink) = jsonl::start(&config.jsonl, reader).map_err(in_jsonl)?;
        let redaction = Redaction::new(config.redact.clone());
        let (queue, writer) = writer::start(spool, redaction).map_err(in_spool)?;
        Ok(Self { queue, jsonl, threads: Mutex::new(vec![writer, sink]) })
    }

    /// Queues a record; returns at once, with word of when it is written.
    pub fn write(&self, exchange: Box<Exchange>, keep: Keep) -> Option<Receipt> {
        self.queue.write(exchange, keep)
    }

    /// What became of records so far.
    pub fn tally(&self) -> &Tally {
        &self.queue.tally
    }

    /// Begins a new file of JSON lines.
    pub fn rotate(&self) {
        self.jsonl.rotate.store(true, Ordering::Relaxed);
    }

    /// Writes what is queued and ends the threads; waits for a disk that hangs only so long. What
    /// a sink could not take stays in the spool for the next process.
    pub fn close(&self) {
        self.queue.stop();
        self.jsonl.hurry.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = Instant::now() + CLOSING;
        while threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                error!("records that waited are lost: they could not be written within {CLOSING:?}");
                return;
            }
            std::thread::sleep(LOOK);
        }
        if threads.into_iter().any(|thread| thread.join().is_err()) {
            warn!("a thread of the records ended early");
        }
    }
}
