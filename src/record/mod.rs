//! Records: what happens to an exchange after it has finished.
//!
//! A finished exchange is counted in `metrics` and `statistics`, and kept in `recent_trouble` if it did not go well; its
//! record is made (`render`, `line`) and written (`writer`) to the file of records, and to the `spool`, from which each of
//! the `sinks` delivers. What takes long, or may wait for a disk, has threads of its own. Requests in flight are not
//! known here.

pub mod affinity;
pub mod affinity_statistics;
pub mod attempt_errors;
pub mod client_headers;
pub mod cost;
pub mod cost_statistics;
pub mod delivery;
pub mod exchange;
mod file_system;
pub mod latency_histogram;
pub mod line;
pub mod metrics;
mod missing_usage;
pub mod prompt_tokens;
pub mod recent_trouble;
pub mod redact;
pub mod refusal_counts;
pub mod render;
mod settlement;
pub mod shown_end;
pub mod sink_check;
pub mod sinks;
pub mod spool;
pub mod statistics;
pub mod stored_objects;
#[cfg(test)]
mod testing;
mod text_ranges;
pub mod token_estimate;
pub mod trace_context;
pub mod traces;
pub mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use log::{error, warn};
use tokio::runtime::Handle;

use self::cost::Pricing;
use self::delivery::{Backlog, DeliveryState, WriteReceipt};
use self::exchange::{CapturePolicy, FinishedExchange};
use self::file_system::is_remote;
use self::metrics::Metrics;
use self::redact::Redactor;
use self::sinks::{jsonl, log_analytics};
use self::spool::{Spool, SpoolView};
use self::stored_objects::StoredObjects;
use self::traces::TracesControl;
use self::writer::write_ahead_log::LogPlace;
use self::writer::{RecordAppender, RecordQueue};
use crate::config::{Config, JsonlConfig, SpoolConfig};
use crate::credentials::Keyring;
use crate::system_error::describe;

/// How long [`Recorder::shut_down`] waits for its threads: a disk may hang.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// The file in the spool's directory for records that Log Analytics rejects permanently.
const DEAD_LETTER_FILE_NAME: &str = "dead-letters.jsonl";
/// The unit sets this variable to `yes` beside `RuntimeDirectoryPreserve=yes`, which systemd does not tell (systemd.exec(5)).
const PRESERVE_VARIABLE: &str = "RUNTIME_DIRECTORY_PRESERVE";
/// How often [`Recorder::shut_down`] checks whether the threads have ended.
const SHUTDOWN_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The files that records are in now: rotated ones, oldest first, then the current one if it is there.
///
/// # Errors
/// If the directory cannot be read.
pub fn list_record_files(config: &JsonlConfig) -> io::Result<Vec<PathBuf>> {
    let mut files = jsonl::list_rotated_files(&config.path)?;
    files.extend(config.path.exists().then(|| config.path.clone()));
    Ok(files)
}

/// The file with the records that Log Analytics has rejected permanently.
pub fn dead_letter_file(spool: &SpoolConfig) -> PathBuf {
    spool.directory.join(DEAD_LETTER_FILE_NAME)
}

/// Counts finished exchanges and, with a `record` block in the configuration, writes their records.
#[derive(Debug)]
pub struct Recorder {
    queue: RecordQueue,
    metrics: Arc<Metrics>,
    /// `None` without a `record` block.
    spool_view: Option<SpoolView>,
    redactor: Arc<ArcSwap<Redactor>>,
    /// `None` without `prices`.
    pricing: Arc<ArcSwapOption<Pricing>>,
    /// The sinks that are configured: none without a `record` block.
    jsonl_control: Option<Arc<jsonl::JsonlControl>>,
    log_analytics_control: Option<Arc<log_analytics::LogAnalyticsControl>>,
    /// `None` without a `traces` block.
    traces_control: Option<TracesControl>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The spool or a sink.
#[derive(Debug)]
pub struct SinkState {
    /// Its name in metrics.
    pub name: &'static str,
    /// What it has not written or delivered.
    pub backlog: Backlog,
    /// How its delivery goes.
    pub delivery: DeliveryState,
}

/// The exporter of traces.
#[derive(Debug)]
pub struct TracesState {
    /// Requests that wait to be exported.
    pub queued: usize,
    /// How the delivery of spans goes.
    pub delivery: DeliveryState,
}

/// Why the recorder cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// A thread cannot be started.
    #[error("cannot start a thread for records: {}", describe(.0))]
    ThreadStart(#[from] io::Error),
}

impl Recorder {
    /// Opens the spool and starts the threads of the writer and the sinks. Records that a previous process
    /// left in the spool are delivered too. Without a `record` block, exchanges are only counted. The Log
    /// Analytics sink makes its calls on `runtime`, with a token from `keyring`. A file or directory that
    /// cannot be used is logged, and tried again until it can. With a `traces` block, spans are exported as well,
    /// with or without records.
    ///
    /// # Errors
    /// [`RecorderError`] if a thread cannot be started.
    pub fn start(config: &Config, keyring: &Keyring, runtime: &Handle) -> Result<Self, RecorderError> {
        let metrics = Arc::<Metrics>::default();
        let pricing = Arc::new(ArcSwapOption::from_pointee(Pricing::of(config)));
        let vaults = &config.key_vault;
        let exporter = config
            .traces
            .as_ref()
            .map(|traces| traces::start_exporter(traces, config, &metrics, runtime.clone()))
            .transpose()?;
        let (tracer, traces_control, mut threads) = match exporter {
            Some((tracer, control, thread)) => (Some(tracer), Some(control), vec![thread]),
            None => (None, None, Vec::new()),
        };
        let server = &config.server;
        let Some(config) = &config.record else {
            let redactor = Arc::<ArcSwap<Redactor>>::default();
            let appender = RecordAppender::new(None, None, false, tracer);
            let (queue, writer) =
                writer::start_writer(appender, None, server.worker_threads, &redactor, &pricing, &metrics)?;
            threads.push(writer);
            return Ok(Self {
                queue,
                metrics,
                spool_view: None,
                redactor,
                pricing,
                jsonl_control: None,
                log_analytics_control: None,
                traces_control,
                threads: Mutex::new(threads),
            });
        };
        let mut sink_names = Vec::new();
        sink_names.extend(config.jsonl.as_ref().map(|_| delivery::JSONL));
        sink_names.extend(config.log_analytics.as_ref().map(|_| delivery::LOG_ANALYTICS));
        metrics.expect_records(&sink_names);
        let (spool, readers) =
            Spool::open(&config.spool.directory, config.spool.max_bytes, &sink_names, Instant::now());
        let (mut jsonl, mut log_analytics) = (None, None);
        for reader in readers {
            if let (delivery::JSONL, Some(file)) = (reader.sink_name(), &config.jsonl) {
                let (control, thread) = jsonl::start_sink(file, reader, &metrics)?;
                jsonl = Some(control);
                threads.push(thread);
            } else if let Some(table) = &config.log_analytics {
                let dead_letter_path = dead_letter_file(&config.spool);
                let token = keyring.find_or_start_entra_token(&table.credential, vaults);
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
        let spool_view = Some(spool.view());
        // A file that may hang gets its records from the spool, by the sink's own thread.
        let directory = config.jsonl.as_ref().and_then(|file| file.path.parent());
        let is_local = !directory.is_some_and(is_remote);
        let line_file = jsonl.as_ref().filter(|_| is_local).map(|control| control.file());
        let appender = RecordAppender::new(Some(spool), line_file, log_analytics.is_some(), tracer);
        let log_place = LogPlace {
            directory: server.runtime_directory().to_owned(),
            outlives_process: std::env::var_os(PRESERVE_VARIABLE).is_some_and(|value| value == "yes"),
            spool_directory: config.spool.directory.clone(),
        };
        let (queue, writer) = writer::start_writer(
            appender,
            Some(log_place),
            server.worker_threads,
            &redactor,
            &pricing,
            &metrics,
        )?;
        threads.push(writer);
        Ok(Self {
            queue,
            metrics,
            spool_view,
            redactor,
            pricing,
            jsonl_control: jsonl,
            log_analytics_control: log_analytics,
            traces_control,
            threads: Mutex::new(threads),
        })
    }

    /// Counts an exchange and makes its record, or queues it for the writer. The receipt resolves when the record is in the
    /// kernel; it is `None` if it is there already, or if there will be none. Call [`Recorder::wake_writer`] before waiting
    /// for it.
    pub fn record(&self, exchange: Box<FinishedExchange>, policy: CapturePolicy) -> Option<WriteReceipt> {
        self.queue.record(exchange, policy)
    }

    /// Wakes the writer if somebody waits for it. One call is enough for several exchanges.
    pub fn wake_writer(&self) {
        self.queue.wake_writer();
    }

    /// The objects that have not ended.
    pub fn stored_objects(&self) -> &StoredObjects {
        self.queue.stored_objects()
    }

    /// The metrics of this process.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The spool and each sink, with its backlog and how its delivery goes; none without a `record` block.
    pub fn sinks(&self) -> Vec<SinkState> {
        let Some(spool_view) = &self.spool_view else { return Vec::new() };
        let backlogs = [(delivery::SPOOL, self.queue.backlog())].into_iter().chain(spool_view.backlogs());
        let sinks = backlogs.filter_map(|(name, backlog)| {
            Some(SinkState { name, backlog, delivery: self.metrics.deliveries.get(name)?.state() })
        });
        sinks.collect()
    }

    /// The exporter of traces and how its delivery goes; `None` without a `traces` block.
    pub fn traces(&self) -> Option<TracesState> {
        let queued = self.traces_control.as_ref()?.queued();
        Some(TracesState { queued, delivery: self.metrics.deliveries.get(delivery::TRACES)?.state() })
    }

    /// Gives the exporter of traces the backends after a reload.
    pub fn set_traced_backends(&self, before: &Config, after: &Config) {
        if let Some(traces) = &self.traces_control {
            traces.set_backends(before, after);
        }
    }

    /// Replaces the patterns that are redacted from prompts and completions, from the next record on.
    pub fn set_redaction_patterns(&self, patterns: Vec<regex::Regex>) {
        self.redactor.store(Arc::new(Redactor::new(patterns)));
    }

    /// Replaces the prices, from the next record on.
    pub fn set_pricing(&self, pricing: Option<Pricing>) {
        self.pricing.store(pricing.map(Arc::new));
    }

    /// The currency of the prices; `None` without prices.
    pub fn currency(&self) -> Option<String> {
        self.pricing.load().as_ref().map(|pricing| pricing.currency().to_owned())
    }

    /// Asks the JSON lines sink to rotate its file.
    pub fn request_jsonl_rotation(&self) {
        if let Some(jsonl) = &self.jsonl_control {
            jsonl.is_rotation_requested.store(true, Ordering::Relaxed);
        }
    }

    /// Asks the JSON lines sink to open its file again, because another program has renamed it. Returns false if
    /// there is no such sink.
    pub fn request_jsonl_reopening(&self) -> bool {
        let Some(jsonl) = &self.jsonl_control else { return false };
        jsonl.is_reopening_requested.store(true, Ordering::Relaxed);
        true
    }

    /// Writes the queued records and ends the threads, within `SHUTDOWN_TIMEOUT`. Records that a sink has
    /// not delivered by then stay in the spool for the next process.
    pub fn shut_down(&self) {
        // The writer ends first and closes the spool: the sinks end when they have read it to its end.
        self.queue.stop();
        if let Some(jsonl) = &self.jsonl_control {
            jsonl.is_shutting_down.store(true, Ordering::Relaxed);
        }
        if let Some(log_analytics) = &self.log_analytics_control {
            log_analytics.begin_shutdown();
        }
        if let Some(traces) = &self.traces_control {
            traces.begin_shutdown();
        }
        // The lock is held to the end, so that a second caller returns no earlier than the first.
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
        while threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                if self.queue.is_safe() {
                    warn!("not all records are delivered: the next process delivers the rest from the spool");
                } else {
                    error!(
                        "queued records are lost: they could not be written to the spool within \
                         {SHUTDOWN_TIMEOUT:?}. Is its disk slow or hanging?"
                    );
                }
                return;
            }
            std::thread::sleep(SHUTDOWN_POLL_INTERVAL);
        }
        if threads.drain(..).any(|thread| thread.join().is_err()) {
            warn!("a thread that writes or delivers records has panicked: records may be missing");
        }
    }
}
