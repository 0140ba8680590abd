//! What authenticates the balancer to a backend: a header name and the secret that goes with it.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use tokio::time::timeout;

use super::refreshed_secret::RefreshedSecret;
use super::secret_state::SecretValue;
#[cfg(test)]
use {super::secret_state::SecretState, crate::config::Secret};

/// The credential of a backend.
#[derive(Clone, Debug)]
pub struct BackendCredential {
    header_name: HeaderName,
    secret: RefreshedSecret,
}

impl BackendCredential {
    /// A credential that sends `secret` in the header `header_name`.
    pub(super) fn new(header_name: HeaderName, secret: RefreshedSecret) -> Self {
        Self { header_name, secret }
    }

    /// A key that does not change.
    #[cfg(test)]
    pub(crate) fn fixed_for_test(key: &str) -> Self {
        Self::new(HeaderName::from_static("api-key"), RefreshedSecret::fixed(&Secret::new(key), 1))
    }

    /// A key that [`SecretState::replace_for_test`] replaces.
    #[cfg(test)]
    pub(crate) fn replaceable_for_test(key: &str) -> Self {
        let state = SecretState::new("a key".to_owned(), Arc::default());
        state.replace_for_test(key);
        Self::new(HeaderName::from_static("api-key"), RefreshedSecret::without_task(state))
    }

    /// The header's name and current value; `None` before the first successful fetch.
    pub fn current_auth_header(&self) -> Option<(HeaderName, Arc<SecretValue>)> {
        Some((self.header_name.clone(), self.secret.current_value()?))
    }

    /// Waits until no fetch is pending, but not longer than `max_wait`.
    pub async fn wait_for_pending_fetch(&self, max_wait: Duration) {
        let _ = timeout(max_wait, self.secret.wait_for_pending_fetch()).await;
    }

    /// The secret that the header carries.
    pub fn secret(&self) -> &RefreshedSecret {
        &self.secret
    }
}
