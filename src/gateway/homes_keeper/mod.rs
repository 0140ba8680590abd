//! Keeps the homes of objects: in a log in the state directory, and over an upgrade.
//!
//! One thread takes what the memory has recorded and passes it on (`worker.rs`), so that no request waits for a
//! disk or for another process. In an upgrade the successor connects and is told everything, then each change
//! until this process ends (`follower.rs`, `source.rs`). The owner of the state directory alone writes there.

mod follower;
mod log;
mod reader;
mod records;
mod source;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::log::warn;

use self::follower::Follower;
use self::log::HomesLog;
use self::worker::{Command, Shared, Worker};
use crate::routing::homes::Homes;
use crate::state::homes_log::HeaderError;
use crate::state::{StateDirectory, StateError};

pub use self::log::read_hash_key;
pub use self::reader::read_homes;
pub use self::source::HomesSource;
pub use self::worker::ReportFunction;

/// How long a handover waits until the log is given up. A disk that hangs does not keep it longer: what is
/// written late goes to a file that the successor has replaced.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of the process waits for the last changes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps the memory of homes of one process.
#[derive(Debug)]
pub struct HomesKeeper {
    shared: Arc<Shared>,
    /// To the worker, which is started when it is first needed.
    commands: Mutex<Option<Sender<Command>>>,
}

impl HomesKeeper {
    /// Keeps this memory, in memory only until it gets a directory.
    pub fn new(homes: Arc<Homes>) -> Self {
        let shared = Shared {
            homes,
            problem: Mutex::default(),
            followers: Mutex::default(),
            is_awaited: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), commands: Mutex::default() }
    }

    /// Reads the log at a start and goes on with it. A directory that cannot be used is logged.
    pub fn restore(&self, opened: &Result<Arc<StateDirectory>, StateError>) {
        if let Some(mut log) = self.log_in(opened) {
            log.restore(&self.shared.homes);
            self.send(Command::Own(Box::new(log)));
        }
    }

    /// Goes on with the log of the predecessor. It is read, in the background, unless the predecessor has told
    /// what is in it.
    pub fn take_over(&self, opened: &Result<Arc<StateDirectory>, StateError>, is_told: bool) {
        if let Some(log) = self.log_in(opened) {
            self.send(Command::TakeOver { log: Box::new(log), is_told });
        }
    }

    /// Tells a process everything, and then each change until this process ends or the connection does.
    ///
    /// # Errors
    /// If it cannot be begun.
    pub fn tell(&self, stream: UnixStream) -> io::Result<()> {
        // Changes have to be recorded before they are told.
        self.start_worker();
        Follower::start(stream, Arc::clone(&self.shared.homes), |follower| {
            self.shared.followers.lock().unwrap_or_else(PoisonError::into_inner).push(follower);
        })
    }

    /// Adds what a predecessor reports that could not tell its own successor. Waits until it has ended.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn accept_report(&self, stream: UnixStream) -> Result<(), HeaderError> {
        HomesSource::open(stream)?.apply_to(&self.shared.homes, || {});
        Ok(())
    }

    /// Gives the log up for the successor. What it does not take is sent with `report` to whoever serves then, or
    /// appended to the log at the end if nobody does.
    pub fn release_directory(&self, report: ReportFunction) {
        let (done, is_done) = sync_channel(1);
        self.shared.is_awaited.store(true, Ordering::Release);
        if self.send_if_started(Command::Release { report, done })
            && is_done.recv_timeout(RELEASE_TIMEOUT) == Err(RecvTimeoutError::Timeout)
        {
            warn!("{} is still being written by this process", crate::state::homes_log::FILE_NAME);
        }
    }

    /// Passes the last changes on, at the end of the process.
    pub fn close(&self) {
        let (done, is_done) = sync_channel(1);
        self.shared.is_awaited.store(true, Ordering::Release);
        if self.send_if_started(Command::Close { done })
            && is_done.recv_timeout(CLOSE_TIMEOUT) == Err(RecvTimeoutError::Timeout)
        {
            warn!(
                "the ids of stored objects that were learned last may be lost: the disk or the successor is too slow"
            );
        }
    }

    /// Why the log is not written, if it is not.
    pub fn save_problem(&self) -> Option<String> {
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn log_in(&self, opened: &Result<Arc<StateDirectory>, StateError>) -> Option<HomesLog> {
        match opened {
            Ok(directory) => Some(HomesLog::new(Arc::clone(directory))),
            Err(problem) => {
                self.shared.on_not_saved(problem.to_string());
                None
            }
        }
    }

    fn send(&self, command: Command) {
        self.start_worker();
        self.send_if_started(command);
    }

    fn send_if_started(&self, command: Command) -> bool {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.as_ref().is_some_and(|commands| commands.send(command).is_ok())
    }

    fn start_worker(&self) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if commands.is_some() {
            return;
        }
        let (sender, receiver) = channel();
        let worker = Worker::new(Arc::clone(&self.shared));
        let thread = std::thread::Builder::new().name("homes".to_owned());
        match thread.spawn(move || worker.run(&receiver)) {
            Ok(_) => {
                self.shared.homes.start_recording_changes();
                *commands = Some(sender);
            }
            Err(problem) => self.shared.on_not_saved(format!("cannot start a thread: {problem}")),
        }
    }
}
