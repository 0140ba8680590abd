//! The thread that passes on what is used: to the file, or to the process that serves in place of this one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use log::{debug, warn};

use super::account::TakenUse;
use super::accounts::Accounts;
use super::file::BudgetFile;
use super::mailbox::{BudgetReport, Command};
use crate::admission::budgets::UtcWindows;
use crate::state::StateDirectory;
use crate::state::budget_log::BudgetEntry;

/// The time between two times that changes are passed on. A kill loses those of at most a second, with the time
/// that a disk takes.
const INTERVAL: Duration = Duration::from_millis(800);
/// The pause after the file could not be written.
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// The pause after no process could be reported to.
const REPORT_RETRY_DELAY: Duration = Duration::from_secs(1);

pub(super) struct Worker {
    accounts: Arc<Accounts>,
    destination: Destination,
    /// When something has to be passed on; `None` while nothing changes.
    due: Option<Instant>,
    not_before: Instant,
}

/// Where changes go.
enum Destination {
    /// They stay in memory.
    Memory,
    /// This process owns the file.
    File(BudgetFile),
    /// Another process has taken over.
    Successor { report: BudgetReport, directory: Option<PathBuf> },
}

impl Worker {
    pub(super) fn new(accounts: Arc<Accounts>) -> Self {
        Self { accounts, destination: Destination::Memory, due: None, not_before: Instant::now() }
    }

    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let command = match self.due {
                Some(due) => commands.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let now = Instant::now();
            match command {
                Ok(Command::Own(file)) => {
                    (self.destination, self.due) = (Destination::File(*file), Some(now));
                }
                Ok(Command::Changed) => _ = self.due.get_or_insert(self.not_before.max(now)),
                Ok(Command::Release { report, done }) => {
                    self.release(report);
                    self.due = Some(now);
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
            if self.due.is_some_and(|due| due <= now) {
                self.pass_on(now);
            }
        }
    }

    /// Passes changes on, and decides when to do so again.
    fn pass_on(&mut self, now: Instant) {
        // First: a change after its account was looked at is told.
        self.accounts.mailbox.await_change();
        let pause = match &mut self.destination {
            Destination::Memory => None,
            Destination::File(file) => {
                let saved = save(file, &self.accounts).and_then(|()| file.sync());
                let is_saved = saved.is_ok();
                on_saved(saved, &self.accounts);
                (!is_saved).then_some(RETRY_DELAY)
            }
            Destination::Successor { report, .. } => {
                let reported = report_changes(report, &self.accounts);
                reported.is_err().then_some(REPORT_RETRY_DELAY)
            }
        };
        self.due = pause.map(|pause| now + pause);
        self.not_before = now + pause.unwrap_or(INTERVAL);
    }

    /// Writes what is left and gives the file up.
    fn release(&mut self, report: BudgetReport) {
        let mut directory = None;
        if let Destination::File(file) = &mut self.destination {
            // What is not on the disk yet is brought there by the successor, which writes the file anew.
            on_saved(save(file, &self.accounts), &self.accounts);
            directory = Some(file.directory_path().to_owned());
        }
        self.destination = Destination::Successor { report, directory };
    }

    fn close(&mut self) {
        match &mut self.destination {
            Destination::Memory => {}
            Destination::File(file) => {
                let saved = save(file, &self.accounts).and_then(|()| file.sync());
                on_saved(saved, &self.accounts);
            }
            Destination::Successor { report, directory } => {
                if report_changes(report, &self.accounts).is_err()
                    && let Some(directory) = directory.take()
                {
                    save_after_successor(&directory, &self.accounts);
                }
            }
        }
    }
}

/// Writes the changes, so that the kernel has them.
fn save(file: &mut BudgetFile, accounts: &Accounts) -> io::Result<()> {
    if file.needs_rewrite(accounts.len()) {
        let taken = accounts.take_all(UtcWindows::at(SystemTime::now()));
        if taken.is_empty() && !file.is_inherited() {
            return Ok(());
        }
        return pass_taken(taken, TakenUse::total, |entries| file.rewrite(entries));
    }
    pass_taken(accounts.take_unsaved(), TakenUse::total, |entries| match entries {
        [] => Ok(()),
        entries => file.append(entries),
    })
}

fn report_changes(report: &BudgetReport, accounts: &Accounts) -> io::Result<()> {
    pass_taken(accounts.take_unsaved(), TakenUse::addition, |entries| match entries {
        [] => Ok(()),
        entries => {
            report(entries).inspect_err(|problem| debug!("budgets and costs: cannot report: {problem}"))
        }
    })
}

/// Passes on what was taken, or puts it back.
fn pass_taken(
    taken: Vec<TakenUse>,
    to_entry: impl Fn(&TakenUse) -> BudgetEntry,
    pass: impl FnOnce(&[BudgetEntry]) -> io::Result<()>,
) -> io::Result<()> {
    let entries: Vec<_> = taken.iter().map(to_entry).collect();
    let passed = pass(&entries);
    if passed.is_err() {
        taken.into_iter().for_each(TakenUse::put_back);
    }
    passed
}

/// Adds to the file of a successor that is gone, if nobody else has come.
fn save_after_successor(directory: &Path, accounts: &Accounts) {
    let Ok(directory) = StateDirectory::open(directory) else { return };
    let (mut file, entries) = BudgetFile::open(Arc::new(directory), accounts.subject);
    let merged = Accounts::new(accounts.subject);
    merged.restore(&entries);
    let additions: Vec<_> = accounts.take_unsaved().iter().map(TakenUse::addition).collect();
    merged.add(&additions);
    if let Err(problem) = save(&mut file, &merged) {
        warn!("server.state_directory: {}", not_written(&problem, accounts));
    }
}

fn on_saved(saved: io::Result<()>, accounts: &Accounts) {
    match saved {
        Ok(()) => accounts.problem.end(),
        Err(problem) => accounts.on_not_saved(not_written(&problem, accounts)),
    }
}

fn not_written(problem: &io::Error, accounts: &Accounts) -> String {
    format!("cannot write {}: {problem}", accounts.subject.file_name())
}
