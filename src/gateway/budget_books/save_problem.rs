//! Why books are not saved.

use std::sync::{Mutex, MutexGuard, PoisonError};

use log::warn;

use super::subject::BookSubject;

/// The current problem. It is logged once, and only if there are accounts.
#[derive(Debug, Default)]
pub(super) struct SaveProblem {
    subject: BookSubject,
    incident: Mutex<Incident>,
}

#[derive(Debug, Default)]
struct Incident {
    problem: Option<String>,
    is_told: bool,
}

impl SaveProblem {
    pub(super) fn new(subject: BookSubject) -> Self {
        Self { subject, ..Self::default() }
    }

    pub(super) fn current(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Nothing can be saved. It is logged at once if `is_used`.
    pub(super) fn begin(&self, problem: String, is_used: bool) {
        self.lock().problem = Some(problem);
        if is_used {
            self.tell();
        }
    }

    /// Logs the problem, unless that was done.
    pub(super) fn tell(&self) {
        let mut incident = self.lock();
        let Incident { problem: Some(problem), is_told: is_told @ false } = &mut *incident else { return };
        *is_told = true;
        warn!(
            "server.state_directory: {} is kept in memory only, until this process ends: {problem}",
            self.subject.description()
        );
    }

    /// All is saved.
    pub(super) fn end(&self) {
        if std::mem::take(&mut *self.lock()).is_told {
            warn!("server.state_directory: {} is saved again", self.subject.description());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Incident> {
        self.incident.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
