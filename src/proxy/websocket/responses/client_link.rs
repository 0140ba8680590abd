//! The connection to the client of a socket as its tasks share it: the writing half, and whether the client is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pingora::protocols::Stream;
use tokio::io::WriteHalf;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::proxy::client::body_memory::MemoryReservation;
use crate::proxy::websocket::frames::MessageWriter;

/// Messages that the client has not taken for this long count as held memory.
const UNREAD_GRACE: Duration = Duration::from_secs(1);

/// The writing half of a client's connection.
pub(super) struct ClientLink {
    /// Held while messages are written, so that those of several turns do not mix.
    writer: Mutex<MessageWriter<WriteHalf<Stream>>>,
    /// Bytes of the messages that were sent.
    pub(super) sent_bytes: AtomicU64,
    is_lost: watch::Sender<bool>,
}

/// The client has disconnected, or does not read.
#[derive(Debug)]
pub(super) struct ClientLost;

impl ClientLink {
    pub(super) fn new(writer: MessageWriter<WriteHalf<Stream>>) -> Self {
        Self { writer: Mutex::new(writer), sent_bytes: AtomicU64::new(0), is_lost: watch::Sender::new(false) }
    }

    /// Sends these messages. `limit` is how long the client may take to read them; after [`UNREAD_GRACE`] of that,
    /// `hold_memory` says whether there is memory for what waits.
    ///
    /// # Errors
    /// If the client is lost.
    pub(super) async fn send(
        &self,
        messages: &[Bytes],
        limit: Duration,
        hold_memory: impl Fn() -> Option<MemoryReservation>,
    ) -> Result<(), ClientLost> {
        let bytes: usize = messages.iter().map(Bytes::len).sum();
        let write = self.write(|writer| messages.iter().for_each(|message| writer.push_text(message)));
        let mut write = std::pin::pin!(write);
        let grace = limit.min(UNREAD_GRACE);
        let sent = match timeout(grace, &mut write).await {
            Ok(sent) => sent,
            Err(_) => {
                let memory = hold_memory();
                match memory {
                    Some(_) => timeout(limit - grace, write).await.unwrap_or(Err(ClientLost)),
                    None => Err(ClientLost),
                }
            }
        };
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        // A message may have been written in part, so nothing can follow.
        sent.inspect_err(|_| self.mark_lost())
    }

    /// Writes what `push` adds, unless the client is lost.
    async fn write(
        &self,
        push: impl FnOnce(&mut MessageWriter<WriteHalf<Stream>>),
    ) -> Result<(), ClientLost> {
        tokio::select! {
            biased;
            sent = self.push_and_flush(push) => sent,
            () = self.lost() => Err(ClientLost),
        }
    }

    /// Writes what `push` adds within `limit`.
    ///
    /// # Errors
    /// If the client is lost.
    pub(super) async fn send_control(
        &self,
        limit: Duration,
        push: impl FnOnce(&mut MessageWriter<WriteHalf<Stream>>),
    ) -> Result<(), ClientLost> {
        let sent = timeout(limit, self.write(push)).await.unwrap_or(Err(ClientLost));
        sent.inspect_err(|_| self.mark_lost())
    }

    /// Writes what `push` adds within `limit`, even if the client is marked as lost, so that turns no longer write.
    ///
    /// # Errors
    /// If the client does not read it in time.
    pub(super) async fn send_last(
        &self,
        limit: Duration,
        push: impl FnOnce(&mut MessageWriter<WriteHalf<Stream>>),
    ) -> Result<(), ClientLost> {
        timeout(limit, self.push_and_flush(push)).await.unwrap_or(Err(ClientLost))
    }

    async fn push_and_flush(
        &self,
        push: impl FnOnce(&mut MessageWriter<WriteHalf<Stream>>),
    ) -> Result<(), ClientLost> {
        let mut writer = self.writer.lock().await;
        push(&mut writer);
        writer.flush().await.map_err(|_| ClientLost)
    }

    /// Ends the writing direction of the connection.
    pub(super) async fn shut_down(&self, limit: Duration) {
        let shutdown = async { self.writer.lock().await.shutdown().await };
        let _ = timeout(limit, shutdown).await;
    }

    /// Cancels all writes to the client and wakes whatever waits in [`Self::lost`].
    pub(super) fn mark_lost(&self) {
        self.is_lost.send_replace(true);
    }

    pub(super) fn is_lost(&self) -> bool {
        *self.is_lost.borrow()
    }

    /// Waits until the client is lost.
    pub(super) async fn lost(&self) {
        let _ = self.is_lost.subscribe().wait_for(|is_lost| *is_lost).await;
    }
}
