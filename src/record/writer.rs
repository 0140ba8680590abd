//! The thread that turns finished exchanges into records and puts them into the spool.
//!
//! Exchanges reach it through a queue, so that a slow disk never holds a request; what has
//! gathered is written at once. The queue is bounded in memory: when it is full, first prompts and
//! answers go, then whole records, counted.

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

use super::exchange::{Exchange, Keep};
use super::metrics::Metrics;
use super::redact::Redaction;
use super::spool::{Frames, Spool};

/// Most bytes that are gathered before a write.
const BATCH: usize = 256 * 1024;
/// How often segments of processes that are gone are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// For how long requests gather that are only counted.
const GATHER: Duration = Duration::from_millis(10);
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

/// What waits for the writer.
#[derive(Default)]
struct Inbox(Mutex<Vec<Message>>);

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Vec<Message>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether it is the first that waits.
    fn push(&self, message: Message) -> bool {
        let mut waiting = self.lock();
        waiting.push(message);
        waiting.len() == 1
    }
}

impl std::fmt::Debug for Inbox {
    /// How much waits; what it is, is nobody's business.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Inbox").field(&self.lock().len()).finish()
    }
}

/// The writer's end that everybody else holds.
#[derive(Debug)]
pub struct Queue {
    inbox: Arc<Inbox>,
    writer: Thread,
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
    let inbox = Arc::<Inbox>::default();
    let (slow, waiting) = channel();
    let (state, keeps) = (Arc::<State>::default(), spool.is_some());
    let (patterns, redaction) = (Arc::clone(redaction), Arc::clone(redaction));
    let mut writer = Writer { spool, redaction, state: Arc::clone(&state), metrics: Arc::clone(metrics) };
    let messages = Arc::clone(&inbox);
    let thread = std::thread::Builder::new().name("records".into()).spawn(move || writer.run(&messages))?;
    let (prepared, waker) = (Arc::clone(&inbox), thread.thread().clone());
    let prepare = move || prepare(&waiting, &prepared, &waker, &patterns);
    std::thread::Builder::new().name("slow records".into()).spawn(prepare)?;
    let writer = thread.thread().clone();
    Ok((Queue { inbox, writer, slow, state, metrics: Arc::clone(metrics), keeps }, thread))
}

impl Queue {
    /// Queues a record; returns at once, with word of when it is written, if it will be. What is to
    /// be written has to be followed by [`Queue::wake`]: one call does for all that were queued
    /// meanwhile.
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
        let is_slow = exchange.is_slow(keep);
        let message = Message::Record { exchange, keep, size, written };
        if is_slow {
            self.slow.send(message).ok()?;
        } else if self.inbox.push(message) && !self.keeps {
            self.writer.unpark();
        }
        receipt
    }

    /// Wakes the writer if something waits for it.
    pub fn wake(&self) {
        if !self.inbox.lock().is_empty() {
            self.writer.unpark();
        }
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
fn prepare(waiting: &Receiver<Message>, to: &Inbox, writer: &Thread, redaction: &ArcSwap<Redaction>) {
    for mut message in waiting {
        if let Message::Record { exchange, keep, .. } = &mut message {
            // A fault of a library, over text from outside, must not end all records.
            let prepared = catch_unwind(AssertUnwindSafe(|| exchange.prepare(*keep, &redaction.load())));
            if prepared.is_err() {
                exchange.lighten();
            }
        }
        let is_last = matches!(message, Message::Stop);
        to.push(message);
        writer.unpark();
        if is_last {
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
    fn run(&mut self, inbox: &Inbox) {
        let mut frames = Frames::default();
        let mut receipts = Vec::new();
        let mut looked = Instant::now();
        let mut messages = Vec::new().into_iter();
        let mut stop = false;
        loop {
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Some(spool) = &mut self.spool {
                    spool.claim();
                }
                self.count();
            }
            if messages.len() == 0 {
                messages = std::mem::take(&mut *inbox.lock()).into_iter();
                if messages.len() == 0 {
                    park_timeout(LOOK);
                    if self.spool.is_none() {
                        sleep(GATHER);
                    }
                    continue;
                }
            }
            while frames.len() < BATCH
                && let Some(message) = messages.next()
            {
                match message {
                    Message::Record { exchange, keep, size, written } => {
                        let made = catch_unwind(AssertUnwindSafe(|| {
                            self.append(&mut frames, *exchange, keep);
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

    fn append(&self, frames: &mut Frames, mut exchange: Exchange, keep: Keep) {
        let redaction = self.redaction.load();
        let record = exchange.line(keep, &redaction, &self.metrics);
        if self.spool.is_some() {
            frames.push(|to| record.write(to));
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
