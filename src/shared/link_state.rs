//! What the connection's task and those who use the connection have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::connect::ServerAccess;
use super::error::SharedError;
use super::problem::Problem;
use super::server_connection::ServerConnection;
use super::status::StatusKeeper;
use super::subscriptions::Subscriptions;

/// A message that is to be published.
#[derive(Debug)]
pub(super) struct OutgoingMessage {
    pub(super) channel: String,
    pub(super) payload: Vec<u8>,
}

/// The connection, while there is one, and what is kept between two of them.
pub(super) struct LinkState {
    pub(super) access: Arc<ServerAccess>,
    pub(super) status: StatusKeeper,
    pub(super) subscriptions: Subscriptions,
    /// `None` while there is none.
    connection: ArcSwapOption<ServerConnection>,
    dropped_messages: AtomicU64,
    /// Why a command was refused, if another connection may help.
    doubt: Mutex<Option<Problem>>,
    doubt_notify: Notify,
}

impl LinkState {
    pub(super) fn new(access: Arc<ServerAccess>, now: Instant) -> Self {
        Self {
            status: StatusKeeper::new(access.config.address(), now),
            access,
            subscriptions: Subscriptions::default(),
            connection: ArcSwapOption::empty(),
            dropped_messages: AtomicU64::new(0),
            doubt: Mutex::default(),
            doubt_notify: Notify::new(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.load().is_some()
    }

    pub(super) fn connection(&self) -> Result<ServerConnection, SharedError> {
        self.connection.load().as_deref().cloned().ok_or(SharedError::Down)
    }

    pub(super) fn set_connection(&self, connection: Option<ServerConnection>) {
        // What an earlier connection was doubted for is over.
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.connection.store(connection.map(Arc::new));
    }

    pub(super) fn count_dropped(&self, messages: usize) {
        self.dropped_messages.fetch_add(messages as u64, Ordering::Relaxed);
    }

    pub(super) fn dropped_messages(&self) -> u64 {
        self.dropped_messages.load(Ordering::Relaxed)
    }

    /// A server that has become a replica or forgets a password says so in each answer; another connection may lead to
    /// one that does not, or shows the problem to the operator. A cluster that is down is like no connection.
    pub(super) fn on_error(&self, error: SharedError) -> SharedError {
        let SharedError::Refused { code, detail } = &error else { return error };
        let Some(problem) = Problem::of_connection(code, detail.as_deref()) else { return error };
        let is_cluster_down = problem.is_cluster_down();
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
        self.doubt_notify.notify_one();
        if is_cluster_down { SharedError::Down } else { error }
    }

    /// Waits until an answer casts doubt on the connection.
    pub(super) async fn doubted(&self) -> Problem {
        loop {
            self.doubt_notify.notified().await;
            let problem = self.doubt.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(problem) = problem {
                return problem;
            }
        }
    }
}
