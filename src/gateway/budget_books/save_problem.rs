//! Why budgets are not saved.

use std::sync::{Mutex, MutexGuard, PoisonError};

use log::warn;

/// The current problem. It is logged once, and only if there are budgets.
#[derive(Debug, Default)]
pub(super) struct SaveProblem(Mutex<Incident>);

#[derive(Debug, Default)]
struct Incident {
    problem: Option<String>,
    is_told: bool,
}

impl SaveProblem {
    pub(super) fn current(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Budgets cannot be saved. It is logged at once if `is_used`.
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
            "server.state_directory: what clients have used of their budgets is kept in memory only, until this process \
             ends: {problem}"
        );
    }

    /// Budgets are saved.
    pub(super) fn end(&self) {
        if std::mem::take(&mut *self.lock()).is_told {
            warn!("server.state_directory: what clients have used of their budgets is saved again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Incident> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
