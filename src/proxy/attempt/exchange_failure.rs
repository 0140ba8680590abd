//! What the failure of an exchange means: for the request, and for its backend.

use std::time::Instant;

use pingora::{Error, ErrorSource, ErrorType};

use super::response_state::ResponseState;
use super::upstream_error::{UpstreamError, is_upload_error};
use crate::proxy::client::connection_limit::warn_of_local_shortage;
use crate::proxy::context::RequestContext;
use crate::proxy::error_types::{
    BACKEND_STALLED, FIRST_BYTE_TIMEOUT, NO_CREDENTIAL, NOT_ON_PINNED_RESOURCE, RESPONSE_IDLE_TIMEOUT,
    RETRY_ELSEWHERE, local_shortage,
};

impl RequestContext {
    /// Ends the current attempt, for which no connection could be made; returns whether another one follows.
    pub(in crate::proxy) fn on_connect_failed(&mut self, error: &Error, now: Instant) -> bool {
        // An HTTP/2 connection may turn out to have ended when a stream is opened on it. Pingora's error
        // for that has this type.
        let is_stale = *error.etype() == ErrorType::H2Error;
        let reason = UpstreamError::from_connect_error(error);
        if reason == UpstreamError::Tls
            && let Some(retry) = &self.retry_state
        {
            retry.log_tls_error(&error.to_string(), now);
        }
        if let Some(shortage) = local_shortage(error) {
            warn_of_local_shortage(shortage);
        }
        self.on_attempt_failed(reason, is_stale, now)
    }

    /// Ends the current attempt, whose exchange failed with this error; returns whether another one follows.
    /// `is_reused` says that its connection came from a pool.
    pub(in crate::proxy) fn on_exchange_failed(
        &mut self,
        error: &mut Error,
        is_reused: bool,
        now: Instant,
    ) -> bool {
        let timeout = match *error.etype() {
            FIRST_BYTE_TIMEOUT => Some(UpstreamError::FirstByteTimeout),
            RESPONSE_IDLE_TIMEOUT => Some(UpstreamError::IdleTimeout),
            BACKEND_STALLED => Some(UpstreamError::Stalled),
            _ => None,
        };
        let retries = match () {
            () if *error.etype() == RETRY_ELSEWHERE => true,
            () if *error.etype() == NOT_ON_PINNED_RESOURCE => false,
            () if *error.etype() == NO_CREDENTIAL => {
                self.retry_state.as_mut().is_some_and(|retry| retry.on_missing_credential(now))
            }
            // Before the next arm: the source is `Downstream` here as well, but the client is still
            // connected and gets a refusal.
            () if is_upload_error(error) => false,
            () if timeout.is_none() && *error.esource() == ErrorSource::Downstream => {
                self.ending.is_client_gone = true;
                false
            }
            () if self.is_response_committed() => {
                self.ending.has_response_failed = true;
                let reason = timeout.unwrap_or_else(|| UpstreamError::from_exchange_error(error));
                self.on_attempt_failed(reason, false, now);
                false
            }
            () => {
                let reason = timeout.unwrap_or_else(|| UpstreamError::from_exchange_error(error));
                // A pooled connection that ends before any byte of a response was closed by the backend
                // while the request was on its way. That is not counted as a failure of the backend.
                let is_stale = may_not_have_arrived(error, is_reused)
                    && reason == UpstreamError::Reset
                    && matches!(self.response_state, ResponseState::Awaited);
                self.on_attempt_failed(reason, is_stale, now)
            }
        };
        if retries {
            self.response_state = ResponseState::Awaited;
            self.overhead_clock.resume(now);
        }
        self.attempt_deadline = None;
        retries
    }
}

/// Whether a request that failed with this error may not have reached the backend: HTTP/2 says so, or the
/// connection came from the pool and may have ended before the request arrived.
fn may_not_have_arrived(error: &mut Error, is_reused: bool) -> bool {
    match *error.etype() {
        // Pingora allows a retry after REFUSED_STREAM and after a GOAWAY without an error. `retry()` panics
        // while it depends on whether the connection was reused, so that is decided first.
        ErrorType::H2Error => {
            error.retry.decide_reuse(is_reused);
            error.retry()
        }
        _ => is_reused,
    }
}
