//! What happens to the objects of background responses, and the bookings for them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::runtime::Handle;

use super::local::OpenBookings;
use super::report::Handover;
use super::shared::SharedBookings;
use crate::admission::limits::{Booked, ClientAccounts};
use crate::record::stored_bookings::{BookingKeeper, ObjectEnd, StoredObjectKey};
use crate::shared::SharedLink;

/// The bookings of a process.
#[derive(Debug)]
pub struct StoredBookings {
    pub(super) accounts: Arc<ClientAccounts>,
    /// Set where several instances share budgets. The rest is not used then.
    shared: OnceLock<SharedBookings>,
    state: Mutex<State>,
    /// A handover has something to report, or ends.
    pub(super) changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) open: OpenBookings,
    /// From the capture of the bookings for a successor on.
    pub(super) handover: Option<Handover>,
}

impl StoredBookings {
    /// No bookings. They are corrected in these accounts.
    pub fn new(accounts: &Arc<ClientAccounts>) -> Self {
        Self {
            accounts: Arc::clone(accounts),
            shared: OnceLock::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// From now on the server keeps the bookings of all instances.
    pub fn share(&self, link: &Arc<SharedLink>, runtime: &Handle) {
        let _ = self.shared.set(SharedBookings::start(link, &self.accounts, runtime));
    }

    /// Whether the server keeps the bookings.
    pub(super) fn are_shared(&self) -> bool {
        self.shared.get().is_some()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BookingKeeper for StoredBookings {
    fn on_made(&self, object: StoredObjectKey, booked: Booked) {
        if let Some(shared) = self.shared.get() {
            return shared.on_made(object, booked);
        }
        let mut state = self.lock();
        if let Some(handover) = &mut state.handover {
            handover.add_made(object, &booked);
            self.changed.notify_all();
        }
        state.open.insert(object, booked);
    }

    fn on_ended(&self, object: StoredObjectKey, end: ObjectEnd) {
        if self.accounts.is_empty() {
            return;
        }
        if let Some(shared) = self.shared.get() {
            return shared.on_ended(object, end);
        }
        let mut state = self.lock();
        let Some(booked) = state.open.remove(object) else { return };
        let used = end.final_use(booked.deployment().as_ref());
        if let Some(handover) = &mut state.handover {
            handover.add_ended(object, booked, used);
            self.changed.notify_all();
            return;
        }
        drop(state);
        self.accounts.correct(&booked, used);
    }
}
