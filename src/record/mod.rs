//! Afterwards: what was asked, what was answered, from where, and how many tokens it took.
//!
//! Knows finished exchanges, not requests in flight. A finished exchange goes through the
//! `writer` into the `spool`, and from there to each of the `sinks`.

pub mod exchange;
pub mod metrics;
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
use self::metrics::Metrics;
use self::redact::Redaction;
use self::sinks::jsonl;
use self::spool::Spool;
use self::writer::{Queue, Receipt};
use crate::config;

/// How long the end waits for a disk.
const CLOSING: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);

/// Where records go.
#[derive(Debug)]
pub struct Recorder {
    queue: Queue,
    metrics: Arc<Metrics>,
    /// Without a `record` block there is none.
    jsonl: Option<Arc<jsonl::Control>>,
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
    /// The system has no more threads.
    #[error("cannot start the records' thread: {0}")]
    Thread(#[from] io::Error),
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
    /// Opens spool and sinks, and goes on where a process before left off. Without a `record` block
    /// requests are only counted.
    ///
    /// # Errors
    /// [`RecordError`] for what cannot be opened.
    pub fn open(config: Option<&config::Record>) -> Result<Self, RecordError> {
        let metrics = Arc::<Metrics>::default();
        let Some(config) = config else {
            let (queue, writer) = writer::start(None, Redaction::default(), &metrics)?;
            return Ok(Self { queue, metrics, jsonl: None, threads: Mutex::new(vec![writer]) });
        };
        let in_spool =
            |problem| RecordError::Spool { path: config.spool.path.display().to_string(), problem };
        let in_jsonl =
            |problem| RecordError::Jsonl { path: config.jsonl.path.display().to_string(), problem };
        let opened = Spool::open(&config.spool.path, config.spool.maximum, &["jsonl"]);
        let (spool, mut readers) = opened.map_err(in_spool)?;
        let reader = readers.pop().ok_or_else(|| in_spool(io::ErrorKind::NotFound.into()))?;
        let (jsonl, sink) = jsonl::start(&config.jsonl, reader, &metrics).map_err(in_jsonl)?;
        let redaction = Redaction::new(config.redact.clone());
        let (queue, writer) = writer::start(Some(spool), redaction, &metrics)?;
        Ok(Self { queue, metrics, jsonl: Some(jsonl), threads: Mutex::new(vec![writer, sink]) })
    }

    /// Queues a record; returns at once, with word of when it is written.
    pub fn write(&self, exchange: Box<Exchange>, keep: Keep) -> Option<Receipt> {
        self.queue.write(exchange, keep)
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Begins a new file of JSON lines.
    pub fn rotate(&self) {
        if let Some(jsonl) = &self.jsonl {
            jsonl.rotate.store(true, Ordering::Relaxed);
        }
    }

    /// Writes what is queued and ends the threads; waits for a disk that hangs only so long. What
    /// a sink could not take stays in the spool for the next process.
    pub fn close(&self) {
        self.queue.stop();
        if let Some(jsonl) = &self.jsonl {
            jsonl.hurry.store(true, Ordering::Relaxed);
        }
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
