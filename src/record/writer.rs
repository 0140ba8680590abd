//! The thread that makes records from finished exchanges and writes them to the spool.
//!
//! Exchanges reach it through a queue, so that a slow disk delays no request. All records that are queued are
//! written at once. The queue is limited in memory: beyond the first limit, prompts and completions are left
//! out; beyond the second, records are dropped and counted.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread, park_timeout, sleep};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{error, info};
use tokio::sync::oneshot;

use super::exchange::{CapturePolicy, FinishedExchange};
use super::metrics::Metrics;
use super::redact::Redactor;
use super::spool::{FrameBuffer, Spool};

/// About how many bytes are written to the spool at once.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// How often the spool is searched for segments of processes that have ended.
const ORPHAN_SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// How long exchanges are collected that are only counted, to wake the thread less often.
const METRICS_ONLY_BATCH_DELAY: Duration = Duration::from_millis(10);
/// The memory of queued exchanges beyond which prompts and completions are left out.
const MAX_QUEUED_BYTES_WITH_CONTENT: usize = 128 * 1024 * 1024;
/// The memory of queued exchanges beyond which records are dropped.
const MAX_QUEUED_BYTES: usize = 192 * 1024 * 1024;

enum WriterMessage {
    Exchange {
        exchange: Box<FinishedExchange>,
        policy: CapturePolicy,
        memory_bytes: usize,
        written_sender: Option<oneshot::Sender<()>>,
    },
    Stop,
}

/// Resolves when the record is in the kernel's page cache, so that it survives the process, or is lost.
pub type WriteReceipt = oneshot::Receiver<()>;

/// The messages that wait for the writer.
#[derive(Default)]
struct Inbox(Mutex<Vec<WriterMessage>>);

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Vec<WriterMessage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message. Returns whether it is the only one.
    fn push(&self, message: WriterMessage) -> bool {
        let mut messages = self.lock();
        messages.push(message);
        messages.len() == 1
    }
}

impl std::fmt::Debug for Inbox {
    /// Only the number of messages: they contain prompts.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Inbox").field(&self.lock().len()).finish()
    }
}

/// The queue of the writer, as the rest of the program sees it.
#[derive(Debug)]
pub struct RecordQueue {
    inbox: Arc<Inbox>,
    writer_thread: Thread,
    /// Leads to the thread that prepares slow exchanges before the writer gets them.
    slow_exchange_sender: Sender<WriterMessage>,
    state: Arc<QueueState>,
    metrics: Arc<Metrics>,
    writes_records: bool,
}

#[derive(Debug, Default)]
struct QueueState {
    queued_bytes: AtomicUsize,
    dropped_records: AtomicU64,
    is_overflowing: AtomicBool,
}

/// Starts the threads of the writer. Without a spool, exchanges are only counted.
///
/// # Errors
/// If a thread cannot be started.
pub fn start_writer(
    spool: Option<Spool>,
    redactor: &Arc<ArcSwap<Redactor>>,
    metrics: &Arc<Metrics>,
) -> io::Result<(RecordQueue, JoinHandle<()>)> {
    let inbox = Arc::<Inbox>::default();
    let (slow_exchange_sender, slow_exchange_receiver) = channel();
    let (state, writes_records) = (Arc::<QueueState>::default(), spool.is_some());
    let (slow_redactor, redactor) = (Arc::clone(redactor), Arc::clone(redactor));
    let mut writer =
        RecordWriter { spool, redactor, state: Arc::clone(&state), metrics: Arc::clone(metrics) };
    let writer_inbox = Arc::clone(&inbox);
    let thread =
        std::thread::Builder::new().name("records".into()).spawn(move || writer.run(&writer_inbox))?;
    let (prepared_inbox, writer_thread) = (Arc::clone(&inbox), thread.thread().clone());
    let run_slow = move || {
        prepare_slow_records(&slow_exchange_receiver, &prepared_inbox, &writer_thread, &slow_redactor);
    };
    std::thread::Builder::new().name("slow records".into()).spawn(run_slow)?;
    let writer = thread.thread().clone();
    Ok((
        RecordQueue {
            inbox,
            writer_thread: writer,
            slow_exchange_sender,
            state,
            metrics: Arc::clone(metrics),
            writes_records,
        },
        thread,
    ))
}

impl RecordQueue {
    /// Queues an exchange and returns at once. The receipt is `None` if no record will be written. Call
    /// [`RecordQueue::wake_writer`] afterwards: one call is enough for several exchanges.
    pub fn enqueue(
        &self,
        mut exchange: Box<FinishedExchange>,
        policy: CapturePolicy,
    ) -> Option<WriteReceipt> {
        let queued_bytes = self.state.queued_bytes.load(Ordering::Relaxed);
        // An empty queue takes an exchange of any size: it would never be written otherwise.
        if queued_bytes > 0 && queued_bytes + exchange.memory_bytes() > MAX_QUEUED_BYTES_WITH_CONTENT {
            exchange.drop_content();
            if !self.state.is_overflowing.swap(true, Ordering::Relaxed) {
                error!(
                    "records are not written fast enough, prompts and completions are left out for now: \
                     is the disk of the spool slow?"
                );
            }
        }
        let memory_bytes = exchange.memory_bytes();
        if queued_bytes > 0 && queued_bytes + memory_bytes > MAX_QUEUED_BYTES {
            self.state.dropped_records.fetch_add(1, Ordering::Relaxed);
            self.metrics.count_records("spool", "dropped", 1);
            self.metrics.record_exchange(&exchange, None);
            return None;
        }
        self.state.queued_bytes.fetch_add(memory_bytes, Ordering::Relaxed);
        let (written_sender, receipt) = if self.writes_records {
            let (written_sender, receipt) = oneshot::channel();
            (Some(written_sender), Some(receipt))
        } else {
            (None, None)
        };
        // The send fails only if the thread has ended, which happens after `stop`: nothing is in flight then.
        let is_slow = exchange.is_slow_to_render(policy);
        let message = WriterMessage::Exchange { exchange, policy, memory_bytes, written_sender };
        if is_slow {
            self.slow_exchange_sender.send(message).ok()?;
            // With records, the caller wakes the writer, once for several exchanges.
        } else if self.inbox.push(message) && !self.writes_records {
            self.writer_thread.unpark();
        }
        receipt
    }

    /// Wakes the writer if exchanges are queued.
    pub fn wake_writer(&self) {
        if !self.inbox.lock().is_empty() {
            self.writer_thread.unpark();
        }
    }

    /// Whether the writer has taken everything out of the queue.
    pub fn is_idle(&self) -> bool {
        self.state.queued_bytes.load(Ordering::Relaxed) == 0
    }

    /// Ends the threads once they have written what is queued.
    pub fn stop(&self) {
        // Through the slow thread: the message arrives behind all slow exchanges.
        let _ = self.slow_exchange_sender.send(WriterMessage::Stop);
    }
}

/// Runs on a thread of its own: does the slow part of rendering, so that other records do not wait for it.
fn prepare_slow_records(
    slow_exchange_receiver: &Receiver<WriterMessage>,
    inbox: &Inbox,
    writer: &Thread,
    redactor: &ArcSwap<Redactor>,
) {
    for mut message in slow_exchange_receiver {
        if let WriterMessage::Exchange { exchange, policy, .. } = &mut message {
            // A panic of a parser over a client's text must not end all recording.
            let outcome =
                catch_unwind(AssertUnwindSafe(|| exchange.prepare_content(*policy, &redactor.load())));
            if outcome.is_err() {
                exchange.drop_content();
            }
        }
        let is_last = matches!(message, WriterMessage::Stop);
        inbox.push(message);
        writer.unpark();
        if is_last {
            return;
        }
    }
}

struct RecordWriter {
    spool: Option<Spool>,
    redactor: Arc<ArcSwap<Redactor>>,
    state: Arc<QueueState>,
    metrics: Arc<Metrics>,
}

impl RecordWriter {
    fn run(&mut self, inbox: &Inbox) {
        let mut frames = FrameBuffer::default();
        let mut written_senders = Vec::new();
        let mut last_orphan_scan = Instant::now();
        let mut messages = Vec::new().into_iter();
        let mut is_stopping = false;
        loop {
            if last_orphan_scan.elapsed() >= ORPHAN_SCAN_INTERVAL {
                last_orphan_scan = Instant::now();
                if let Some(spool) = &mut self.spool {
                    spool.adopt_orphans();
                }
                self.publish_spool_metrics();
            }
            if messages.len() == 0 {
                messages = std::mem::take(&mut *inbox.lock()).into_iter();
                if messages.len() == 0 {
                    park_timeout(ORPHAN_SCAN_INTERVAL);
                    if self.spool.is_none() {
                        sleep(METRICS_ONLY_BATCH_DELAY);
                    }
                    continue;
                }
            }
            while frames.byte_len() < MAX_BATCH_BYTES
                && let Some(message) = messages.next()
            {
                match message {
                    WriterMessage::Exchange { exchange, policy, memory_bytes, written_sender } => {
                        let outcome = catch_unwind(AssertUnwindSafe(|| {
                            self.append_record(&mut frames, *exchange, policy);
                        }));
                        if outcome.is_err() {
                            error!("a record could not be made and is dropped: this is a bug in aoai-lb");
                            self.metrics.count_records("spool", "dropped", 1);
                        }
                        self.state.queued_bytes.fetch_sub(memory_bytes, Ordering::Relaxed);
                        written_senders.extend(written_sender);
                    }
                    WriterMessage::Stop => is_stopping = true,
                }
            }
            if let Some(spool) = &mut self.spool {
                let lost = spool.append(&frames);
                self.metrics.count_records("spool", "dropped", lost);
                self.metrics.count_records("spool", "written", frames.record_count() - lost);
            }
            frames.clear();
            // The receipts of lost records resolve too: nobody should wait for them. A receiver may be gone.
            written_senders.drain(..).for_each(|sender| {
                let _ = sender.send(());
            });
            self.publish_spool_metrics();
            self.log_queue_recovery();
            if is_stopping {
                if let Some(spool) = &self.spool {
                    spool.close();
                }
                return;
            }
        }
    }

    /// Makes the record of an exchange, which also counts it, and adds it to the next write.
    fn append_record(&self, frames: &mut FrameBuffer, mut exchange: FinishedExchange, policy: CapturePolicy) {
        let redactor = self.redactor.load();
        let record = exchange.count_and_render_record(policy, &redactor, &self.metrics);
        if self.spool.is_some() {
            frames.push_record(|buffer| record.write_json(buffer));
        }
    }

    /// Updates the metrics of the spool.
    fn publish_spool_metrics(&self) {
        let Some(spool) = &self.spool else { return };
        self.metrics.set_spool_bytes(spool.undelivered_bytes());
        for (sink, lost) in spool.take_lost_record_counts() {
            self.metrics.count_records(sink, "lost", lost);
        }
    }

    /// Logs once that the queue is short again after it was too long.
    fn log_queue_recovery(&self) {
        let has_recovered =
            self.state.queued_bytes.load(Ordering::Relaxed) < MAX_QUEUED_BYTES_WITH_CONTENT / 2;
        if has_recovered && self.state.is_overflowing.swap(false, Ordering::Relaxed) {
            let dropped = self.state.dropped_records.swap(0, Ordering::Relaxed);
            info!("records are written fast enough again; {dropped} records were dropped meanwhile");
        }
    }
}
