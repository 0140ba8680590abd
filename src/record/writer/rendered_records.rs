//! The records that the threads that serve requests have made themselves, and that wait for the writer.
//!
//! A record is in the write-ahead log at once, so the end of its response waits for nothing, and the writer takes the records
//! only every few milliseconds, many at a time: no thread is woken for a single record. At a high rate, the writer is
//! awake anyway, and it costs less to pass it the exchanges, whose records it makes and writes together.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};
use tokio::sync::oneshot;

use super::write_ahead_log::{HALF_BYTES, Half, LogPlace, WriteAheadLog};
use crate::record::delivery::{Backlog, WriteReceipt};
use crate::record::spool::FrameBuffer;
use crate::system_error::describe;

/// The most shards. If there are more threads, some share one.
const MAX_SHARDS: usize = 16;
/// The writer is woken when a shard has this many bytes.
const WAKE_AT_BYTES: usize = HALF_BYTES / 2;
/// Above this rate of a shard, in records per second, it costs less to pass exchanges to the writer.
const MAX_RATE: f64 = 4000.0;
/// The shortest window in which records are counted for their rate.
const RATE_WINDOW: Duration = Duration::from_millis(20);

/// The records that wait for the writer.
#[derive(Debug)]
pub(super) struct RenderedRecords {
    /// One for each thread, as far as possible, so that they do not wait for each other.
    shards: Vec<Mutex<Shard>>,
    log_place: Option<LogPlace>,
    /// Whether the writer takes nothing until it is woken.
    is_writer_asleep: AtomicBool,
    /// Whether the ends of responses wait for records.
    has_receipts: AtomicBool,
    /// When the current window for the rates has begun.
    counted_since: Mutex<Instant>,
}

/// The records of some threads.
#[derive(Default)]
struct Shard {
    frames: FrameBuffer,
    receipts: Vec<oneshot::Sender<()>>,
    /// When the first of them was made.
    oldest: Option<SystemTime>,
    log: Option<Arc<WriteAheadLog>>,
    half: Half,
    /// Whether all records in `frames` are in the log: only then the next one can be.
    is_logged: bool,
    /// How many short records its threads have had in the current window, whether made here or by the writer.
    recent_count: u32,
    /// Whether their rate is so high that exchanges are passed to the writer.
    is_busy: bool,
    taken: Option<TakenRecords>,
}

/// What the writer has taken of a shard and not written yet.
struct TakenRecords {
    backlog: Backlog,
    receipts: Vec<oneshot::Sender<()>>,
    log: Option<Arc<WriteAheadLog>>,
    half: Half,
    is_logged: bool,
}

impl RenderedRecords {
    /// Collects records in as many shards as there are threads. Without a place there are no logs.
    pub(super) fn new(threads: usize, log_place: Option<LogPlace>) -> Self {
        let records = Self {
            shards: (0..threads.clamp(1, MAX_SHARDS)).map(|_| Mutex::default()).collect(),
            log_place,
            is_writer_asleep: AtomicBool::new(false),
            has_receipts: AtomicBool::new(false),
            counted_since: Mutex::new(Instant::now()),
        };
        if let Some(place) = records.log_place.as_ref().filter(|place| place.outlives_process) {
            let directory = place.directory.display();
            match records.create_missing_logs() {
                Ok(()) => info!("records: write-ahead log in {directory}"),
                Err(problem) => warn!("records: no write-ahead log in {directory}: {}", describe(&problem)),
            }
        }
        records
    }

    /// Where the logs are; `None` without logs.
    pub(super) fn log_place(&self) -> Option<&LogPlace> {
        self.log_place.as_ref()
    }

    /// Creates the logs that are missing. To be called every now and then.
    pub(super) fn maintain_logs(&self) {
        // The log tells at the start if that is not possible. Without it, responses wait for the writer.
        let _ = self.create_missing_logs();
    }

    fn create_missing_logs(&self) -> io::Result<()> {
        let Some(place) = self.log_place.as_ref().filter(|place| place.outlives_process) else {
            return Ok(());
        };
        for shard in &self.shards {
            let log = lock(shard).log.clone();
            if log.is_some_and(|log| log.is_in_place()) {
                continue;
            }
            lock(shard).set_log(None);
            let log = WriteAheadLog::create(place)?;
            lock(shard).set_log(Some(log));
        }
        Ok(())
    }

    /// Deletes the logs, once everything is written. One to which a record was added meanwhile is left to the next process.
    pub(super) fn delete_logs(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            if shard.frames.is_empty()
                && let Some(log) = shard.log.take()
            {
                log.delete();
            }
        }
    }

    /// Whether everything is written, if only to a log.
    pub(super) fn is_safe(&self) -> bool {
        self.shards.iter().all(|shard| lock(shard).is_safe())
    }

    /// Whether the calling thread is to make a record, rather than pass its exchange to the writer. To be called once for
    /// each record. Without a log, while the writer is late, or at a high rate it is not.
    pub(super) fn is_open(&self) -> bool {
        self.own_shard().is_some_and(|shard| lock(shard).is_open())
    }

    /// Adds the record that `write` appends to the buffer. Returns a receipt if it is not in a log, and otherwise whether the
    /// caller is to wake the writer.
    pub(super) fn push(
        &self,
        made_at: SystemTime,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> (Option<WriteReceipt>, bool) {
        let Some(shard) = self.own_shard() else { return (None, false) };
        let mut shard = lock(shard);
        let before = shard.frames.byte_len();
        shard.frames.push_record(write);
        shard.oldest.get_or_insert(made_at);
        if shard.append_to_log(before) {
            let is_much = before < WAKE_AT_BYTES && shard.frames.byte_len() >= WAKE_AT_BYTES;
            drop(shard);
            return (None, is_much || self.is_writer_asleep.load(Ordering::SeqCst));
        }
        let (sender, receipt) = oneshot::channel();
        shard.receipts.push(sender);
        drop(shard);
        self.has_receipts.store(true, Ordering::SeqCst);
        (Some(receipt), false)
    }

    /// Whether the end of a response waits for a record.
    pub(super) fn has_receipts(&self) -> bool {
        self.has_receipts.load(Ordering::SeqCst)
    }

    /// Adds the records of all shards to `frames`. Once they are written, [`RenderedRecords::on_written`] is to be called.
    /// Returns whether there are any.
    pub(super) fn take(&self, frames: &mut FrameBuffer) -> bool {
        self.has_receipts.store(false, Ordering::SeqCst);
        self.estimate_rates(Instant::now());
        self.shards.iter().filter(|shard| lock(shard).pass_on(frames)).count() > 0
    }

    /// What was taken is written, or lost: those that wait for it are told.
    pub(super) fn on_written(&self) {
        for shard in &self.shards {
            let Some(taken) = lock(shard).taken.take() else { continue };
            if let Some(log) = taken.log {
                log.clear(taken.half);
            }
            for sender in taken.receipts {
                // The receiver may be gone.
                let _ = sender.send(());
            }
        }
    }

    /// Finds out whether threads have so many records that they are to pass on exchanges.
    fn estimate_rates(&self, now: Instant) {
        let mut since = self.counted_since.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(*since);
        if elapsed < RATE_WINDOW {
            return;
        }
        *since = now;
        for shard in &self.shards {
            let mut shard = lock(shard);
            let rate = f64::from(std::mem::take(&mut shard.recent_count)) / elapsed.as_secs_f64();
            shard.is_busy = rate > MAX_RATE;
        }
    }

    /// The writer says that it takes nothing until it is woken. Returns false if there is something to take now.
    pub(super) fn fall_asleep(&self) -> bool {
        self.is_writer_asleep.store(true, Ordering::SeqCst);
        self.shards.iter().all(|shard| lock(shard).frames.is_empty())
    }

    /// The writer takes records again without being woken.
    pub(super) fn wake_up(&self) {
        self.is_writer_asleep.store(false, Ordering::SeqCst);
    }

    /// What is not written yet.
    pub(super) fn backlog(&self) -> Backlog {
        let shards = self.shards.iter().map(|shard| lock(shard).backlog());
        shards.fold(Backlog { records: Some(0), ..Backlog::default() }, Backlog::plus)
    }

    fn own_shard(&self) -> Option<&Mutex<Shard>> {
        // For the whole process, since threads have no other number; it only spreads them.
        static NEXT_THREAD: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = NEXT_THREAD.fetch_add(1, Ordering::Relaxed);
        }
        self.shards.get(THREAD.with(|thread| *thread) % self.shards.len().max(1))
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn is_open(&mut self) -> bool {
        self.recent_count = self.recent_count.saturating_add(1);
        self.log.is_some() && !self.is_busy && self.frames.byte_len() < HALF_BYTES
    }

    fn set_log(&mut self, log: Option<WriteAheadLog>) {
        self.is_logged = log.is_some() && self.frames.is_empty();
        self.log = log.map(Arc::new);
    }

    /// Appends the last record to the log, if all before it are there. `offset` is where it begins.
    fn append_to_log(&mut self, offset: usize) -> bool {
        let record = self.frames.last_record();
        self.is_logged = self.is_logged
            && self
                .log
                .as_ref()
                .zip(record)
                .is_some_and(|(log, record)| log.append(self.half, offset, record));
        self.is_logged
    }

    /// Adds what is there to the records that the writer writes next; returns false if there is nothing.
    fn pass_on(&mut self, frames: &mut FrameBuffer) -> bool {
        if self.frames.is_empty() {
            return false;
        }
        frames.append(&self.frames);
        self.taken = Some(TakenRecords {
            backlog: self.waiting(),
            receipts: std::mem::take(&mut self.receipts),
            log: self.log.clone(),
            half: self.half,
            is_logged: self.is_logged,
        });
        self.frames.clear();
        self.half = self.half.other();
        self.is_logged = self.log.is_some();
        self.oldest = None;
        true
    }

    fn is_safe(&self) -> bool {
        (self.is_logged || self.frames.is_empty()) && self.taken.as_ref().is_none_or(|taken| taken.is_logged)
    }

    /// What the writer has not taken.
    fn waiting(&self) -> Backlog {
        Backlog {
            records: Some(self.frames.record_count()),
            bytes: self.frames.byte_len() as u64,
            oldest: self.oldest,
        }
    }

    fn backlog(&self) -> Backlog {
        self.taken.iter().fold(self.waiting(), |sum, taken| sum.plus(taken.backlog))
    }
}

impl std::fmt::Debug for Shard {
    /// Only the number of records: they contain prompts.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shard").field(&self.frames.record_count()).finish()
    }
}

#[cfg(test)]
#[path = "rendered_records_tests.rs"]
mod tests;
