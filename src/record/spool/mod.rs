//! Records on disk until every sink has them: segments that are only appended to.
//!
//! One thread writes, each sink reads at its own pace and notes beside the segment how far it got.
//! A segment belongs to the process that holds its lock. While it grows it is called `….open`,
//! then `….sealed`; one whose process is gone is claimed by the next that looks, its torn end cut
//! off. When there is too much, the oldest goes, delivered or not.

mod frame;
mod segment;

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{error, info, warn};

use self::frame::Next;
use self::segment::Segment;

pub use self::segment::Found;

/// The spool is so many segments at least, so that losing the oldest loses little.
const SEGMENTS: u64 = 16;
/// The size at which a segment is sealed is at most this.
const SEGMENT_MAX: u64 = 64 * 1024 * 1024;
/// How long the writer of a full disk waits before it looks again.
const FULL: Duration = Duration::from_secs(1);

/// Records that are to be written: frames, one after the other.
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// Bytes of those that are complete.
    whole: usize,
    count: u64,
}

impl Frames {
    /// Adds what `write` writes as a record; nothing, if it panics.
    pub fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.truncate(self.whole);
        frame::push(&mut self.bytes, write);
        self.whole = self.bytes.len();
        self.count += 1;
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.whole
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.whole).unwrap_or_default()
    }

    /// Records so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.whole = 0;
        self.count = 0;
    }
}

/// The writer's side.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    maximum: u64,
    seal_at: u64,
    /// The name of the segment that grows.
    active: Option<String>,
    made: u64,
    /// What cannot be claimed, which is said once.
    unreadable: Vec<PathBuf>,
    full_until: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    sinks: Vec<&'static str>,
    state: Mutex<State>,
    /// Something can be read, or will not be any more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    segments: BTreeMap<String, Segment>,
    /// Records that went undelivered, by sink.
    lost: Vec<u64>,
    is_losing: bool,
    is_closed: bool,
}

/// What there is for a sink.
pub enum Read {
    /// Records.
    Batch(Batch),
    /// Nothing in the time given.
    Nothing,
    /// Nothing, and nothing will come.
    Closed,
}

/// What a sink is given at a time.
pub struct Batch {
    segment: String,
    to: u64,
    /// Records of a process that is gone: the last of them may have been delivered before.
    pub may_repeat: bool,
    bytes: Vec<u8>,
}

impl Batch {
    /// The segment that they lie in.
    pub fn segment(&self) -> &str {
        &self.segment
    }

    /// The records.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || match frame::next(rest) {
            Next::Record(record, length) => {
                rest = rest.get(length..).unwrap_or_default();
                Some(record)
            }
            Next::More(_) | Next::Torn => None,
        })
    }
}

fn is_full(problem: &io::Error) -> bool {
    matches!(problem.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A sink's side.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    sink: usize,
}

impl Spool {
    /// Opens the directory (created with mode 0750), claims what a process left there that is
    /// gone, and gives each sink its reader.
    ///
    /// # Errors
    /// When the directory cannot be made or written to.
    pub fn open(directory: &Path, maximum: u64, sinks: &[&'static str]) -> io::Result<(Self, Vec<Reader>)> {
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        }
        let state = State { lost: vec![0; sinks.len()], ..State::default() };
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            sinks: sinks.to_vec(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let seal_at = (maximum / SEGMENTS).min(SEGMENT_MAX);
        let mut spool = Self {
            shared,
            maximum,
            seal_at,
            active: None,
            made: 0,
            unreadable: Vec::new(),
            full_until: None,
        };
        spool.claim();
        segment::remove_strays(directory);
        spool.grow()?;
        let readers = (0..sinks.len()).map(|sink| Reader { shared: Arc::clone(&spool.shared), sink });
        let readers = readers.collect();
        Ok((spool, readers))
    }

    /// Appends these records in one write. Returns how many are lost because there is no room:
    /// all or none of them.
    pub fn append(&mut self, frames: &Frames) -> u64 {
        let now = Instant::now();
        if frames.is_empty() {
            return 0;
        }
        // A full disk is asked again in a while, not for each record.
        if self.full_until.is_some_and(|until| now < until) {
            return frames.count;
        }
        loop {
            match self.try_append(frames) {
                Ok(()) => {
                    if self.full_until.take().is_some() {
                        info!("records are written to {} again", self.shared.directory.display());
                    }
                    self.keep_within(self.maximum);
                    return 0;
                }
                Err(problem) if is_full(&problem) && self.drop_oldest() => {}
                Err(problem) => {
                    if self.full_until.is_none() {
                        let directory = self.shared.directory.display();
                        error!("records are lost, {directory} cannot be written: {problem}");
                    }
                    self.full_until = Some(now + FULL);
                    return frames.count;
                }
            }
        }
    }

    fn try_append(&mut self, frames: &Frames) -> io::Result<()> {
        let is_due = |state: &State, name: &str| {
            state.segments.get(name).is_none_or(|segment| segment.length() >= self.seal_at)
        };
        if self.active.as_deref().is_none_or(|name| is_due(&self.shared.lock(), name)) {
            self.grow()?;
        }
        let mut state = self.shared.lock();
        let segment = self.active.as_ref().and_then(|name| state.segments.get(name));
        let Some(file) = segment.map(Segment::file) else { return Err(io::ErrorKind::NotFound.into()) };
        let length = segment.map_or(0, Segment::length);
        // Readers look at the length alone: the lock is not held while the disk is waited for.
        drop(state);
        segment::write_whole(&file, frames.bytes(), length)?;
        state = self.shared.lock();
        if let Some(segment) = self.active.as_ref().and_then(|name| state.segments.get_mut(name)) {
            segment.grew(frames.len() as u64);
        }
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Seals the segment that grows and begins another.
    fn grow(&mut self) -> io::Result<()> {
        let next = segment::create(&self.shared.directory, self.made, &self.shared.sinks)?;
        self.made += 1;
        let mut state = self.shared.lock();
        if let Some(mut full) = self.active.take().and_then(|name| state.segments.remove(&name)) {
            full.seal(&self.shared.directory);
            state.insert(full);
        }
        self.active = Some(next.name().to_owned());
        state.insert(next);
        Ok(())
    }

    /// Claims the segments of processes that are gone.
    pub fn claim(&mut self) {
        for found in segment::orphans(&self.shared.directory, &self.shared.sinks) {
            match found {
                Ok(Found { segment, torn }) => {
                    if torn > 0 {
                        warn!("spool: {torn} bytes of a record that was being written are cut off");
                    }
                    let mut state = self.shared.lock();
                    state.insert(segment);
                    self.shared.changed.notify_all();
                }
                Err((path, problem)) if !self.unreadable.contains(&path) => {
                    error!("spool: {} cannot be read and is left as it is: {problem}", path.display());
                    self.unreadable.push(path);
                }
                Err(_) => {}
            }
        }
        self.shared.sweep();
    }

    fn keep_within(&mut self, maximum: u64) {
        while self.bytes() > maximum && self.drop_oldest() {}
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().segments.values().map(Segment::length).sum()
    }

    /// Bytes that some sink has not.
    pub fn waiting(&self) -> u64 {
        let slowest = |segment: &Segment| {
            (0..self.shared.sinks.len()).map(|sink| segment.unread(sink)).max().unwrap_or(0)
        };
        self.shared.lock().segments.values().map(slowest).sum()
    }

    /// Lets go of the oldest segment but the one that grows; `false` if there is none.
    fn drop_oldest(&mut self) -> bool {
        let mut state = self.shared.lock();
        let oldest = state.segments.keys().find(|name| Some(*name) != self.active.as_ref()).cloned();
        let Some(segment) = oldest.and_then(|name| state.segments.remove(&name)) else { return false };
        let is_news = !std::mem::replace(&mut state.is_losing, true);
        drop(state);
        let lost: Vec<u64> = (0..self.shared.sinks.len()).map(|sink| segment.undelivered(sink)).collect();
        segment.remove(&self.shared.directory);
        if is_news && lost.iter().any(|lost| *lost > 0) {
            let sinks: Vec<&str> = self
                .shared
                .sinks
                .iter()
                .zip(&lost)
                .filter(|(_, lost)| **lost > 0)
                .map(|(sink, _)| *sink)
                .collect();
            error!(
                "spool: there is no room for more: the oldest records go, undelivered to {}",
                sinks.join(" and ")
            );
        }
        let mut state = self.shared.lock();
        for (total, lost) in state.lost.iter_mut().zip(lost) {
            *total += lost;
        }
        true
    }

    /// Records that went undelivered since the last call, by sink.
    pub fn take_lost(&self) -> Vec<(&'static str, u64)> {
        let mut state = self.shared.lock();
        let lost = std::mem::replace(&mut state.lost, vec![0; self.shared.sinks.len()]);
        // It is over when there is room again, not between two segments that go.
        if state.is_losing && state.segments.values().map(Segment::length).sum::<u64>() < self.maximum / 2 {
            state.is_losing = false;
        }
        self.shared.sinks.iter().copied().zip(lost).filter(|(_, lost)| *lost > 0).collect()
    }

    /// Nothing more will be written: readers that have all end.
    pub fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Reader {
    /// Whose it is.
    pub fn sink(&self) -> &'static str {
        self.shared.sinks.get(self.sink).copied().unwrap_or("")
    }

    /// The next records, at most about so many bytes but one at least; waits for them for a while.
    pub fn next(&self, most: usize, patience: Duration) -> Read {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        loop {
            let unread = state.segments.values().find(|segment| segment.unread(self.sink) > 0);
            if let Some(segment) = unread {
                let (name, file) = (segment.name().to_owned(), segment.file());
                let (from, length) = (segment.delivered(self.sink), segment.length());
                let may_repeat = segment.is_claimed();
                drop(state);
                match segment::read(&file, from, length, most) {
                    Ok(bytes) if !bytes.is_empty() => {
                        let to = from + bytes.len() as u64;
                        return Read::Batch(Batch { segment: name, to, may_repeat, bytes });
                    }
                    problem => {
                        let problem =
                            problem.err().map_or_else(|| "it is damaged".to_owned(), |e| e.to_string());
                        error!("spool: the rest of {name} cannot be read and is left out: {problem}");
                        self.skip(&name, length);
                    }
                }
                state = self.shared.lock();
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.is_closed || left.is_zero() {
                return if state.is_closed { Read::Closed } else { Read::Nothing };
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// This sink has these records.
    pub fn delivered(&self, batch: &Batch) {
        self.skip(&batch.segment, batch.to);
    }

    /// Bytes that this sink has not read yet.
    pub fn behind(&self) -> u64 {
        self.shared.lock().segments.values().map(|segment| segment.unread(self.sink)).sum()
    }

    fn skip(&self, segment: &str, to: u64) {
        let mut state = self.shared.lock();
        if let Some(segment) = state.segments.get_mut(segment) {
            segment.note(self.sink, &self.shared.directory, to);
        }
        drop(state);
        self.shared.sweep();
    }
}

impl State {
    fn insert(&mut self, segment: Segment) {
        self.segments.insert(segment.name().to_owned(), segment);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what every sink has.
    fn sweep(&self) {
        let mut state = self.lock();
        let done: Vec<String> = state
            .segments
            .values()
            .filter(|segment| segment.is_done())
            .map(|segment| segment.name().to_owned())
            .collect();
        let done: Vec<Segment> = done.iter().filter_map(|name| state.segments.remove(name)).collect();
        drop(state);
        done.iter().for_each(|segment| segment.remove(&self.directory));
    }
}

/// At the end, when writer and readers are done, what every sink has goes.
impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for segment in state.segments.values() {
            if (0..self.sinks.len()).all(|sink| segment.unread(sink) == 0) {
                segment.remove(&self.directory);
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
