//! How requests and the server reach the thread that saves.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Mutex, PoisonError};

use super::file::BudgetFile;
use crate::state::budget_log::BudgetEntry;

/// Sends what this process has counted since it gave the directory up to the process that serves now.
pub type BudgetReport = Box<dyn Fn(&[BudgetEntry]) -> io::Result<()> + Send>;

/// What the thread is told.
pub(super) enum Command {
    /// This process owns the file.
    Own(Box<BudgetFile>),
    /// An account has changed, and the thread had asked to be told.
    Changed,
    /// The successor is about to own the file.
    Release { report: BudgetReport, done: SyncSender<()> },
    /// The process ends.
    Close { done: SyncSender<()> },
}

/// The commands to the thread, once it runs.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    is_awaiting_change: AtomicBool,
    sender: Mutex<Option<Sender<Command>>>,
}

impl Mailbox {
    /// Opens the mailbox for a thread; `None` if there is one already.
    pub(super) fn open(&self) -> Option<Receiver<Command>> {
        let mut opened = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.is_some() {
            return None;
        }
        let (sender, receiver) = channel();
        *opened = Some(sender);
        Some(receiver)
    }

    /// Returns whether there is a thread.
    pub(super) fn send(&self, command: Command) -> bool {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().is_some_and(|sender| sender.send(command).is_ok())
    }

    /// From now on the thread is told of the next change.
    pub(super) fn await_change(&self) {
        self.is_awaiting_change.store(true, Ordering::Release);
    }

    /// Tells the thread of a change if it waits for one.
    pub(super) fn on_change(&self) {
        if self.is_awaiting_change.load(Ordering::Acquire)
            && self.is_awaiting_change.swap(false, Ordering::AcqRel)
        {
            self.send(Command::Changed);
        }
    }
}
