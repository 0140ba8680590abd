//! The records that the threads that serve requests have made themselves, and that wait for the writer.
//!
//! A record is in the write-ahead log at once, so the end of its response waits for nothing, and the writer takes the records
//! only every few milliseconds, many at a time: no thread is woken for a single record. At a high rate, the writer is
//! awake anyway, and it costs less to pass it the exchanges, whose records it makes and writes together.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::debug;
use tokio::sync::oneshot;

use super::write_ahead_log::{HALF_BYTES, Half, LogPlace, WriteAheadLog};
use crate::record::delivery::{Backlog, WriteReceipt};
use crate::record::spool::FrameBuffer;

/// At most so many threads collect records apart from each other.
const MAX_SHARDS: usize = 16;
/// The writer is woken when a shard has this many bytes.
const WAKE_AT_BYTES: usize = HALF_BYTES / 2;
/// Above this rate of a shard, in records per second, it costs less to pass exchanges to the writer.
const MAX_RATE: f64 = 4000.0;
/// How long records are counted for their rate.
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
    /// Since when records are counted for their rate.
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
    /// How many records its threads have had since records are counted for their rate, made here or passed on.
    recent_count: u32,
    /// Whether their rate is so high that exchanges are passed to the writer.
    is_busy: bool,
    /// What the writer has taken and not written yet.
    taken: Option<Backlog>,
}

/// The records of a shard, taken by the writer.
#[derive(Default)]
pub(super) struct TakenRecords {
    pub(super) frames: FrameBuffer,
    receipts: Vec<oneshot::Sender<()>>,
    logged_in: Option<(Arc<WriteAheadLog>, Half)>,
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
        records.maintain_logs();
        records
    }

    /// Where the logs are; `None` without logs.
    pub(super) fn log_place(&self) -> Option<&LogPlace> {
        self.log_place.as_ref()
    }

    /// Creates the logs that are missing. To be called every now and then.
    pub(super) fn maintain_logs(&self) {
        let Some(place) = &self.log_place else { return };
        for shard in &self.shards {
            let log = lock(shard).log.clone();
            if log.is_some_and(|log| log.is_in_place()) {
                continue;
            }
            let created = WriteAheadLog::create(place);
            if let Err(problem) = &created {
                debug!("no write-ahead log in {}: {problem}", place.directory.display());
            }
            lock(shard).set_log(created.ok());
        }
    }

    /// Deletes the logs, once everything is written.
    pub(super) fn delete_logs(&self) {
        self.shards.iter().filter_map(|shard| lock(shard).log.take()).for_each(|log| log.delete());
    }

    /// Whether the calling thread is to make a record, rather than pass its exchange to the writer. To be called once for
    /// each record. Without a log, while the writer is late, or at a high rate it is not.
    pub(super) fn is_open(&self) -> bool {
        self.own_shard().is_some_and(|shard| lock(shard).is_open())
    }

    /// Adds the record that `write` appends to the buffer. Returns a receipt if it is not in a log, and whether the writer
    /// is to be woken even so.
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

    /// Passes the records of each shard to `write`, and then tells those that wait for them. Returns whether there were
    /// any.
    pub(super) fn take_all(&self, taken: &mut TakenRecords, mut write: impl FnMut(&mut FrameBuffer)) -> bool {
        self.has_receipts.store(false, Ordering::SeqCst);
        self.estimate_rates(Instant::now());
        let mut were_any = false;
        for shard in &self.shards {
            if !lock(shard).pass_on(taken) {
                continue;
            }
            were_any = true;
            write(&mut taken.frames);
            if let Some((log, half)) = taken.logged_in.take() {
                log.clear(half);
            }
            // A receiver may be gone.
            taken.receipts.drain(..).for_each(|sender| {
                let _ = sender.send(());
            });
            taken.frames.clear();
            lock(shard).taken = None;
        }
        were_any
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

    /// Passes what is there to the writer; returns false if there is nothing.
    fn pass_on(&mut self, taken: &mut TakenRecords) -> bool {
        if self.frames.is_empty() {
            return false;
        }
        self.taken = Some(self.waiting());
        std::mem::swap(&mut self.frames, &mut taken.frames);
        std::mem::swap(&mut self.receipts, &mut taken.receipts);
        taken.logged_in = self.log.clone().map(|log| (log, self.half));
        self.half = self.half.other();
        self.is_logged = self.log.is_some();
        self.oldest = None;
        true
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
        self.taken.into_iter().fold(self.waiting(), Backlog::plus)
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
