//! Sends and receives the messages of the control socket, one line each.

use std::io;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::protocol::{ControlMessage, REPLY_TIMEOUT};

/// The maximum size of a message. The longest is the health of many backends.
const MAX_MESSAGE_BYTES: u64 = 64 * 1024 * 1024;

/// A connection of the control socket.
#[derive(Debug)]
pub struct ControlChannel {
    stream: BufReader<UnixStream>,
}

impl ControlChannel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }

    /// The connection, for what is no message. The other side must have sent nothing after its last message.
    ///
    /// # Errors
    /// If it cannot be taken from the runtime.
    pub(super) fn into_blocking(self) -> io::Result<BlockingStream> {
        let stream = self.stream.into_inner().into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// `TimedOut` if the other side does not read it within [`REPLY_TIMEOUT`].
    pub(super) async fn send(&mut self, message: &ControlMessage) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let sent = timeout(REPLY_TIMEOUT, self.stream.get_mut().write_all(&line)).await;
        sent.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the other side does not read"))?
    }

    /// Receives the next message.
    ///
    /// # Errors
    /// `TimedOut` if none arrives in time, `UnexpectedEof` if the connection is closed.
    pub(super) async fn receive(&mut self, time_limit: Duration) -> io::Result<ControlMessage> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_MESSAGE_BYTES);
        let read = timeout(time_limit, limited.read_until(b'\n', &mut line)).await;
        let read = read.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no message within {} s", time_limit.as_secs()))
        })?;
        if read? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        serde_json::from_slice(&line).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_that_the_other_side_does_not_read_ends_in_an_error() {
        let (stream, _silent) = UnixStream::pair().unwrap();
        let message = ControlMessage::Failed { reason: "x".repeat(16 << 20) };
        let sent = ControlChannel::new(stream).send(&message).await;
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
