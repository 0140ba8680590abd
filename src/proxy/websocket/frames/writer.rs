//! Writes messages to one side's connection, each as one frame.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::FrameSender;
use super::encoder::{FrameKind, close_payload, push_frame};

/// A buffer of at most this many bytes is kept for the next message.
const MAX_KEPT_BYTES: usize = 4 * 1024;

/// Writes messages to one side.
pub(in crate::proxy) struct MessageWriter<W> {
    target: W,
    sender: FrameSender,
    /// Frames that have been pushed and are not flushed yet.
    pending: Vec<u8>,
    /// Bytes of `pending` that have been written.
    written_of_pending: usize,
    needs_flush: bool,
}

impl<W: AsyncWrite + Unpin> MessageWriter<W> {
    /// A writer of what this side sends: as a client it masks each frame with a random key.
    pub(in crate::proxy) fn new(target: W, sender: FrameSender) -> Self {
        Self { target, sender, pending: Vec::new(), written_of_pending: 0, needs_flush: false }
    }

    /// Appends a text message to what is written next.
    pub(in crate::proxy) fn push_text(&mut self, text: &[u8]) {
        push_frame(&mut self.pending, self.sender, FrameKind::Text, text);
    }

    /// Appends a ping, of at most 125 bytes.
    pub(in crate::proxy) fn push_ping(&mut self, payload: &[u8]) {
        push_frame(&mut self.pending, self.sender, FrameKind::Ping, payload);
    }

    /// Appends the answer to a ping, with the ping's payload.
    pub(in crate::proxy) fn push_pong(&mut self, payload: &[u8]) {
        push_frame(&mut self.pending, self.sender, FrameKind::Pong, payload);
    }

    /// Appends a close frame. The reason is cut to the 123 bytes that have a place in it.
    pub(in crate::proxy) fn push_close(&mut self, code: u16, reason: &str) {
        push_frame(&mut self.pending, self.sender, FrameKind::Close, &close_payload(code, reason));
    }

    /// Writes all that was pushed. After a call that is cancelled the next one goes on where it stopped.
    ///
    /// # Errors
    /// If the connection fails.
    pub(in crate::proxy) async fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.pending.get(self.written_of_pending..).filter(|rest| !rest.is_empty()) {
            let written = self.target.write(rest).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.written_of_pending += written;
            self.needs_flush = true;
        }
        self.written_of_pending = 0;
        if self.pending.capacity() > MAX_KEPT_BYTES {
            self.pending = Vec::new();
        }
        self.pending.clear();
        if self.needs_flush {
            self.target.flush().await?;
            self.needs_flush = false;
        }
        Ok(())
    }

    /// Writes all that was pushed and ends the direction.
    ///
    /// # Errors
    /// If the connection fails.
    pub(in crate::proxy) async fn shutdown(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.target.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_flush_goes_on_where_it_stopped() {
        let (near, mut far) = tokio::io::duplex(100);
        let mut writer = MessageWriter::new(near, FrameSender::Backend);
        writer.push_text(&[b'x'; 10_000]);
        let mut received = Vec::new();
        while tokio::time::timeout(Duration::from_millis(1), writer.flush()).await.is_err() {
            let mut part = [0; 64];
            let length = far.read(&mut part).await.unwrap();
            received.extend_from_slice(part.get(..length).unwrap());
        }
        assert!(writer.pending.capacity() == 0, "no buffer is kept");
        drop(writer);
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 10_004);
        assert!(received.get(4..).unwrap().iter().all(|byte| *byte == b'x'));
    }
}
