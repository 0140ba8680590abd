//! The thread that passes on what is learned: to the log, to a successor, or to whoever comes after one that
//! died.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::warn;

use super::follower::Follower;
use super::log::HomesLog;
use super::records::{encode_change, encode_entry};
use crate::routing::homes::{Homes, SnapshotPosition};
use crate::state::StateDirectory;
use crate::state::homes_log::{FILE_NAME, HEADER_BYTES, RECORD_BYTES, header};
use crate::system_error::describe;

/// How often changes are passed on. A kill loses those of this time.
const INTERVAL: Duration = Duration::from_millis(200);
/// The pause between two attempts to find somebody to report to.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the last changes may take to reach the successor.
const LAST_CHANGES_TIMEOUT: Duration = Duration::from_secs(1);
/// What is kept for whoever comes after a successor that died.
const MAX_UNREPORTED_BYTES: usize = 200_000 * RECORD_BYTES;
/// After how many bytes of a rewrite the changes of the meantime are passed on.
const REWRITE_STEP_BYTES: usize = 1 << 20;
/// After how many steps a rewrite is brought to the disk, so that no long wait comes at its end.
const STEPS_PER_SYNC: u32 = 4;

/// Sends the bytes of a log to the process that serves now.
pub type ReportFunction = Box<dyn Fn(&[u8]) -> io::Result<()> + Send>;

/// What requests, the worker and the server share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) homes: Arc<Homes>,
    /// Why the log is not written, if it is not.
    pub(super) problem: Mutex<Option<String>>,
    pub(super) followers: Mutex<Vec<Arc<Follower>>>,
    /// The worker is waited for: a rewrite ends early.
    pub(super) is_awaited: AtomicBool,
}

impl Shared {
    /// Logs the first of several problems.
    pub(super) fn on_not_saved(&self, problem: String) {
        let mut current = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            warn!(
                "server.state_directory: ids of stored objects are remembered in memory only, until this process ends: \
                 {problem}"
            );
        }
        *current = Some(problem);
    }

    fn on_saved(&self) {
        if self.problem.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            warn!("server.state_directory: ids of stored objects are saved again");
        }
    }
}

/// What the worker is told.
pub(super) enum Command {
    /// This process owns the log.
    Own(Box<HomesLog>),
    /// It owns the log of its predecessor, which has told everything that is in it if `is_told`.
    TakeOver { log: Box<HomesLog>, is_told: bool },
    /// The successor is about to own it.
    Release { report: ReportFunction, done: SyncSender<()> },
    /// The process ends.
    Close { done: SyncSender<()> },
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    log: Option<HomesLog>,
    released: Option<Released>,
}

/// What a predecessor keeps in mind.
struct Released {
    report: ReportFunction,
    directory: Option<PathBuf>,
    unreported: Vec<u8>,
    report_not_before: Instant,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, log: None, released: None }
    }

    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            match commands.recv_timeout(INTERVAL) {
                Ok(Command::Own(log)) => self.log = Some(*log),
                Ok(Command::TakeOver { mut log, is_told }) => {
                    if is_told {
                        log.continue_unread(&self.shared.homes);
                    } else {
                        log.restore(&self.shared.homes);
                    }
                    self.log = Some(*log);
                }
                Ok(Command::Release { report, done }) => {
                    self.release(report);
                    let _ = done.send(());
                }
                Ok(Command::Close { done }) => {
                    self.close();
                    // Another process may take the directory as soon as this one is said to be done.
                    drop(self);
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.pass_on_changes();
            self.maintain_log(false);
            self.report_if_due();
        }
    }

    /// Takes the changes and passes them on. Returns them.
    fn pass_on_changes(&mut self) -> Vec<u8> {
        let (mut changes, mut bytes) = (Vec::new(), Vec::new());
        let is_complete = self.shared.homes.take_changes(&mut changes);
        changes.iter().for_each(|change| encode_change(change, &mut bytes));
        let mut followers = self.shared.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unsent = Vec::new();
        followers.retain(|follower| {
            if !is_complete {
                follower.on_lost_changes();
            }
            if !bytes.is_empty() {
                follower.push(&bytes);
            }
            let ended = follower.take_unsent_if_ended();
            unsent.extend_from_slice(ended.as_deref().unwrap_or_default());
            ended.is_none()
        });
        if let Some(released) = &mut self.released {
            // An ended follower had these changes in its queue already.
            let is_new = followers.is_empty() && unsent.is_empty();
            released.keep(if is_new { &bytes } else { &unsent });
        }
        drop(followers);
        if let Some(log) = &mut self.log {
            if !is_complete {
                log.on_lost_changes();
            }
            if let Err(problem) = log.append(&bytes, Instant::now()) {
                self.shared.on_not_saved(not_written(&problem));
            }
        }
        bytes
    }

    /// Brings the log to the disk, and writes it anew if that is due.
    fn maintain_log(&mut self, is_last_time: bool) {
        let Some(log) = &mut self.log else { return };
        let now = Instant::now();
        if let Err(problem) = log.sync(now, is_last_time) {
            self.shared.on_not_saved(not_written(&problem));
        }
        let is_due = match is_last_time {
            true => log.is_incomplete(),
            false => log.is_rewrite_due(&self.shared.homes, now),
        };
        if is_due {
            match self.rewrite(is_last_time) {
                Ok(true) => self.shared.on_saved(),
                Ok(false) => {}
                Err(problem) => self.shared.on_not_saved(not_written(&problem)),
            }
        }
    }

    /// Writes the log anew beside the old one. Returns false if it was interrupted.
    fn rewrite(&mut self, is_last_time: bool) -> io::Result<bool> {
        let Some(log) = &mut self.log else { return Ok(false) };
        let mut replacement = log.begin_rewrite(Instant::now())?;
        let homes = Arc::clone(&self.shared.homes);
        let (mut position, mut entries) = (SnapshotPosition::default(), Vec::new());
        let mut bytes = header(homes.hash_key().to_bytes()).to_vec();
        let (mut written, mut steps) = (0, 0_u32);
        loop {
            let goes_on = homes.copy_entries(&mut position, &mut entries);
            entries.drain(..).for_each(|entry| encode_entry(&entry, &mut bytes));
            if bytes.len() < REWRITE_STEP_BYTES && goes_on {
                continue;
            }
            // To the old file as well: it is the one that counts until the end.
            bytes.append(&mut self.pass_on_changes());
            replacement.file().write_all(&bytes)?;
            written += bytes.len();
            bytes.clear();
            if !goes_on {
                break;
            }
            if !is_last_time && self.shared.is_awaited.load(Ordering::Acquire) {
                return Ok(false);
            }
            steps += 1;
            if steps.is_multiple_of(STEPS_PER_SYNC) {
                replacement.file().sync_data()?;
            }
        }
        let Some(log) = &mut self.log else { return Ok(false) };
        log.finish_rewrite(replacement, ((written - HEADER_BYTES) / RECORD_BYTES) as u64)?;
        Ok(true)
    }

    /// Gives the log up. From now on the followers are told only.
    fn release(&mut self, report: ReportFunction) {
        self.pass_on_changes();
        // What is not on the disk yet is brought there with the records of the successor, in the same file.
        let directory = self.log.take().map(|log| log.directory_path());
        self.released =
            Some(Released { report, directory, unreported: Vec::new(), report_not_before: Instant::now() });
        self.shared.is_awaited.store(false, Ordering::Release);
    }

    fn report_if_due(&mut self) {
        let Some(released) = &mut self.released else { return };
        let now = Instant::now();
        if !released.unreported.is_empty() && now >= released.report_not_before {
            released.report_not_before = now + REPORT_INTERVAL;
            released.report(&self.shared.homes);
        }
    }

    fn close(&mut self) {
        self.pass_on_changes();
        self.maintain_log(true);
        let followers = self.shared.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent: Vec<u8> =
            followers.iter().flat_map(|follower| follower.close(LAST_CHANGES_TIMEOUT)).collect();
        drop(followers);
        if let Some(released) = &mut self.released {
            released.keep(&unsent);
            if !released.unreported.is_empty() && !released.report(&self.shared.homes) {
                released.append_to_log(&self.shared.homes);
            }
        }
    }
}

impl Released {
    fn keep(&mut self, changes: &[u8]) {
        let free = MAX_UNREPORTED_BYTES.saturating_sub(self.unreported.len());
        self.unreported.extend_from_slice(changes.get(..free).unwrap_or(changes));
    }

    /// Reports to the process that serves now. Returns whether that was possible.
    fn report(&mut self, homes: &Homes) -> bool {
        let bytes = [&header(homes.hash_key().to_bytes()), self.unreported.as_slice()].concat();
        let is_reported = (self.report)(&bytes).is_ok();
        if is_reported {
            self.unreported.clear();
        }
        is_reported
    }

    /// Appends to the log of a successor that is gone, if nobody else has come.
    fn append_to_log(&mut self, homes: &Homes) {
        let Some(directory) = self.directory.as_deref().and_then(|path| StateDirectory::open(path).ok())
        else {
            return;
        };
        let mut log = HomesLog::new(Arc::new(directory));
        log.continue_unread(homes);
        let now = Instant::now();
        if let Err(problem) = log.append(&self.unreported, now).and_then(|()| log.sync(now, true)) {
            warn!("server.state_directory: {}", not_written(&problem));
        }
    }
}

fn not_written(problem: &io::Error) -> String {
    format!("cannot write {FILE_NAME}: {}", describe(problem))
}
