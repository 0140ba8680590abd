//! Afterwards: what was asked, what was answered, from where, and how many tokens it took.
//!
//! Knows finished exchanges, not requests in flight. A finished exchange goes through the
//! `writer` into the `spool`, and from there to each of the `sinks`.

pub mod estimate;
pub mod exchange;
pub mod line;
pub mod metrics;
pub mod redact;
pub mod sinks;
pub mod spool;
pub mod statistics;
pub mod writer;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{error, warn};
use tokio::runtime::Handle;

use self::exchange::{Exchange, Keep};
use self::metrics::Metrics;
use self::redact::Redaction;
use self::sinks::{jsonl, log_analytics};
use self::spool::Spool;
use self::writer::{Queue, Receipt};
use crate::config::Config;
use crate::credentials::Keyring;

/// How long the end waits for a disk.
const CLOSING: Duration = Duration::from_secs(10);
/// The sinks, as the spool and the metrics know them.
const JSONL: &str = "jsonl";
const LOG_ANALYTICS: &str = "log_analytics";
/// Where records are that Log Analytics refuses for good, in the spool's directory.
const DEAD_LETTERS: &str = "dead-letters.jsonl";
/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);

/// Where records go.
#[derive(Debug)]
pub struct Recorder {
    queue: Queue,
    metrics: Arc<Metrics>,
    redaction: Arc<ArcSwap<Redaction>>,
    /// Without a `record` block there is none.
    jsonl: Option<Arc<jsonl::Control>>,
    log_analytics: Option<Arc<log_analytics::Control>>,
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
    /// requests are only counted. Calls to other services are made on `runtime`, as whom
    /// `keyring` knows.
    ///
    /// # Errors
    /// [`RecordError`] for what cannot be opened.
    pub fn open(config: &Config, keyring: &Keyring, runtime: &Handle) -> Result<Self, RecordError> {
        let metrics = Arc::<Metrics>::default();
        let vaults = &config.key_vault;
        let Some(config) = &config.record else {
            let redaction = Arc::<ArcSwap<Redaction>>::default();
            let (queue, writer) = writer::start(None, &redaction, &metrics)?;
            return Ok(Self {
                queue,
                metrics,
                redaction,
                jsonl: None,
                log_analytics: None,
                threads: Mutex::new(vec![writer]),
            });
        };
        let in_spool =
            |problem| RecordError::Spool { path: config.spool.path.display().to_string(), problem };
        let mut sinks = Vec::new();
        sinks.extend(config.jsonl.as_ref().map(|_| JSONL));
        sinks.extend(config.log_analytics.as_ref().map(|_| LOG_ANALYTICS));
        let opened = Spool::open(&config.spool.path, config.spool.maximum, &sinks);
        let (spool, readers) = opened.map_err(in_spool)?;
        let mut threads = Vec::new();
        let (mut jsonl, mut log_analytics) = (None, None);
        for reader in readers {
            if let (JSONL, Some(file)) = (reader.sink(), &config.jsonl) {
                let in_jsonl =
                    |problem| RecordError::Jsonl { path: file.path.display().to_string(), problem };
                let (control, thread) = jsonl::start(file, reader, &metrics).map_err(in_jsonl)?;
                jsonl = Some(control);
                threads.push(thread);
            } else if let Some(table) = &config.log_analytics {
                let dead = config.spool.path.join(DEAD_LETTERS);
                let token = keyring.token(&table.credential, vaults);
                let (control, thread) =
                    log_analytics::start(table, token, dead, reader, &metrics, runtime.clone())?;
                log_analytics = Some(control);
                threads.push(thread);
            }
        }
        let redaction = Arc::new(ArcSwap::from_pointee(Redaction::new(config.redact.clone())));
        let (queue, writer) = writer::start(Some(spool), &redaction, &metrics)?;
        threads.push(writer);
        Ok(Self { queue, metrics, redaction, jsonl, log_analytics, threads: Mutex::new(threads) })
    }

    /// Queues a record; returns at once, with word of when it is written. [`Recorder::wake`] has to
    /// follow.
    pub fn write(&self, exchange: Box<Exchange>, keep: Keep) -> Option<Receipt> {
        self.queue.write(exchange, keep)
    }

    /// Has written what is queued.
    pub fn wake(&self) {
        self.queue.wake();
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// From now on these patterns are taken out.
    pub fn redact(&self, patterns: Vec<regex::Regex>) {
        self.redaction.store(Arc::new(Redaction::new(patterns)));
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
        if let Some(log_analytics) = &self.log_analytics {
            log_analytics.hurry();
        }
        // Whoever else wants to end waits as well.
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + CLOSING;
        while threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                if self.queue.is_idle() {
                    warn!("not all records are delivered: the rest is in the spool, for the next process");
                } else {
                    error!("records that waited are lost: they could not be written within {CLOSING:?}");
                }
                return;
            }
            std::thread::sleep(LOOK);
        }
        if threads.drain(..).any(|thread| thread.join().is_err()) {
            warn!("a thread of the records ended early");
        }
    }
}
