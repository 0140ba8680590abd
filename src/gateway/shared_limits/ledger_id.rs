//! Under which id the server counts what this instance has used.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::task::spawn_blocking;

use crate::state::StateDirectory;
use crate::state::ledger;

/// An id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LedgerId {
    pub(super) id: String,
    /// It is kept in the state directory, for the process after this one.
    pub(super) is_kept: bool,
}

/// The id of this instance; none before the reports start.
#[derive(Debug, Default)]
pub(super) struct OwnLedgerId {
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    current: Arc<LedgerId>,
    /// A successor takes the directory while this process still runs.
    directory: Weak<StateDirectory>,
}

impl LedgerId {
    fn new(kept: Option<String>) -> Arc<Self> {
        let is_kept = kept.is_some();
        Arc::new(Self { id: kept.unwrap_or_else(ledger::new_id), is_kept })
    }
}

impl OwnLedgerId {
    /// Takes the id that the directory has. Blocks.
    pub(super) fn start(&self, directory: Option<&Arc<StateDirectory>>) {
        let current = LedgerId::new(directory.and_then(|directory| ledger::find_or_create(directory)));
        let directory = directory.map(Arc::downgrade).unwrap_or_default();
        *self.lock() = Some(State { current, directory });
    }

    pub(super) fn get(&self) -> Option<Arc<LedgerId>> {
        self.lock().as_ref().map(|state| Arc::clone(&state.current))
    }

    /// Takes a new id, and keeps it in the directory.
    pub(super) async fn replace(&self) {
        let directory = self.lock().as_ref().map(|state| state.directory.clone()).unwrap_or_default();
        let write = move || directory.upgrade().and_then(|directory| ledger::replace(&directory));
        let new = LedgerId::new(spawn_blocking(write).await.ok().flatten());
        if let Some(state) = self.lock().as_mut() {
            state.current = new;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
