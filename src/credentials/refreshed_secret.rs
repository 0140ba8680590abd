//! A shared handle to a secret and to the background task that refreshes it.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use tokio::task::AbortHandle;

use super::secret_state::SecretState;
use crate::config::Secret;

/// A secret or token that is kept fresh for as long as a handle to it exists.
#[derive(Clone, Debug)]
pub struct RefreshedSecret(Arc<SecretAndTask>);

/// A [`RefreshedSecret`] that does not keep the secret alive.
pub(super) struct WeakRefreshedSecret(Weak<SecretAndTask>);

#[derive(Debug)]
struct SecretAndTask {
    state: Arc<SecretState>,
    /// `None` for a secret that does not change.
    refresh_task: Option<AbortHandle>,
}

impl RefreshedSecret {
    /// A secret that `refresh_task` fetches into `state`.
    pub(super) fn new(state: Arc<SecretState>, refresh_task: AbortHandle) -> Self {
        Self(Arc::new(SecretAndTask { state, refresh_task: Some(refresh_task) }))
    }

    /// A secret that does not change.
    pub(super) fn fixed(secret: &Secret, id: u64) -> Self {
        Self::without_task(SecretState::fixed(secret, id))
    }

    /// A secret that no task refreshes.
    pub(super) fn without_task(state: SecretState) -> Self {
        Self(Arc::new(SecretAndTask { state: Arc::new(state), refresh_task: None }))
    }

    pub(super) fn downgrade(&self) -> WeakRefreshedSecret {
        WeakRefreshedSecret(Arc::downgrade(&self.0))
    }
}

impl Deref for RefreshedSecret {
    type Target = SecretState;

    fn deref(&self) -> &SecretState {
        &self.0.state
    }
}

impl WeakRefreshedSecret {
    pub(super) fn upgrade(&self) -> Option<RefreshedSecret> {
        self.0.upgrade().map(RefreshedSecret)
    }

    /// Whether the last handle is gone.
    pub(super) fn is_dropped(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Drop for SecretAndTask {
    fn drop(&mut self) {
        if let Some(task) = &self.refresh_task {
            task.abort();
        }
    }
}
