//! Afterwards: what was asked, what was answered, from where, and how many tokens it took.
//!
//! Knows finished exchanges, not requests in flight. A finished exchange goes through the
//! `writer` into the `spool`, and from there to each of the `sinks`.

pub mod exchange;
pub mod latency_histogram;
pub mod line;
pub mod metrics;
pub mod redact;
pub mod render;
pub mod sinks;
pub mod spool;
pub mod statistics;
pub mod token_estimate;
pub mod writer;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{error, warn};
use tokio::runtime::Handle;

use self::exchange::{CapturePolicy, FinishedExchange};
use self::metrics::Metrics;
use self::redact::Redactor;
use self::sinks::{jsonl, log_analytics};
use self::spool::Spool;
use self::writer::{RecordQueue, WriteReceipt};
use crate::config::Config;
use crate::credentials::Keyring;

/// How long the end waits for a disk.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// The sinks, as the spool and the metrics know them.
const JSONL_SINK: &str = "jsonl";
const LOG_ANALYTICS_SINK: &str = "log_analytics";
/// Where records are that Log Analytics refuses for good, in the spool's directory.
const DEAD_LETTER_FILE_NAME: &str = "dead-letters.jsonl";
/// How often it looks.
const SHUTDOWN_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Where records go.
#[derive(Debug)]
pub struct Recorder {
    queue: RecordQueue,
    metrics: Arc<Metrics>,
    redactor: Arc<ArcSwap<Redactor>>,
    /// Without a `record` block there is none.
    jsonl: Option<Arc<jsonl::JsonlControl>>,
    log_analytics: Option<Arc<log_analytics::LogAnalyticsControl>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Why records cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The file of JSON lines.
    #[error("record.jsonl.path: cannot open {path}: {io_error}")]
    JsonlFile {
        /// Its path.
        path: String,
        /// The system's reason.
        io_error: io::Error,
    },
    /// The system has no more threads.
    #[error("cannot start the records' thread: {0}")]
    ThreadStart(#[from] io::Error),
    /// The directory of the spool.
    #[error("record.spool.path: cannot use {path}: {io_error}")]
    SpoolDirectory {
        /// Its path.
        path: String,
        /// The system's reason.
        io_error: io::Error,
    },
}

impl Recorder {
    /// Opens spool and sinks, and goes on where a process before left off. Without a `record` block
    /// requests are only counted. Calls to other services are made on `runtime`, as whom
    /// `keyring` knows.
    ///
    /// # Errors
    /// [`RecorderError`] for what cannot be opened.
    pub fn start(config: &Config, keyring: &Keyring, runtime: &Handle) -> Result<Self, RecorderError> {
        let metrics = Arc::<Metrics>::default();
        let vaults = &config.key_vault;
        let Some(config) = &config.record else {
            let redactor = Arc::<ArcSwap<Redactor>>::default();
            let (queue, writer) = writer::start_writer(None, &redactor, &metrics)?;
            return Ok(Self {
                queue,
                metrics,
                redactor,
                jsonl: None,
                log_analytics: None,
                threads: Mutex::new(vec![writer]),
            });
        };
        let spool_error = |io_error| RecorderError::SpoolDirectory {
            path: config.spool.directory.display().to_string(),
            io_error,
        };
        let mut sink_names = Vec::new();
        sink_names.extend(config.jsonl.as_ref().map(|_| JSONL_SINK));
        sink_names.extend(config.log_analytics.as_ref().map(|_| LOG_ANALYTICS_SINK));
        let opened = Spool::open(&config.spool.directory, config.spool.max_bytes, &sink_names);
        let (spool, readers) = opened.map_err(spool_error)?;
        let mut threads = Vec::new();
        let (mut jsonl, mut log_analytics) = (None, None);
        for reader in readers {
            if let (JSONL_SINK, Some(file)) = (reader.sink_name(), &config.jsonl) {
                let jsonl_error =
                    |io_error| RecorderError::JsonlFile { path: file.path.display().to_string(), io_error };
                let (control, thread) = jsonl::start_sink(file, reader, &metrics).map_err(jsonl_error)?;
                jsonl = Some(control);
                threads.push(thread);
            } else if let Some(table) = &config.log_analytics {
                let dead_letter_path = config.spool.directory.join(DEAD_LETTER_FILE_NAME);
                let token = keyring.entra_token(&table.credential, vaults);
                let (control, thread) = log_analytics::start_sink(
                    table,
                    token,
                    dead_letter_path,
                    reader,
                    &metrics,
                    runtime.clone(),
                )?;
                log_analytics = Some(control);
                threads.push(thread);
            }
        }
        let redactor = Arc::new(ArcSwap::from_pointee(Redactor::new(config.redaction_patterns.clone())));
        let (queue, writer) = writer::start_writer(Some(spool), &redactor, &metrics)?;
        threads.push(writer);
        Ok(Self { queue, metrics, redactor, jsonl, log_analytics, threads: Mutex::new(threads) })
    }

    /// Queues a record; returns at once, with word of when it is written. [`Recorder::wake_writer`] has to
    /// follow.
    pub fn enqueue(&self, exchange: Box<FinishedExchange>, policy: CapturePolicy) -> Option<WriteReceipt> {
        self.queue.enqueue(exchange, policy)
    }

    /// Has written what is queued.
    pub fn wake_writer(&self) {
        self.queue.wake_writer();
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// From now on these patterns are taken out.
    pub fn set_redaction_patterns(&self, patterns: Vec<regex::Regex>) {
        self.redactor.store(Arc::new(Redactor::new(patterns)));
    }

    /// Begins a new file of JSON lines.
    pub fn request_jsonl_rotation(&self) {
        if let Some(jsonl) = &self.jsonl {
            jsonl.is_rotation_requested.store(true, Ordering::Relaxed);
        }
    }

    /// Writes what is queued and ends the threads; waits for a disk that hangs only so long. What
    /// a sink could not take stays in the spool for the next process.
    pub fn shut_down(&self) {
        self.queue.stop();
        if let Some(jsonl) = &self.jsonl {
            jsonl.is_shutting_down.store(true, Ordering::Relaxed);
        }
        if let Some(log_analytics) = &self.log_analytics {
            log_analytics.begin_shutdown();
        }
        // Whoever else wants to end waits as well.
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
        while threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                if self.queue.is_idle() {
                    warn!("not all records are delivered: the rest is in the spool, for the next process");
                } else {
                    error!(
                        "records that waited are lost: they could not be written within {SHUTDOWN_TIMEOUT:?}"
                    );
                }
                return;
            }
            std::thread::sleep(SHUTDOWN_POLL_INTERVAL);
        }
        if threads.drain(..).any(|thread| thread.join().is_err()) {
            warn!("a thread of the records ended early");
        }
    }
}
