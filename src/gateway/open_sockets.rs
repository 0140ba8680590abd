//! The WebSockets that are open, and when they have to end: Responses sockets between two turns, all others with
//! the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// What the open WebSockets are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nothing.
    #[default]
    Open,
    /// To close between two turns.
    ClosingBetweenTurns,
    /// To close at once: the process ends.
    Ending,
}

/// The open WebSockets of the process.
#[derive(Debug, Default)]
pub struct OpenSockets {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    responses_count: AtomicUsize,
    realtime_count: AtomicUsize,
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Copy, Debug)]
enum SocketKind {
    Responses,
    Realtime,
}

impl Shared {
    fn count_of(&self, kind: SocketKind) -> &AtomicUsize {
        match kind {
            SocketKind::Responses => &self.responses_count,
            SocketKind::Realtime => &self.realtime_count,
        }
    }
}

impl OpenSockets {
    /// Counts a Responses WebSocket until the value is dropped.
    pub fn register(&self) -> OpenSocket {
        self.register_kind(SocketKind::Responses)
    }

    /// Counts a realtime session until the value is dropped.
    pub fn register_realtime(&self) -> OpenSocket {
        self.register_kind(SocketKind::Realtime)
    }

    fn register_kind(&self, kind: SocketKind) -> OpenSocket {
        let shared = Arc::clone(&self.shared);
        shared.count_of(kind).fetch_add(1, Ordering::AcqRel);
        let phase = shared.phase.subscribe();
        OpenSocket { shared, kind, phase }
    }

    /// How many Responses WebSockets are open.
    pub fn count(&self) -> usize {
        self.shared.count_of(SocketKind::Responses).load(Ordering::Acquire)
    }

    /// How many realtime sessions are open.
    pub fn realtime_count(&self) -> usize {
        self.shared.count_of(SocketKind::Realtime).load(Ordering::Acquire)
    }

    /// Sockets are closed between two turns from now on.
    pub fn begin_closing(&self) {
        self.advance_to(Phase::ClosingBetweenTurns);
    }

    /// Sockets have been told to close between two turns.
    pub fn is_closing(&self) -> bool {
        *self.shared.phase.borrow() >= Phase::ClosingBetweenTurns
    }

    /// Sockets are closed at once from now on, because the process ends.
    pub fn begin_ending(&self) {
        self.advance_to(Phase::Ending);
    }

    fn advance_to(&self, phase: Phase) {
        self.shared.phase.send_if_modified(|current| {
            let is_later = *current < phase;
            *current = phase.max(*current);
            is_later
        });
    }
}

/// An open WebSocket; counted until it is dropped.
#[derive(Debug)]
pub struct OpenSocket {
    shared: Arc<Shared>,
    kind: SocketKind,
    phase: watch::Receiver<Phase>,
}

impl OpenSocket {
    /// Waits until sockets are to be closed between two turns. It is cancel-safe, and completes at once from then
    /// on.
    pub async fn closing(&mut self) {
        self.wait_for(Phase::ClosingBetweenTurns).await;
    }

    /// Sockets are to be closed between two turns.
    pub fn is_closing(&self) -> bool {
        *self.phase.borrow() >= Phase::ClosingBetweenTurns
    }

    /// Waits until sockets are to be closed at once. It is cancel-safe, and completes at once from then on.
    pub async fn ending(&mut self) {
        self.wait_for(Phase::Ending).await;
    }

    async fn wait_for(&mut self, phase: Phase) {
        // The sender lives as long as `shared`.
        let _ = self.phase.wait_for(|current| *current >= phase).await;
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.shared.count_of(self.kind).fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn sockets_are_counted_by_kind_until_they_are_dropped() {
        let sockets = OpenSockets::default();
        let (first, second) = (sockets.register(), sockets.register());
        let session = sockets.register_realtime();
        assert_eq!((sockets.count(), sockets.realtime_count()), (2, 1));
        drop(first);
        assert_eq!((sockets.count(), sockets.realtime_count()), (1, 1));
        drop((second, session));
        assert_eq!((sockets.count(), sockets.realtime_count()), (0, 0));
    }

    #[test]
    fn open_and_later_sockets_learn_that_they_are_to_close() {
        let sockets = OpenSockets::default();
        let mut early = sockets.register();
        assert!(early.closing().now_or_never().is_none());
        assert!(!early.is_closing() && !sockets.is_closing());
        sockets.begin_closing();
        let mut late = sockets.register();
        for socket in [&mut early, &mut late] {
            // Also when it is asked again.
            for _ in 0..2 {
                assert!(socket.is_closing() && socket.closing().now_or_never().is_some());
            }
            assert!(socket.ending().now_or_never().is_none());
        }
    }

    #[test]
    fn the_end_of_the_process_closes_sockets_in_any_state_for_good() {
        let sockets = OpenSockets::default();
        let mut socket = sockets.register_realtime();
        sockets.begin_ending();
        sockets.begin_closing();
        assert!(socket.ending().now_or_never().is_some());
        assert!(socket.closing().now_or_never().is_some() && socket.is_closing());
    }

    #[tokio::test]
    async fn a_waiting_socket_is_woken() {
        let sockets = OpenSockets::default();
        let mut socket = sockets.register();
        let waiting = tokio::spawn(async move { socket.closing().await });
        tokio::task::yield_now().await;
        sockets.begin_closing();
        waiting.await.unwrap();
        assert_eq!(sockets.count(), 0);
    }
}
