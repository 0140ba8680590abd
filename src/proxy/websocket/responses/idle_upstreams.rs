//! The upstream sockets of one client's socket that serve no turn at the moment.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::idle_limit::{IdlePermit, IdleSocketLimit};
use super::upstream_socket::{UpstreamRoute, UpstreamSocket};
use crate::names::Caller;
use crate::proxy::websocket::frames::{Message, ReadError};

/// The most upstream sockets that are kept: as many as there can be lanes.
const MAX_IDLE_UPSTREAMS: usize = 16;
/// How long a backend has to take the close frame of a socket that is no longer needed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The close code of a socket that is no longer needed (RFC 6455, section 7.4.1).
const CLOSE_NORMAL: u16 = 1000;

/// The upstream sockets of one client's socket without a turn.
pub(super) struct IdleUpstreams {
    limit: Arc<IdleSocketLimit>,
    /// Whose sockets they are.
    holder: Caller,
    /// The latest used last.
    sockets: Mutex<Vec<IdleUpstream>>,
}

struct IdleUpstream {
    socket: UpstreamSocket,
    _permit: IdlePermit,
}

impl IdleUpstreams {
    pub(super) fn new(limit: Arc<IdleSocketLimit>, holder: Caller) -> Self {
        Self { limit, holder, sockets: Mutex::default() }
    }

    /// Keeps a socket for a later turn; closes older ones if there are too many.
    pub(super) fn put(&self, socket: UpstreamSocket) {
        let mut sockets = self.lock();
        loop {
            let permit = if sockets.len() < MAX_IDLE_UPSTREAMS {
                IdleSocketLimit::try_acquire(&self.limit, &self.holder)
            } else {
                None
            };
            if let Some(permit) = permit {
                sockets.push(IdleUpstream { socket, _permit: permit });
                return;
            }
            if sockets.is_empty() {
                return close(socket);
            }
            close(sockets.remove(0).socket);
        }
    }

    /// Takes a socket of this route for a turn of this lane: the one that made this response last, or else the latest
    /// used.
    pub(super) fn take_for(
        &self,
        route: &UpstreamRoute,
        lane: Option<&str>,
        previous_response: Option<&str>,
    ) -> Option<UpstreamSocket> {
        let mut sockets = self.lock();
        let is_usable = |idle: &IdleUpstream| idle.socket.route == *route && idle.socket.is_free_for(lane);
        let made_previous = previous_response
            .and_then(|id| sockets.iter().position(|idle| is_usable(idle) && idle.socket.made_latest(id)));
        let index = made_previous.or_else(|| sockets.iter().rposition(is_usable))?;
        Some(sockets.remove(index).socket)
    }

    /// Takes the socket that keeps this unstored response.
    pub(super) fn take_owner_of(&self, unstored_response: &str) -> Option<UpstreamSocket> {
        let mut sockets = self.lock();
        let index = sockets.iter().position(|idle| idle.socket.has_unstored_response(unstored_response))?;
        Some(sockets.remove(index).socket)
    }

    /// Takes the socket that made this response, or else the latest used.
    pub(super) fn take_for_message(&self, response: Option<&str>) -> Option<UpstreamSocket> {
        let mut sockets = self.lock();
        let made = response.and_then(|id| sockets.iter().position(|idle| idle.socket.made_latest(id)));
        match made {
            Some(index) => Some(sockets.remove(index).socket),
            None => sockets.pop().map(|idle| idle.socket),
        }
    }

    /// Closes the sockets for which `keeps` returns false.
    pub(super) fn retain(&self, keeps: impl Fn(&UpstreamSocket) -> bool) {
        let mut sockets = self.lock();
        let closed = sockets.extract_if(.., |idle| !keeps(&idle.socket));
        closed.for_each(|idle| close(idle.socket));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Waits for a message on one of the sockets, and takes that socket. Cancel-safe.
    pub(super) async fn next_message(&self) -> (UpstreamSocket, Result<Message, ReadError>) {
        poll_fn(|cx| self.poll_next_message(cx)).await
    }

    fn poll_next_message(&self, cx: &mut Context<'_>) -> Poll<(UpstreamSocket, Result<Message, ReadError>)> {
        let mut sockets = self.lock();
        for index in 0..sockets.len() {
            let Some(idle) = sockets.get_mut(index) else { break };
            let read = pin!(idle.socket.reader.next()).poll(cx);
            if let Poll::Ready(message) = read {
                return Poll::Ready((sockets.remove(index).socket, message));
            }
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Vec<IdleUpstream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for IdleUpstreams {
    fn drop(&mut self) {
        self.retain(|_| false);
    }
}

/// Closes a socket in the background.
pub(super) fn close(mut socket: UpstreamSocket) {
    // There is no runtime only when the process ends.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            socket.writer.push_close(CLOSE_NORMAL, "");
            if socket.flush(CLOSE_TIMEOUT).await.is_ok() {
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, socket.writer.shutdown()).await;
            }
        });
    }
}
