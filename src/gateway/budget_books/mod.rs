//! The books of budgets: what each client has used in the current UTC day and month; and those of costs, with the sums
//! that the status shows. They are kept in the state directory, so that they outlive a restart, a kill and an upgrade.
//!
//! Requests add to accounts in memory (`account.rs`). One thread passes on what has changed within a second
//! (`worker.rs`): to the file, or, once another process has taken over, to that process. It sleeps while nothing
//! changes. The owner of the state directory alone writes there.

mod account;
mod accounts;
mod cost_book;
mod file;
mod mailbox;
mod save_problem;
mod subject;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use ::log::warn;

use self::accounts::Accounts;
use self::file::BudgetFile;
use self::mailbox::Command;
use self::worker::Worker;
use crate::admission::limits::Budget;
use crate::names::{ClientName, DeploymentName};
use crate::state::budget_log::BudgetEntry;
use crate::state::{StateDirectory, StateError};

pub use self::account::{BudgetAccount, BudgetScope};
pub use self::mailbox::BudgetReport;
pub use self::subject::BookSubject;

/// How long a handover waits until the file is given up.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of the process waits for the last changes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// What the clients of one process have used of their budgets: in memory only, until they get a directory.
#[derive(Debug, Default)]
pub struct BudgetBooks {
    accounts: Arc<Accounts>,
}

impl BudgetBooks {
    fn new(subject: BookSubject) -> Self {
        Self { accounts: Arc::new(Accounts::new(subject)) }
    }

    /// What is used of a client's budget for a deployment, or for all.
    pub fn open(&self, client: Option<&ClientName>, deployment: Option<&DeploymentName>) -> Arc<dyn Budget> {
        self.account(&BudgetScope { client: client.cloned(), deployment: deployment.cloned() })
    }

    /// The account that all requests of a scope share. It begins at 0, or as it was saved.
    pub fn account(&self, scope: &BudgetScope) -> Arc<BudgetAccount> {
        self.accounts.get_or_create(scope)
    }

    /// Reads the file, at a start or after the predecessor has given the directory up, and goes on with it. A
    /// directory that cannot be used is logged if there are accounts.
    pub fn restore(&self, opened: &Result<Arc<StateDirectory>, StateError>) {
        match opened {
            Ok(directory) => {
                let (file, entries) = BudgetFile::open(Arc::clone(directory), self.accounts.subject);
                self.accounts.restore(&entries);
                self.start_worker();
                self.accounts.mailbox.send(Command::Own(Box::new(file)));
            }
            Err(problem) => self.accounts.on_not_saved(problem.to_string()),
        }
    }

    /// Writes everything, and releases the directory for the successor. What is used from then on is sent to the
    /// successor with `report`.
    pub fn release_directory(&self, report: BudgetReport) {
        self.start_worker();
        if !self.command_and_wait(RELEASE_TIMEOUT, |done| Command::Release { report, done }) {
            warn!("{} is still being written by this process", self.accounts.subject.file_name());
        }
    }

    /// Adds what a predecessor has counted since it gave the directory up.
    pub fn add_reported(&self, additions: &[BudgetEntry]) {
        self.accounts.add(additions);
    }

    /// Passes the last changes on, at the end of the process.
    pub fn close(&self) {
        if !self.command_and_wait(CLOSE_TIMEOUT, |done| Command::Close { done }) {
            warn!(
                "{} last may not be saved: the disk or the successor is too slow",
                self.accounts.subject.description()
            );
        }
    }

    /// Why they are not saved, if they are not.
    pub fn save_problem(&self) -> Option<String> {
        self.accounts.problem.current()
    }

    /// Returns false if the thread does not do it in time.
    fn command_and_wait(
        &self,
        time_limit: Duration,
        command: impl FnOnce(SyncSender<()>) -> Command,
    ) -> bool {
        let (done, is_done) = sync_channel(1);
        !self.accounts.mailbox.send(command(done))
            || is_done.recv_timeout(time_limit) != Err(RecvTimeoutError::Timeout)
    }

    fn start_worker(&self) {
        let Some(commands) = self.accounts.mailbox.open() else { return };
        let worker = Worker::new(Arc::clone(&self.accounts));
        let thread = std::thread::Builder::new().name(self.accounts.subject.thread_name().to_owned());
        if let Err(problem) = thread.spawn(move || worker.run(&commands)) {
            self.accounts.on_not_saved(format!("cannot start a thread: {problem}"));
        }
    }
}
