//! One HTTP/1.1 connection: reads request heads and bodies, and writes raw bytes.

use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::error::ConnectionError;
use super::request_head::{RequestBodyFraming, RequestHead};
use super::resettable_stream::ResettableStream;

const MAX_HEAD_BYTES: usize = 256 * 1024;
const MAX_BODY_BYTES: u64 = 1024 * 1024 * 1024;
/// Bytes of the next request that are buffered while a response is being sent.
const MAX_PIPELINED_BYTES: usize = 1024 * 1024;
/// Free space in the buffer for each read of a body.
const BODY_READ_BUFFER_BYTES: usize = 64 * 1024;
/// How long a reset waits for the client to read what was already sent.
const DELAY_BEFORE_RESET: Duration = Duration::from_millis(15);
/// How long a closed connection is read so that the close does not become a reset.
const LINGERING_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A byte stream, and the bytes that were read from it but not yet consumed.
#[derive(Debug)]
pub(in crate::demo) struct HttpConnection<S> {
    stream: S,
    read_buffer: BytesMut,
}

impl<S: ResettableStream> HttpConnection<S> {
    pub(in crate::demo) fn new(stream: S) -> Self {
        Self { stream, read_buffer: BytesMut::new() }
    }

    /// Reads the next request head. `None` if the client closed the connection between two requests, or if
    /// no byte arrived for `idle_timeout`.
    pub(in crate::demo) async fn read_head(
        &mut self,
        idle_timeout: Option<Duration>,
    ) -> Result<Option<RequestHead>, ConnectionError> {
        let mut searched = 0;
        loop {
            // A client may send empty lines before a request line (RFC 9112 section 2.2).
            while searched == 0 && self.read_buffer.starts_with(b"\r\n") {
                self.read_buffer.advance(2);
            }
            // The empty line may have begun in the last three bytes of the previous read.
            let start = usize::saturating_sub(searched, 3);
            let tail = self.read_buffer.get(start..).unwrap_or_default();
            if let Some(end) = tail.windows(4).position(|window| window == b"\r\n\r\n") {
                let raw = self.read_buffer.split_to(start + end + 4);
                return RequestHead::parse(&raw).map(Some);
            }
            searched = self.read_buffer.len();
            if searched > MAX_HEAD_BYTES {
                return Err(ConnectionError::MalformedRequest(431, "request head too large"));
            }
            let read = self.stream.read_buf(&mut self.read_buffer);
            let byte_count = match idle_timeout {
                Some(limit) => timeout(limit, read).await.unwrap_or(Ok(0))?,
                None => read.await?,
            };
            if byte_count == 0 {
                return if searched == 0 { Ok(None) } else { Err(ConnectionError::Disconnected) };
            }
        }
    }

    /// Reads a request body into `body`, which holds what has arrived even if this fails. Trailers are
    /// dropped.
    pub(in crate::demo) async fn read_body(
        &mut self,
        framing: RequestBodyFraming,
        body: &mut BytesMut,
    ) -> Result<(), ConnectionError> {
        match framing {
            RequestBodyFraming::Length(length) => self.read_body_bytes(length, body).await,
            RequestBodyFraming::Chunked => loop {
                let line = self.read_line().await?;
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                let size =
                    std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
                let size =
                    size.ok_or(ConnectionError::MalformedRequest(400, "chunk size is not a hex number"))?;
                if size == 0 {
                    while !self.read_line().await?.is_empty() {}
                    return Ok(());
                }
                self.read_body_bytes(size, body).await?;
                if !self.read_line().await?.is_empty() {
                    return Err(ConnectionError::MalformedRequest(400, "chunk longer than its size"));
                }
            },
        }
    }

    /// Appends the next `missing` bytes to `body`.
    async fn read_body_bytes(
        &mut self,
        mut missing: u64,
        body: &mut BytesMut,
    ) -> Result<(), ConnectionError> {
        if missing.saturating_add(body.len() as u64) > MAX_BODY_BYTES {
            return Err(ConnectionError::MalformedRequest(413, "request body too large"));
        }
        while missing > 0 {
            if self.read_buffer.is_empty() {
                self.read_buffer.reserve(BODY_READ_BUFFER_BYTES);
                self.read_more_into_buffer().await?;
            }
            let count = usize::try_from(missing).unwrap_or(usize::MAX).min(self.read_buffer.len());
            body.extend_from_slice(&self.read_buffer.split_to(count));
            missing -= count as u64;
        }
        Ok(())
    }

    /// Reads one line of a chunked body, without its line end.
    async fn read_line(&mut self) -> Result<Bytes, ConnectionError> {
        loop {
            if let Some(end) = self.read_buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.read_buffer.split_to(end + 1).freeze();
                return Ok(line.slice(..line.trim_ascii_end().len()));
            }
            if self.read_buffer.len() > MAX_HEAD_BYTES {
                return Err(ConnectionError::MalformedRequest(400, "endless line in a chunked body"));
            }
            self.read_more_into_buffer().await?;
        }
    }

    /// The bytes of this range, once they have arrived. They stay in the buffer, so that cancelling it loses
    /// nothing.
    pub(in crate::demo) async fn peek(&mut self, range: Range<usize>) -> Result<&[u8], ConnectionError> {
        if self.read_buffer.capacity() < range.end {
            self.read_buffer.reserve(range.end - self.read_buffer.len());
        }
        while self.read_buffer.len() < range.end {
            self.read_more_into_buffer().await?;
        }
        Ok(self.read_buffer.get(range).unwrap_or_default())
    }

    /// Reads exactly `count` bytes, for WebSocket frames.
    pub(in crate::demo) async fn read_exact(&mut self, count: usize) -> Result<BytesMut, ConnectionError> {
        while self.read_buffer.len() < count {
            self.read_more_into_buffer().await?;
        }
        Ok(self.read_buffer.split_to(count))
    }

    async fn read_more_into_buffer(&mut self) -> Result<(), ConnectionError> {
        match self.stream.read_buf(&mut self.read_buffer).await? {
            0 => Err(ConnectionError::Disconnected),
            _ => Ok(()),
        }
    }

    /// Whether bytes beyond the request head have already arrived, so that the client does not wait for
    /// `100 Continue`.
    pub(in crate::demo) fn has_buffered_bytes(&self) -> bool {
        !self.read_buffer.is_empty()
    }

    /// Writes all bytes and flushes.
    pub(in crate::demo) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Sleeps; fails as soon as the client disconnects.
    pub(in crate::demo) async fn sleep_while_connected(
        &mut self,
        duration: Duration,
    ) -> Result<(), ConnectionError> {
        if duration.is_zero() {
            return Ok(());
        }
        // Cancelling the read loses nothing: `read_buf` is cancel safe, and its bytes are kept in the buffer.
        tokio::select! {
            () = sleep(duration) => Ok(()),
            () = self.wait_for_disconnect() => Err(ConnectionError::Disconnected),
        }
    }

    /// Returns when the client has disconnected. Bytes of the next request are buffered meanwhile.
    pub(in crate::demo) async fn wait_for_disconnect(&mut self) {
        while self.read_buffer.len() < MAX_PIPELINED_BYTES {
            if !matches!(self.stream.read_buf(&mut self.read_buffer).await, Ok(1..)) {
                return;
            }
        }
        // Too much was pipelined to go on reading, so that a disconnect can no longer be noticed.
        std::future::pending::<()>().await;
    }

    /// Closes the connection with a TCP reset.
    pub(in crate::demo) async fn reset(self) {
        // A reset makes the client drop what it has not yet read.
        sleep(DELAY_BEFORE_RESET).await;
        self.stream.set_reset_on_close();
        // The stream is dropped here, and with it the socket is closed.
    }

    /// Closes the connection in order: what was sent arrives, then the end.
    pub(in crate::demo) async fn close(mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        // Closing a socket with unread bytes sends a reset, which can destroy the response on its way.
        let drain = async {
            while matches!(self.stream.read_buf(&mut self.read_buffer).await, Ok(1..)) {
                self.read_buffer.clear();
            }
        };
        if timeout(LINGERING_CLOSE_TIMEOUT, drain).await.is_err() {
            log::trace!("simulate: the client keeps a closed connection open");
        }
    }
}
