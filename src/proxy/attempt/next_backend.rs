//! The backend of the next attempt, or what has to be waited for before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use tokio::time::sleep;

use super::retry_state::RetryStep;
use super::upstream_error::UpstreamError;
use crate::credentials::BackendCredential;
use crate::gateway::BackendQueuePlace;
use crate::names::BackendName;
use crate::proxy::context::RequestContext;
use crate::proxy::error_types::ATTEMPTS_EXHAUSTED;
use crate::routing::retry_plan::Wait;

/// Longest time that a request waits for a backend's credential to be fetched again, after the backend
/// rejected the one in use.
const MAX_CREDENTIAL_RENEWAL_WAIT: Duration = Duration::from_secs(5);

/// What comes before the next exchange.
pub(in crate::proxy) enum BackendStep {
    /// A connection to the backend with this index in the configuration. The attempt has begun.
    Connect(usize, Box<HttpPeer>),
    /// Await [`BackendWait::wait`], then call [`RequestContext::on_backend_wait_over`].
    Wait(BackendWait),
}

/// What is waited for between two attempts.
pub(in crate::proxy) enum BackendWait {
    Time(Wait),
    Credential(Arc<BackendCredential>),
    Queue(Box<BackendQueuePlace>),
}

impl BackendWait {
    pub(in crate::proxy) async fn wait(&mut self) {
        match self {
            Self::Time(wait) => sleep(wait.duration).await,
            Self::Credential(credential) => {
                credential.wait_for_pending_fetch(MAX_CREDENTIAL_RENEWAL_WAIT).await;
            }
            Self::Queue(place) => place.wait().await,
        }
    }
}

impl RequestContext {
    /// Begins the next attempt, or the wait before it. `needs_http1` if WebSockets are to follow.
    ///
    /// # Errors
    /// [`ATTEMPTS_EXHAUSTED`] if no further attempt is made.
    pub(in crate::proxy) fn next_backend(&mut self, needs_http1: bool, now: Instant) -> Result<BackendStep> {
        // The last attempt's deadline does not apply to this one.
        self.attempt_deadline = None;
        self.overhead_clock.pause(now);
        let config = Arc::clone(&self.config);
        if self.retry_state.as_ref().is_some_and(|retry| retry.attempt_count() > 0) {
            config.gateway.wake_queue();
        }
        loop {
            let Some(retry) = &mut self.retry_state else { return Err(Error::new(ATTEMPTS_EXHAUSTED)) };
            let wait = match retry.next_step(now) {
                RetryStep::Exhausted => return Err(Error::new(ATTEMPTS_EXHAUSTED)),
                RetryStep::Wait(wait) => BackendWait::Time(wait),
                RetryStep::Queue => match self.begin_queue_wait(now) {
                    Some(place) => return Ok(BackendStep::Wait(BackendWait::Queue(Box::new(place)))),
                    None => continue,
                },
                RetryStep::AwaitCredential(credential) => BackendWait::Credential(credential),
                RetryStep::Attempt(backend_index) => {
                    let name = config.gateway.backends.get(backend_index).map(|backend| &backend.config.name);
                    retry.begin_attempt(name.unwrap_or(&BackendName::new("?")), now);
                    match config.peers.peer_for_attempt(backend_index, needs_http1) {
                        Some(peer) => return Ok(BackendStep::Connect(backend_index, peer)),
                        // Its name has never resolved: the next step is another backend.
                        None if self.on_attempt_failed(UpstreamError::NameNeverResolved, false, now) => {
                            continue;
                        }
                        None => return Err(Error::new(ATTEMPTS_EXHAUSTED)),
                    }
                }
            };
            retry.begin_wait(now);
            return Ok(BackendStep::Wait(wait));
        }
    }

    /// Records that a wait is over.
    pub(in crate::proxy) fn on_backend_wait_over(&mut self, wait: BackendWait, now: Instant) {
        let Some(retry) = &mut self.retry_state else { return };
        match wait {
            BackendWait::Time(wait) => retry.on_wait_over(wait, now),
            BackendWait::Credential(_) => retry.on_credential_wait_over(now),
            BackendWait::Queue(mut place) => retry.on_queue_wait_over(place.take_end(), now),
        }
    }
}
