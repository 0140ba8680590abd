//! Records as lines of JSON in a file.
//!
//! One thread owns the file. Exchanges reach it through a queue, so that a slow disk never
//! holds a request; it writes what has gathered in one call. The queue is bounded in memory:
//! when it is full, first prompts and answers go, then whole records, counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use log::{error, info};

use crate::record::exchange::{Exchange, Keep};

/// How long records are gathered before a write.
const GATHER: Duration = Duration::from_millis(10);
/// Most bytes that are gathered before a write.
const BATCH: usize = 256 * 1024;
/// Memory for records that wait, beyond which prompts and answers are let go of.
const QUEUE_SOFT: usize = 128 * 1024 * 1024;
/// The same for what is left of records then.
const QUEUE_HARD: usize = 192 * 1024 * 1024;
/// How long the end waits for the disk.
const CLOSING: Duration = Duration::from_secs(10);

enum Message {
    Record(Box<Exchange>, Keep, usize),
    Stop(Sender<()>),
}

/// The writer's end that the gateway holds.
#[derive(Debug)]
pub struct Jsonl {
    queue: Sender<Message>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: AtomicUsize,
    dropped: AtomicU64,
    overflowing: AtomicBool,
}

impl Jsonl {
    /// Opens the file for appending (created with mode 0640) and starts its thread.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not started.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        let (queue, records) = channel();
        let state = Arc::new(State::default());
        let mut writer = Writer { file, path: path.to_owned(), failing: false, state: Arc::clone(&state) };
        std::thread::Builder::new().name("records".into()).spawn(move || writer.run(&records))?;
        Ok(Self { queue, state })
    }

    /// Queues a record; returns at once.
    pub fn write(&self, mut exchange: Box<Exchange>, keep: Keep) {
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
            return;
        }
        self.state.waiting.fetch_add(size, Ordering::Relaxed);
        // The thread ends only after `close`, when nothing is in flight any more.
        let _ = self.queue.send(Message::Record(exchange, keep, size));
    }

    /// Writes what is queued and ends the thread; waits for a disk that hangs only so long.
    pub fn close(&self) {
        let (done, ended) = channel();
        if self.queue.send(Message::Stop(done)).is_ok() && ended.recv_timeout(CLOSING).is_err() {
            error!("records that waited are lost: they could not be written within {CLOSING:?}");
        }
    }
}

struct Writer {
    file: File,
    path: PathBuf,
    failing: bool,
    state: Arc<State>,
}

impl Writer {
    fn run(&mut self, records: &Receiver<Message>) {
        let mut lines = Vec::with_capacity(BATCH);
        while let Ok(first) = records.recv() {
            if matches!(first, Message::Record(..)) {
                // One wake-up and one write for all that come in a moment.
                std::thread::sleep(GATHER);
            }
            let mut next = Some(first);
            let mut stop = None;
            while let Some(message) = next {
                match message {
                    Message::Record(exchange, keep, size) => {
                        append(&mut lines, *exchange, keep);
                        self.state.waiting.fetch_sub(size, Ordering::Relaxed);
                    }
                    Message::Stop(done) => stop = Some(done),
                }
                let more = stop.is_none() && lines.len() < BATCH;
                next = if more { records.try_recv().ok() } else { None };
            }
            self.write(&lines);
            lines.clear();
            self.catch_up();
            if let Some(done) = stop {
                let _ = done.send(());
                return;
            }
        }
    }

    /// Writes whole lines: what was written of a batch that failed is taken back.
    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let before = self.file.metadata().map(|metadata| metadata.len());
        match self.file.write_all(lines) {
            Ok(()) if self.failing => {
                self.failing = false;
                info!("records are written to {} again", self.path.display());
            }
            Ok(()) => {}
            Err(problem) => {
                if let Ok(before) = before {
                    let _ = self.file.set_len(before);
                }
                if !std::mem::replace(&mut self.failing, true) {
                    error!("records are lost, {} cannot be written: {problem}", self.path.display());
                }
            }
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

fn append(lines: &mut Vec<u8>, mut exchange: Exchange, keep: Keep) {
    let start = lines.len();
    if serde_json::to_writer(&mut *lines, &exchange.line(keep)).is_err() {
        // Strings and numbers cannot fail to serialise; half a line must not remain if they do.
        lines.truncate(start);
        return;
    }
    lines.push(b'\n');
}
