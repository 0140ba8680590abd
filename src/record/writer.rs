//! The thread that makes records from finished exchanges and writes them.
//!
//! Exchanges reach it through the queue in `queue.rs`, so that a slow disk delays no request. All records that
//! are queued are written at once.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread, park_timeout, sleep};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use log::{error, warn};
use tokio::sync::oneshot;

use super::appender::RecordAppender;
use super::cost::Pricing;
use super::delivery::{self, Backlog};
use super::exchange::{CapturePolicy, FinishedExchange};
use super::metrics::Metrics;
use super::queue::{Charge, Dropped, ExchangeQueue, QueuedExchange};
use super::record_context::RecordContext;
use super::redact::Redactor;
use super::stored_objects::StoredObjects;
use super::token_estimate::TokenEstimator;

/// About how many bytes are written at once.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// How often the spool is searched for segments of processes that have ended.
const ORPHAN_SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is checked whether the spool's directory is there.
const SPOOL_MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long exchanges are collected that are only counted, to wake the thread less often.
const METRICS_ONLY_BATCH_DELAY: Duration = Duration::from_millis(10);
/// How often it is checked whether the tokenizers are idle.
const TOKENIZER_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How much of a text is tokenized while at most so many exchanges wait. The more wait, the rougher are the
/// estimates, so that records are not late when many of them have no reported usage.
const TOKENIZED_BYTES_BY_BACKLOG: [(usize, usize); 3] = [(16, 64 * 1024), (256, 8 * 1024), (4096, 1024)];
/// How much of a text is tokenized while more exchanges wait.
const MIN_TOKENIZED_BYTES: usize = 128;

/// Resolves when the record is in the kernel's page cache, so that it survives the process, or is lost.
pub type WriteReceipt = oneshot::Receiver<()>;

/// The queue of the writer, as the rest of the program sees it.
#[derive(Debug)]
pub struct RecordQueue {
    shared: Arc<SharedWriterState>,
    writer_thread: Thread,
}

/// What the threads that write records share.
struct SharedWriterState {
    queue: ExchangeQueue,
    appender: Mutex<RecordAppender>,
    writes_records: bool,
    context: RecordContext,
    dropped_records: AtomicU64,
    lightened_records: AtomicU64,
    is_overflowing: AtomicBool,
}

/// Starts the threads of the writer. Without `writes_records`, exchanges are counted, but not written.
///
/// # Errors
/// If a thread cannot be started.
pub(super) fn start_writer(
    appender: RecordAppender,
    writes_records: bool,
    redactor: &Arc<ArcSwap<Redactor>>,
    pricing: &Arc<ArcSwapOption<Pricing>>,
    metrics: &Arc<Metrics>,
) -> io::Result<(RecordQueue, JoinHandle<()>)> {
    let shared = Arc::new(SharedWriterState {
        queue: ExchangeQueue::default(),
        appender: Mutex::new(appender),
        writes_records,
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
    /// Queues an exchange and returns at once. The receipt is `None` if no record will be written. Call
    /// [`RecordQueue::wake_writer`] afterwards: one call is enough for several exchanges.
    pub fn enqueue(
        &self,
        mut exchange: Box<FinishedExchange>,
        policy: CapturePolicy,
    ) -> Option<WriteReceipt> {
        exchange.shorten_content(policy, |body_bytes| self.shared.queue.max_sample_bytes(body_bytes));
        let objects = &self.shared.context.stored_objects;
        let is_slow = exchange.is_slow_to_render(policy) || objects.may_wait_for_decision(&exchange);
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

    /// Wakes the writer if exchanges are queued.
    pub fn wake_writer(&self) {
        if self.shared.queue.has_ready() {
            self.writer_thread.unpark();
        }
    }

    /// The objects that have not ended.
    pub fn stored_objects(&self) -> &StoredObjects {
        &self.shared.context.stored_objects
    }

    /// The exchanges whose records are not written yet.
    pub fn backlog(&self) -> Backlog {
        self.shared.queue.backlog()
    }

    /// Whether the writer has taken everything out of the queue.
    pub fn is_idle(&self) -> bool {
        self.shared.queue.is_idle()
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
    loop {
        if last_orphan_scan.elapsed() >= ORPHAN_SCAN_INTERVAL {
            last_orphan_scan = Instant::now();
            let mut appender = shared.lock_appender();
            appender.adopt_orphans();
            appender.publish_spool_metrics(&shared.context);
        }
        if last_maintenance.elapsed() >= SPOOL_MAINTENANCE_INTERVAL {
            last_maintenance = Instant::now();
            shared.lock_appender().maintain(&shared.context);
        }
        shared.queue.take_ready(MAX_BATCH_BYTES, &mut taken);
        if taken.is_empty() {
            if shared.queue.is_finished() {
                shared.lock_appender().close();
                return;
            }
            let is_failing = shared.lock_appender().is_failing();
            park_timeout(if is_failing { SPOOL_MAINTENANCE_INTERVAL } else { ORPHAN_SCAN_INTERVAL });
            if !shared.writes_records {
                sleep(METRICS_ONLY_BATCH_DELAY);
            }
            continue;
        }
        let mut appender = shared.lock_appender();
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
        shared.queue.release(&mut charges);
        appender.publish_spool_metrics(&shared.context);
        drop(appender);
        shared.log_queue_recovery();
    }
}
