//! The upstream sockets of one client's socket that serve no turn at the moment.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::upstream_socket::{UpstreamRoute, UpstreamSocket};
use crate::proxy::websocket::frames::{Message, ReadError};

/// The most upstream sockets that are kept: as many as there can be lanes.
const MAX_IDLE_UPSTREAMS: usize = 16;
/// How long a backend has to take the close frame of a socket that is no longer needed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The close code of a socket that is no longer needed (RFC 6455, section 7.4.1).
const CLOSE_NORMAL: u16 = 1000;

/// Upstream sockets without a turn, the latest used last.
#[derive(Default)]
pub(super) struct IdleUpstreams(Mutex<Vec<UpstreamSocket>>);

impl IdleUpstreams {
    /// Keeps a socket for a later turn.
    pub(super) fn put(&self, socket: UpstreamSocket) {
        let mut sockets = self.lock();
        sockets.push(socket);
        if sockets.len() > MAX_IDLE_UPSTREAMS {
            close(sockets.remove(0));
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
        let is_usable = |socket: &UpstreamSocket| socket.route == *route && socket.is_free_for(lane);
        let made_previous = previous_response
            .and_then(|id| sockets.iter().position(|socket| is_usable(socket) && socket.made_latest(id)));
        let index = made_previous.or_else(|| sockets.iter().rposition(is_usable))?;
        Some(sockets.remove(index))
    }

    /// Takes the only socket that has this response, which is not stored.
    pub(super) fn take_owner_of(&self, unstored_response: &str) -> Option<UpstreamSocket> {
        let mut sockets = self.lock();
        let index = sockets.iter().position(|socket| socket.has_unstored_response(unstored_response))?;
        Some(sockets.remove(index))
    }

    /// Takes the socket that made this response, or else the latest used.
    pub(super) fn take_for_message(&self, response: Option<&str>) -> Option<UpstreamSocket> {
        let mut sockets = self.lock();
        let made = response.and_then(|id| sockets.iter().position(|socket| socket.made_latest(id)));
        match made {
            Some(index) => Some(sockets.remove(index)),
            None => sockets.pop(),
        }
    }

    /// Closes those that this does not keep.
    pub(super) fn retain(&self, keeps: impl Fn(&UpstreamSocket) -> bool) {
        let mut sockets = self.lock();
        let (kept, closed): (Vec<_>, Vec<_>) = std::mem::take(&mut *sockets).into_iter().partition(keeps);
        *sockets = kept;
        closed.into_iter().for_each(close);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Waits until one of them says something, and takes it. Cancel-safe.
    pub(super) async fn next_message(&self) -> (UpstreamSocket, Result<Message, ReadError>) {
        poll_fn(|cx| self.poll_next_message(cx)).await
    }

    fn poll_next_message(&self, cx: &mut Context<'_>) -> Poll<(UpstreamSocket, Result<Message, ReadError>)> {
        let mut sockets = self.lock();
        for index in 0..sockets.len() {
            let Some(socket) = sockets.get_mut(index) else { break };
            let read = pin!(socket.reader.next()).poll(cx);
            if let Poll::Ready(message) = read {
                return Poll::Ready((sockets.remove(index), message));
            }
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Vec<UpstreamSocket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for IdleUpstreams {
    fn drop(&mut self) {
        std::mem::take(&mut *self.lock()).into_iter().for_each(close);
    }
}

/// Closes a socket in a task of its own: nobody waits for that.
pub(super) fn close(mut socket: UpstreamSocket) {
    // Without a runtime the process ends.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            socket.writer.push_close(CLOSE_NORMAL, "");
            if socket.flush(CLOSE_TIMEOUT).await.is_ok() {
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, socket.writer.shutdown()).await;
            }
        });
    }
}
