//! Makes records of finished exchanges, and writes them on a thread of its own, so that a slow disk delays no request.
//!
//! A short record is made by the thread that served the request, and goes to `rendered_records`, and so to the
//! `write_ahead_log`. At a high rate, or if its record is long or takes longer, an exchange goes to the `queue`, and the
//! writer makes the record. It writes all that is there at once (`appender`).

mod appender;
mod queue;
mod record_context;
mod rendered_records;
pub mod write_ahead_log;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread, park_timeout, sleep};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use log::{error, warn};
use tokio::sync::oneshot;

pub(super) use self::appender::RecordAppender;
use self::queue::{Charge, Dropped, ExchangeQueue, QueuedExchange};
use self::record_context::RecordContext;
use self::rendered_records::RenderedRecords;
use self::write_ahead_log::LogPlace;
use super::cost::Pricing;
use super::delivery::{self, Backlog, WriteReceipt};
use super::exchange::{CapturePolicy, FinishedExchange};
use super::metrics::Metrics;
use super::redact::Redactor;
use super::render::is_access_logged;
use super::stored_objects::StoredObjects;
use super::token_estimate::TokenEstimator;

/// About how many bytes are written at once.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// How often the spool is searched for segments of processes that have ended.
const ORPHAN_SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is checked whether the spool's directory is there.
const SPOOL_MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long records are collected that nobody waits for, to wake the thread less often.
const BATCH_DELAY: Duration = Duration::from_millis(10);
/// A record of an exchange that holds more than this is made by the writer: it takes longer, and to have it in the
/// write-ahead log as well costs more than to wake the writer.
const MAX_CONTENT_RENDERED_AT_ONCE: usize = 16 * 1024;
/// How often it is checked whether the tokenizers are idle.
const TOKENIZER_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How much of a text is tokenized while at most so many exchanges wait. The more wait, the rougher are the
/// estimates, so that records are not late when many of them have no reported usage.
const TOKENIZED_BYTES_BY_BACKLOG: [(usize, usize); 3] = [(16, 64 * 1024), (256, 8 * 1024), (4096, 1024)];
/// How much of a text is tokenized while more exchanges wait.
const MIN_TOKENIZED_BYTES: usize = 128;

/// The queue of the writer, as the rest of the program sees it.
#[derive(Debug)]
pub struct RecordQueue {
    shared: Arc<SharedWriterState>,
    writer_thread: Thread,
}

/// What the threads that write records share.
struct SharedWriterState {
    queue: ExchangeQueue,
    rendered: RenderedRecords,
    appender: Mutex<RecordAppender>,
    writes_records: bool,
    makes_traces: bool,
    context: RecordContext,
    dropped_records: AtomicU64,
    lightened_records: AtomicU64,
    is_overflowing: AtomicBool,
}

/// Starts the threads of the writer, for exchanges of so many threads. Without a place for write-ahead logs, exchanges are
/// counted, but not written.
///
/// # Errors
/// If a thread cannot be started.
pub(super) fn start_writer(
    appender: RecordAppender,
    log_place: Option<LogPlace>,
    threads: usize,
    redactor: &Arc<ArcSwap<Redactor>>,
    pricing: &Arc<ArcSwapOption<Pricing>>,
    metrics: &Arc<Metrics>,
) -> io::Result<(RecordQueue, JoinHandle<()>)> {
    let shared = Arc::new(SharedWriterState {
        queue: ExchangeQueue::default(),
        makes_traces: appender.makes_traces(),
        appender: Mutex::new(appender),
        writes_records: log_place.is_some(),
        rendered: RenderedRecords::new(threads, log_place),
        context: RecordContext {
            redactor: Arc::clone(redactor),
            pricing: Arc::clone(pricing),
            metrics: Arc::clone(metrics),
            stored_objects: StoredObjects::default(),
        },
        dropped_records: AtomicU64::new(0),
        lightened_records: AtomicU64::new(0),
        is_overflowing: AtomicBool::new(false),
    });
    let thread_shared = Arc::clone(&shared);
    let write = move || write_queued_records(&thread_shared);
    let thread = std::thread::Builder::new().name("records".into()).spawn(write)?;
    let writer_thread = thread.thread().clone();
    let (slow_shared, woken_thread) = (Arc::clone(&shared), writer_thread.clone());
    let run_slow = move || prepare_slow_records(&slow_shared, &woken_thread);
    std::thread::Builder::new().name("slow records".into()).spawn(run_slow)?;
    Ok((RecordQueue { shared, writer_thread }, thread))
}

impl RecordQueue {
    /// Counts an exchange and makes its record, or queues it for the writer. The receipt is `None` if nothing is to be
    /// waited for: the record is in the kernel, or there will be none. Call [`RecordQueue::wake_writer`] if there is one: one
    /// call is enough for several exchanges.
    pub fn record(&self, mut exchange: Box<FinishedExchange>, policy: CapturePolicy) -> Option<WriteReceipt> {
        exchange.shorten_content(policy, |body_bytes| self.shared.queue.max_sample_bytes(body_bytes));
        let objects = &self.shared.context.stored_objects;
        let is_slow = exchange.is_slow_to_render(policy) || objects.may_wait_for_decision(&exchange);
        if !is_slow && self.shared.renders_at_once(&exchange) {
            let (receipt, wakes_writer) = self.shared.render(exchange, policy);
            if wakes_writer {
                self.writer_thread.unpark();
            }
            return receipt;
        }
        let (written_sender, receipt) = if self.shared.writes_records {
            let (written_sender, receipt) = oneshot::channel();
            (Some(written_sender), Some(receipt))
        } else {
            (None, None)
        };
        let exchange = QueuedExchange::new(exchange, policy, written_sender);
        let (is_only_ready, dropped) = self.shared.queue.push(exchange, is_slow);
        self.shared.count_dropped(dropped);
        // With records, the caller wakes the writer, once for several exchanges.
        if is_only_ready && !self.shared.writes_records {
            self.writer_thread.unpark();
        }
        receipt
    }

    /// Wakes the writer if the ends of responses wait for it.
    pub fn wake_writer(&self) {
        if self.shared.rendered.has_receipts() || self.shared.queue.has_ready() {
            self.writer_thread.unpark();
        }
    }

    /// The objects that have not ended.
    pub fn stored_objects(&self) -> &StoredObjects {
        &self.shared.context.stored_objects
    }

    /// The exchanges whose records are not written yet.
    pub fn backlog(&self) -> Backlog {
        self.shared.queue.backlog().plus(self.shared.rendered.backlog())
    }

    /// Whether everything is written, if only to a write-ahead log.
    pub fn is_safe(&self) -> bool {
        self.shared.queue.is_idle() && self.shared.rendered.is_safe()
    }

    /// Ends the threads once they have written what is queued.
    pub fn stop(&self) {
        self.shared.queue.stop();
    }
}

impl std::fmt::Debug for SharedWriterState {
    /// Nothing of the exchanges: they contain prompts.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedWriterState").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl SharedWriterState {
    fn lock_appender(&self) -> MutexGuard<'_, RecordAppender> {
        self.appender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the thread that has served the request makes its record: without patterns to search for, traces, lines of
    /// the access log, or what other processes may have to decide.
    fn renders_at_once(&self, exchange: &FinishedExchange) -> bool {
        self.writes_records
            && !self.makes_traces
            && !is_access_logged()
            && self.context.redactor.load().is_empty()
            && exchange.content_bytes() <= MAX_CONTENT_RENDERED_AT_ONCE
            && !exchange.fetches_stored_object()
            && self.rendered.is_open()
    }

    /// Counts an exchange and makes its record. Returns a receipt if that is not in a write-ahead log, and otherwise whether
    /// the caller is to wake the writer.
    fn render(
        &self,
        mut exchange: Box<FinishedExchange>,
        policy: CapturePolicy,
    ) -> (Option<WriteReceipt>, bool) {
        let context = &self.context;
        let rendered = context.catch_panic(|| {
            let ended_at = exchange.ended_at();
            context.make_record(&mut exchange, policy, |record| {
                self.rendered.push(ended_at, |buffer| record.write_json(buffer))
            })
        });
        rendered.unwrap_or_default()
    }

    /// Counts and logs what a full queue has dropped.
    fn count_dropped(&self, dropped: Dropped) {
        let Dropped { lightened_count, largest_client, records } = dropped;
        if lightened_count == 0 && records.is_empty() {
            return;
        }
        let dropped_count = records.len() as u64;
        self.context.metrics.count_records(delivery::SPOOL, "without_content", lightened_count);
        self.context.metrics.count_records(delivery::SPOOL, "dropped", dropped_count);
        self.lightened_records.fetch_add(lightened_count, Ordering::Relaxed);
        self.dropped_records.fetch_add(dropped_count, Ordering::Relaxed);
        for record in records {
            let (mut exchange, ..) = record.into_parts();
            let (usage, is_estimated) = exchange.known_usage().unzip();
            let cost = self.context.pricing.load().as_ref().map(|pricing| pricing.cost_of_parsed(&exchange));
            drop(exchange.settle_limits(usage.as_ref(), is_estimated.unwrap_or_default(), cost));
            self.context.metrics.record_exchange(&exchange, usage.as_ref(), cost);
        }
        if !self.is_overflowing.swap(true, Ordering::Relaxed) {
            let client = largest_client.map_or_else(String::new, |name| format!(", first those of {name}"));
            error!(
                "records are not written fast enough: prompts and completions are left out for now{client}. \
                 Is the disk of the spool slow?"
            );
        }
    }

    /// Logs once that the queue is short again after it was too long.
    fn log_queue_recovery(&self) {
        if self.is_overflowing.load(Ordering::Relaxed)
            && self.queue.is_relaxed()
            && self.is_overflowing.swap(false, Ordering::Relaxed)
        {
            let lightened = self.lightened_records.swap(0, Ordering::Relaxed);
            let dropped = self.dropped_records.swap(0, Ordering::Relaxed);
            warn!(
                "records are written fast enough again; meanwhile {lightened} were written without prompt and \
                 completion, and {dropped} were dropped"
            );
        }
    }
}

/// Runs on a thread of its own: does the slow part of rendering, so that other records do not wait for it.
fn prepare_slow_records(shared: &SharedWriterState, writer: &Thread) {
    let mut estimator = TokenEstimator::default();
    loop {
        let mut queued = match shared.queue.take_slow(TOKENIZER_CHECK_INTERVAL) {
            Ok(Some(queued)) => queued,
            Ok(None) => break,
            Err(_) => {
                estimator.unload_if_idle(Instant::now());
                continue;
            }
        };
        let max_tokenized_bytes = max_tokenized_bytes(shared.queue.slow_count());
        let RecordContext { redactor, pricing, stored_objects, .. } = &shared.context;
        let (policy, redactor) = (queued.policy, redactor.load());
        // A panic of a parser over a client's text must not end all recording.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            queued.exchange.prepare_content(policy, &redactor, &mut estimator, max_tokenized_bytes);
            if stored_objects.may_wait_for_decision(&queued.exchange) {
                queued.exchange.look_for_shown_end(stored_objects, pricing.load().as_ref());
            }
        }));
        if outcome.is_err() {
            // Dropping content samples the prompt of a kept body: the parser must not read this one again.
            queued.exchange.captured_request = None;
            queued.exchange.drop_content(policy);
        }
        shared.count_dropped(shared.queue.push_prepared(queued));
        writer.unpark();
    }
    shared.queue.note_slow_thread_done();
    writer.unpark();
}

/// How much of a text is tokenized while this many exchanges wait.
fn max_tokenized_bytes(backlog: usize) -> usize {
    TOKENIZED_BYTES_BY_BACKLOG
        .iter()
        .find(|(max_backlog, _)| backlog <= *max_backlog)
        .map_or(MIN_TOKENIZED_BYTES, |(_, bytes)| *bytes)
}

/// Runs on a thread of its own: writes the records that wait, and looks after the spool.
fn write_queued_records(shared: &SharedWriterState) {
    let mut charges: Vec<Charge> = Vec::new();
    let mut written_senders = Vec::new();
    let mut taken = Vec::new();
    let mut last_orphan_scan = Instant::now();
    let mut last_maintenance = Instant::now();
    shared.lock_appender().report_spool_failure(&shared.context);
    shared.lock_appender().adopt_orphans(shared.rendered.log_place());
    loop {
        if last_orphan_scan.elapsed() >= ORPHAN_SCAN_INTERVAL {
            last_orphan_scan = Instant::now();
            let mut appender = shared.lock_appender();
            appender.adopt_orphans(shared.rendered.log_place());
            appender.publish_spool_metrics(&shared.context);
        }
        if last_maintenance.elapsed() >= SPOOL_MAINTENANCE_INTERVAL {
            last_maintenance = Instant::now();
            shared.lock_appender().maintain(&shared.context);
            shared.rendered.maintain_logs();
        }
        let mut appender = shared.lock_appender();
        let were_rendered = shared.rendered.take(appender.next_frames());
        shared.queue.take_ready(MAX_BATCH_BYTES, &mut taken);
        if taken.is_empty() && !were_rendered {
            let is_failing = appender.is_failing();
            drop(appender);
            if shared.queue.is_finished() {
                shared.lock_appender().close();
                shared.rendered.delete_logs();
                return;
            } else if shared.rendered.fall_asleep() {
                park_timeout(if is_failing { SPOOL_MAINTENANCE_INTERVAL } else { ORPHAN_SCAN_INTERVAL });
                if !shared.writes_records {
                    sleep(BATCH_DELAY);
                }
            }
            shared.rendered.wake_up();
            continue;
        }
        for queued in taken.drain(..) {
            let (exchange, policy, written_sender, charge) = queued.into_parts();
            appender.push(&shared.context, *exchange, policy);
            charges.push(charge);
            written_senders.extend(written_sender);
        }
        appender.write(&shared.context);
        // The receipts of lost records resolve too: nobody should wait for them. A receiver may be gone.
        written_senders.drain(..).for_each(|sender: oneshot::Sender<()>| {
            let _ = sender.send(());
        });
        shared.rendered.on_written();
        let were_queued = !charges.is_empty();
        shared.queue.release(&mut charges);
        appender.publish_spool_metrics(&shared.context);
        drop(appender);
        shared.log_queue_recovery();
        if !were_queued {
            // More records come while nobody waits for them.
            park_timeout(BATCH_DELAY);
        }
    }
}
