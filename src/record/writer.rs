//! The thread that turns finished exchanges into records and puts them into the spool.
//!
//! Exchanges reach it through a queue, so that a slow disk never holds a request; what has
//! gathered is written at once. The queue is bounded in memory: when it is full, first prompts and
//! answers go, then whole records, counted.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{error, info};
use tokio::sync::oneshot;

use super::exchange::{Exchange, Keep};
use super::metrics::Metrics;
use super::redact::Redaction;
use super::spool::{Frames, Spool};

/// Most bytes that are gathered before a write.
const BATCH: usize = 256 * 1024;
/// How often segments of processes that are gone are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// Memory for records that wait, beyond which prompts and answers are let go of.
const QUEUE_SOFT: usize = 128 * 1024 * 1024;
/// The same for what is left of records then.
const QUEUE_HARD: usize = 192 * 1024 * 1024;

enum Message {
    Record { exchange: Box<Exchange>, keep: Keep, size: usize, written: Option<oneshot::Sender<()>> },
    Stop,
}

/// Word that a record is in the hands of the kernel, or lost for good.
pub type Receipt = oneshot::Receiver<()>;

/// The writer's end that everybody else holds.
#[derive(Debug)]
pub struct Queue {
    queue: Sender<Message>,
    /// For those that take a while.
    slow: Sender<Message>,
    state: Arc<State>,
    metrics: Arc<Metrics>,
    keeps: bool,
}

#[derive(Debug, Default)]
struct State {
    waiting: AtomicUsize,
    dropped: AtomicU64,
    overflowing: AtomicBool,
}

/// Starts the thread; without a spool requests are counted and nothing is kept.
///
/// # Errors
/// When the system has no more threads.
pub fn start(
    spool: Option<Spool>,
    redaction: &Arc<ArcSwap<Redaction>>,
    metrics: &Arc<Metrics>,
) -> io::Result<(Queue, JoinHandle<()>)> {
    let (queue, messages) = channel();
    let (slow, waiting) = channel();
    let (state, keeps) = (Arc::<State>::default(), spool.is_some());
    let (patterns, redaction) = (Arc::clone(redaction), Arc::clone(redaction));
    let mut writer = Writer { spool, redaction, state: Arc::clone(&state), metrics: Arc::clone(metrics) };
    let thread = std::thread::Builder::new().name("records".into()).spawn(move || writer.run(&messages))?;
    let prepared = queue.clone();
    let prepare = move || prepare(&waiting, &prepared, &patterns);
    std::thread::Builder::new().name("slow records".into()).spawn(prepare)?;
    Ok((Queue { queue, slow, state, metrics: Arc::clone(metrics), keeps }, thread))
}

impl Queue {
    /// Queues a record; returns at once, with word of when it is written, if it will be.
    pub fn write(&self, mut exchange: Box<Exchange>, keep: Keep) -> Option<Receipt> {
        let waiting = self.state.waiting.load(Ordering::Relaxed);
        // A single one may be as large as it is.
        if waiting > 0 && waiting + exchange.size() > QUEUE_SOFT {
            exchange.lighten();
            if !self.state.overflowing.swap(true, Ordering::Relaxed) {
                error!("records cannot be written fast enough: prompts and answers are left out");
            }
        }
        let size = exchange.size();
        if waiting > 0 && waiting + size > QUEUE_HARD {
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
            self.metrics.count("spool", "dropped", 1);
            self.metrics.observe(&exchange, None);
            return None;
        }
        self.state.waiting.fetch_add(size, Ordering::Relaxed);
        let (written, receipt) = if self.keeps {
            let (written, receipt) = oneshot::channel();
            (Some(written), Some(receipt))
        } else {
            (None, None)
        };
        // The thread ends only after `stop`, when nothing is in flight any more.
        let queue = if exchange.is_slow(keep) { &self.slow } else { &self.queue };
        queue.send(Message::Record { exchange, keep, size, written }).ok()?;
        receipt
    }

    /// Whether all that was queued is written.
    pub fn is_idle(&self) -> bool {
        self.state.waiting.load(Ordering::Relaxed) == 0
    }

    /// Lets the thread end once it has written what is queued.
    pub fn stop(&self) {
        let _ = self.slow.send(Message::Stop);
    }
}

/// Prepares what takes a while, so that nobody else waits for it.
fn prepare(waiting: &Receiver<Message>, to: &Sender<Message>, redaction: &ArcSwap<Redaction>) {
    for mut message in waiting {
        if let Message::Record { exchange, keep, .. } = &mut message {
            // A fault of a library, over text from outside, must not end all records.
            let prepared = catch_unwind(AssertUnwindSafe(|| exchange.prepare(*keep, &redaction.load())));
            if prepared.is_err() {
                exchange.lighten();
            }
        }
        let is_last = matches!(message, Message::Stop);
        if to.send(message).is_err() || is_last {
            return;
        }
    }
}

struct Writer {
    spool: Option<Spool>,
    redaction: Arc<ArcSwap<Redaction>>,
    state: Arc<State>,
    metrics: Arc<Metrics>,
}

impl Writer {
    fn run(&mut self, messages: &Receiver<Message>) {
        let mut frames = Frames::default();
        let mut receipts = Vec::new();
        let mut line = Vec::new();
        let mut looked = Instant::now();
        loop {
            let first = match messages.recv_timeout(LOOK) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::Stop),
            };
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Some(spool) = &mut self.spool {
                    spool.claim();
                }
                self.count();
            }
            let Some(first) = first else { continue };
            let mut stop = false;
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Record { exchange, keep, size, written } => {
                        let made = catch_unwind(AssertUnwindSafe(|| {
                            self.append(&mut frames, &mut line, *exchange, keep);
                        }));
                        if made.is_err() {
                            error!("a record could not be made: this is a fault of the balancer");
                            self.metrics.count("spool", "dropped", 1);
                        }
                        self.state.waiting.fetch_sub(size, Ordering::Relaxed);
                        receipts.extend(written);
                    }
                    Message::Stop => stop = true,
                }
                next = if frames.len() < BATCH { messages.try_recv().ok() } else { None };
            }
            if let Some(spool) = &mut self.spool {
                let lost = spool.append(&frames);
                self.metrics.count("spool", "dropped", lost);
                self.metrics.count("spool", "written", frames.count() - lost);
            }
            frames.clear();
            // Who waits for one that is lost waits in vain.
            receipts.drain(..).for_each(|receipt| {
                let _ = receipt.send(());
            });
            self.count();
            self.catch_up();
            if stop {
                if let Some(spool) = &self.spool {
                    spool.close();
                }
                return;
            }
        }
    }

    fn append(&self, frames: &mut Frames, line: &mut Vec<u8>, mut exchange: Exchange, keep: Keep) {
        line.clear();
        let redaction = self.redaction.load();
        // Strings and numbers cannot fail to serialise; half a record must not remain if they do.
        let record = exchange.line(keep, &redaction, &self.metrics);
        if self.spool.is_some() && serde_json::to_writer(&mut *line, &record).is_ok() {
            frames.push(line);
        }
    }

    fn count(&self) {
        let Some(spool) = &self.spool else { return };
        self.metrics.spooled(spool.waiting());
        for (sink, lost) in spool.take_lost() {
            self.metrics.count(sink, "lost", lost);
        }
    }

    /// Says that it is over when the queue has been too long.
    fn catch_up(&self) {
        let few = self.state.waiting.load(Ordering::Relaxed) < QUEUE_SOFT / 2;
        if few && self.state.overflowing.swap(false, Ordering::Relaxed) {
            let dropped = self.state.dropped.swap(0, Ordering::Relaxed);
            info!("records are written fast enough again; {dropped} were dropped");
        }
    }
}
