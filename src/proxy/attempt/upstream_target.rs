//! The request of the current attempt, as its backend gets it.

use std::sync::Arc;

use http::HeaderName;
use pingora::{Error, Result};

use super::response_state::ResponseState;
use crate::azure::apply_edits;
use crate::credentials::SecretValue;
use crate::proxy::context::RequestContext;
use crate::proxy::error_types::{ATTEMPTS_EXHAUSTED, NO_CREDENTIAL};

/// Where the request of the current attempt goes, and with which credential.
pub(in crate::proxy) struct UpstreamTarget {
    /// The index of the backend in the configuration.
    pub(in crate::proxy) backend_index: usize,
    pub(in crate::proxy) path_and_query: String,
    /// The header field of the credential.
    pub(in crate::proxy) secret: (HeaderName, Arc<SecretValue>),
}

impl RequestContext {
    /// Begins the request of the current attempt: its body, edited for its backend, is what is to be sent.
    ///
    /// # Errors
    /// [`NO_CREDENTIAL`]; [`ATTEMPTS_EXHAUSTED`] if there is no current attempt.
    pub(in crate::proxy) fn begin_upstream_request(&mut self) -> Result<UpstreamTarget> {
        let exhausted = || Error::new(ATTEMPTS_EXHAUSTED);
        let retry = self.retry_state.as_mut().ok_or_else(exhausted)?;
        let target = retry.current_or_last_target().ok_or_else(exhausted)?;
        let backend_index = target.backend_index;
        let backend = self.config.gateway.backends.get(backend_index).ok_or_else(exhausted)?;
        let secret = backend.credential.current_auth_header().ok_or_else(|| Error::new(NO_CREDENTIAL))?;
        let upstream_request = retry.prepare_request(secret.1.id).ok_or_else(exhausted)?;
        // `RequestContext::on_request_sent` sets the first-byte deadline, and only if it finds these two.
        self.attempt_deadline = None;
        self.response_state = ResponseState::Awaited;
        let held_bytes = &self.body.held_bytes;
        let pieces = if upstream_request.body_edits.is_empty() {
            vec![held_bytes.clone()]
        } else {
            apply_edits(held_bytes, &upstream_request.body_edits)
        };
        self.body.replace_unsent_pieces(pieces);
        Ok(UpstreamTarget { backend_index, path_and_query: upstream_request.path_and_query, secret })
    }
}
