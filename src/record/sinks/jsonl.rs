//! Records as lines of JSON in a file.
//!
//! One thread owns the file. Exchanges reach it through a queue, so that a slow disk never
//! holds a request; it writes what has gathered in one call.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use log::{error, info};

use crate::record::exchange::{Exchange, Keep};

/// Most bytes that are gathered before a write.
const BATCH: usize = 256 * 1024;

enum Message {
    Record(Box<Exchange>, Keep),
    Stop,
}

/// The writer's end that the gateway holds.
#[derive(Debug)]
pub struct Jsonl {
    queue: Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Jsonl {
    /// Opens the file for appending (created with mode 0640) and starts its thread.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not started.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        let (queue, records) = channel();
        let mut writer = Writer { file, path: path.to_owned(), failing: false };
        let thread =
            std::thread::Builder::new().name("records".into()).spawn(move || writer.run(&records))?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a record; returns at once.
    pub fn write(&self, exchange: Box<Exchange>, keep: Keep) {
        // The thread ends only after `close`, when nothing is in flight any more.
        let _ = self.queue.send(Message::Record(exchange, keep));
    }

    /// Writes what is queued and ends the thread.
    pub fn close(&self) {
        let _ = self.queue.send(Message::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Jsonl {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer {
    file: File,
    path: PathBuf,
    failing: bool,
}

impl Writer {
    fn run(&mut self, records: &Receiver<Message>) {
        let mut lines = Vec::with_capacity(BATCH);
        while let Ok(first) = records.recv() {
            let mut next = Some(first);
            let mut stop = false;
            while let Some(message) = next {
                match message {
                    Message::Record(exchange, keep) => append(&mut lines, *exchange, keep),
                    Message::Stop => stop = true,
                }
                next = if stop || lines.len() >= BATCH { None } else { records.try_recv().ok() };
            }
            self.write(&lines);
            lines.clear();
            if stop {
                return;
            }
        }
    }

    fn write(&mut self, lines: &[u8]) {
        match self.file.write_all(lines) {
            Ok(()) if self.failing => {
                self.failing = false;
                info!("records are written to {} again", self.path.display());
            }
            Ok(()) => {}
            Err(problem) if !self.failing => {
                self.failing = true;
                error!("records are lost, {} cannot be written: {problem}", self.path.display());
            }
            Err(_) => {}
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
