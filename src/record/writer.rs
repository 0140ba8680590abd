//! The thread that turns finished exchanges into records and puts them into the spool.
//!
//! Exchanges reach it through a queue, so that a slow disk never holds a request; what has
//! gathered is written at once. The queue is bounded in memory: when it is full, first prompts and
//! answers go, then whole records, counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use log::{error, info};
use tokio::sync::oneshot;

use super::exchange::{Exchange, Keep};
use super::redact::Redaction;
use super::spool::{Frames, Spool};

/// Most bytes that are gathered before a write.
const BATCH: usize = 256 * 1024;
/// How long records are gathered while there are many.
const GATHER: Duration = Duration::from_millis(1);
/// From so many records at once there are many.
const MANY: u64 = 4;
/// How often segments of processes that are gone are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// Memory for records that wait, beyond which prompts and answers are let go of.
const QUEUE_SOFT: usize = 128 * 1024 * 1024;
/// The same for what is left of records then.
const QUEUE_HARD: usize = 192 * 1024 * 1024;

/// What was written, and what was not.
#[derive(Debug, Default)]
pub struct Tally {
    /// Records in the spool.
    pub written: AtomicU64,
    /// Records that are in no spool: no room on disk or in memory.
    pub dropped: AtomicU64,
    /// Answers whose last bytes went out before their record was written.
    pub late: AtomicU64,
    /// Bytes in the spool.
    pub spool_bytes: AtomicU64,
}

enum Message {
    Record { exchange: Box<Exchange>, keep: Keep, size: usize, written: oneshot::Sender<()> },
    Stop,
}

/// Word that a record is in the hands of the kernel, or lost for good.
pub type Receipt = oneshot::Receiver<()>;

/// The writer's end that everybody else holds.
#[derive(Debug)]
pub struct Queue {
    queue: Sender<Message>,
    state: Arc<State>,
    /// What became of records so far.
    pub tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct State {
    waiting: AtomicUsize,
    overflowing: AtomicBool,
}

/// Starts the thread.
///
/// # Errors
/// When the system has no more threads.
pub fn start(spool: Spool, redaction: Redaction) -> io::Result<(Queue, JoinHandle<()>)> {
    let (queue, messages) = channel();
    let (state, tally) = (Arc::<State>::default(), Arc::<Tally>::default());
    let mut writer = Writer { spool, redaction, state: Arc::clone(&state), tally: Arc::clone(&tally) };
    let thread = std::thread::Builder::new().name("records".into()).spawn(move || writer.run(&messages))?;
    Ok((Queue { queue, state, tally }, thread))
}

impl Queue {
    /// Queues a record; returns at once, with word of when it is written.
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
            self.tally.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.state.waiting.fetch_add(size, Ordering::Relaxed);
        let (written, receipt) = oneshot::channel();
        // The thread ends only after `stop`, when nothing is in flight any more.
        self.queue.send(Message::Record { exchange, keep, size, written }).ok()?;
        Some(receipt)
    }

    /// Lets the thread end once it has written what is queued.
    pub fn stop(&self) {
        let _ = self.queue.send(Message::Stop);
    }
}

struct Writer {
    spool: Spool,
    redaction: Redaction,
    state: Arc<State>,
    tally: Arc<Tally>,
}

impl Writer {
    fn run(&mut self, messages: &Receiver<Message>) {
        let mut frames = Frames::default();
        let mut receipts = Vec::new();
        let mut line = Vec::new();
        let mut last = 0;
        loop {
            let first = match messages.recv_timeout(LOOK) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::Stop),
            };
            let Some(first) = first else {
                self.spool.claim();
                self.count();
                continue;
            };
            if last >= MANY {
                // One wake-up and one write for all that come in a moment.
                std::thread::sleep(GATHER);
            }
            let mut stop = false;
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Record { exchange, keep, size, written } => {
                        self.append(&mut frames, &mut line, *exchange, keep);
                        self.state.waiting.fetch_sub(size, Ordering::Relaxed);
                        receipts.push(written);
                    }
                    Message::Stop => stop = true,
                }
                next = if frames.len() < BATCH { messages.try_recv().ok() } else { None };
            }
            let lost = self.spool.append(&frames);
            self.tally.dropped.fetch_add(lost, Ordering::Relaxed);
            self.tally.written.fetch_add(frames.count() - lost, Ordering::Relaxed);
            last = frames.count();
            frames.clear();
            // Who waits for one that is lost waits in vain.
            receipts.drain(..).for_each(|receipt| {
                let _ = receipt.send(());
            });
            self.count();
            self.catch_up();
            if stop {
                self.spool.close();
                return;
            }
        }
    }

    fn append(&self, frames: &mut Frames, line: &mut Vec<u8>, mut exchange: Exchange, keep: Keep) {
        line.clear();
        // Strings and numbers cannot fail to serialise; half a record must not remain if they do.
        if serde_json::to_writer(&mut *line, &exchange.line(keep, &self.redaction)).is_ok() {
            frames.push(line);
        }
    }

    fn count(&self) {
        self.tally.spool_bytes.store(self.spool.bytes(), Ordering::Relaxed);
    }

    /// Says that it is over when the queue has been too long.
    fn catch_up(&self) {
        let few = self.state.waiting.load(Ordering::Relaxed) < QUEUE_SOFT / 2;
        if few && self.state.overflowing.swap(false, Ordering::Relaxed) {
            let dropped = self.tally.dropped.load(Ordering::Relaxed);
            info!("records are written fast enough again; {dropped} were dropped since the start");
        }
    }
}
