//! Reads the messages of one side from its connection, within the memory that its client may use.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::time::{Instant, timeout_at};

use super::decoder::{Decoded, FREE_MESSAGE_BYTES, FrameDecoder, FrameError};
use super::{FrameSender, Message};
use crate::proxy::client::body_memory::MemoryReservation;

/// Bytes that are read at once. Long payloads are read directly into the message's buffer.
const READ_BYTES: usize = 16 * 1024;

/// Why no message was read.
#[derive(Debug, Error)]
pub(in crate::proxy) enum ReadError {
    /// The connection failed, or ended without a close frame.
    #[error("the connection was lost: {0}")]
    Lost(#[source] io::Error),
    /// The frames are malformed, or the message is longer than is allowed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The rest of a message did not arrive in time.
    #[error("a message whose rest does not arrive")]
    TooSlow,
    /// The client's share of `requests.body_memory` is used up.
    #[error("no memory is left for the message (requests.body_memory)")]
    OutOfMemory,
}

impl ReadError {
    /// The code to close with, if the side can still be told.
    pub(in crate::proxy) fn close_code(&self) -> Option<u16> {
        match self {
            Self::Lost(_) => None,
            Self::Frame(FrameError::Protocol(_)) => Some(1002),
            Self::Frame(FrameError::InvalidUtf8) => Some(1007),
            Self::Frame(FrameError::TooLarge) => Some(1009),
            Self::TooSlow => Some(1008),
            Self::OutOfMemory => Some(1013),
        }
    }
}

/// Reads whole messages of one side. Between messages it holds no buffer.
pub(in crate::proxy) struct MessageReader<R> {
    source: R,
    decoder: FrameDecoder,
    /// What the message under way, or the one returned last, takes beyond what is free.
    memory: MemoryReservation,
    /// How long a message may take from its first byte; `None` if it may take any time.
    message_limit: Option<Duration>,
    /// When the message under way began.
    message_began_at: Option<Instant>,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// A reader of what this side sends after the handshake. `first_bytes` were read with the handshake.
    pub(in crate::proxy) fn new(
        source: R,
        sender: FrameSender,
        first_bytes: Bytes,
        max_message_bytes: usize,
        memory: MemoryReservation,
    ) -> Self {
        let mut decoder = FrameDecoder::new(sender, max_message_bytes);
        decoder.push_first(first_bytes);
        Self { source, decoder, memory, message_limit: None, message_began_at: None }
    }

    /// Limits the time that a message may take from its first byte.
    pub(in crate::proxy) fn limit_message_time(&mut self, limit: Duration) {
        self.message_limit = Some(limit);
    }

    /// The time for the message under way begins anew, because nothing is read for a while.
    pub(in crate::proxy) fn restart_message_time(&mut self) {
        self.message_began_at = None;
    }

    /// Changes the limit for frames of which nothing has been decoded.
    pub(in crate::proxy) fn set_max_message_bytes(&mut self, bytes: usize) {
        self.decoder.set_max_message_bytes(bytes);
    }

    /// The reservation of the message that was returned last. Without this call it is released when the next
    /// message is asked for.
    pub(in crate::proxy) fn take_memory(&mut self) -> MemoryReservation {
        self.memory.split_off(self.charged_bytes())
    }

    /// Reads the next message. Control frames are returned where they are, also between the fragments of a
    /// message. After a close only the end of the connection follows, which is an error.
    ///
    /// A call that is cancelled loses nothing.
    ///
    /// # Errors
    /// See [`ReadError`]. The reader stays in error.
    pub(in crate::proxy) async fn next(&mut self) -> Result<Message, ReadError> {
        drop(self.take_memory());
        loop {
            match self.decoder.decode()? {
                Decoded::Message(message) => {
                    if matches!(message, Message::Text(_) | Message::Binary(_)) {
                        self.message_began_at = None;
                    }
                    return Ok(message);
                }
                Decoded::NeedsMemory(bytes) => {
                    let charged = bytes.saturating_sub(FREE_MESSAGE_BYTES) as u64;
                    self.memory.grow_to(charged).map_err(|_| ReadError::OutOfMemory)?;
                    self.decoder.allow_memory(bytes);
                }
                Decoded::NeedsBytes => {
                    if self.read_in_time().await?.map_err(ReadError::Lost)? == 0 {
                        return Err(ReadError::Lost(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
    }

    /// What the message under way is charged.
    fn charged_bytes(&self) -> u64 {
        self.decoder.allowed_message_bytes().saturating_sub(FREE_MESSAGE_BYTES) as u64
    }

    /// Reads more bytes, within the time that the message under way has left.
    async fn read_in_time(&mut self) -> Result<io::Result<usize>, ReadError> {
        let Some(limit) = self.message_limit.filter(|_| self.decoder.is_within_message()) else {
            return Ok(self.read().await);
        };
        let began_at = *self.message_began_at.get_or_insert_with(Instant::now);
        timeout_at(began_at + limit, self.read()).await.map_err(|_| ReadError::TooSlow)
    }

    async fn read(&mut self) -> io::Result<usize> {
        let Self { source, decoder, .. } = self;
        if let Some(mut buffer) = decoder.payload_buffer() {
            let bytes = source.read_buf(&mut buffer).await?;
            decoder.note_payload(bytes);
            return Ok(bytes);
        }
        // On the stack of a poll, and so not in memory while nothing comes.
        poll_fn(|cx| {
            let mut buffer = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut *source).poll_read(cx, &mut buffer))?;
            decoder.push(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::names::Caller;
    use crate::proxy::client::body_memory::BodyMemory;
    use crate::proxy::websocket::frames::MessageWriter;

    const MIB: usize = 1 << 20;

    fn reservation(memory: &Arc<BodyMemory>, max_bytes: usize) -> MemoryReservation {
        BodyMemory::empty_reservation(memory, Caller::Address(None), max_bytes as u64)
    }

    #[tokio::test]
    async fn messages_of_both_sides_arrive_whole() {
        for sender in [FrameSender::Client, FrameSender::Backend] {
            let memory = Arc::<BodyMemory>::default();
            let (near, far) = tokio::io::duplex(5_000);
            let mut writer = MessageWriter::new(near, sender);
            let long = "é".repeat(MIB);
            writer.push_ping(b"p");
            writer.push_text(b"short");
            writer.push_text(long.as_bytes());
            writer.push_pong(b"");
            writer.push_close(1001, "rotate");
            let writing = tokio::spawn(async move { writer.shutdown().await.unwrap() });
            let mut reader =
                MessageReader::new(far, sender, Bytes::new(), 3 * MIB, reservation(&memory, 16 * MIB));
            let mut messages = Vec::new();
            while let Ok(message) = reader.next().await {
                messages.push(message);
            }
            writing.await.unwrap();
            let expected = [
                Message::Ping(Bytes::from_static(b"p")),
                Message::Text(Bytes::from_static(b"short")),
                Message::Text(long.into()),
                Message::Pong,
                Message::Close(Some((1001, "rotate".to_owned()))),
            ];
            assert!(messages == expected);
        }
    }

    #[tokio::test]
    async fn what_is_held_is_charged_and_released() {
        let memory = Arc::<BodyMemory>::default();
        let (near, far) = tokio::io::duplex(5_000);
        let mut writer = MessageWriter::new(near, FrameSender::Client);
        let text = vec![b'x'; MIB];
        for text in [&text[..], &text, b"short", &text, &text] {
            writer.push_text(text);
        }
        let writing = tokio::spawn(async move { writer.flush().await });
        let mut reader =
            MessageReader::new(far, FrameSender::Client, Bytes::new(), MIB, reservation(&memory, 2 * MIB));
        assert!(reader.next().await.is_ok());
        let whole = reservation(&memory, 2 * MIB).grow_to((MIB + 2 * FREE_MESSAGE_BYTES) as u64);
        assert!(whole.is_err(), "the message is charged until the next one is asked for");
        assert!(reader.next().await.is_ok());
        // A short message, which needs no memory, releases what the one before it had.
        assert!(reader.next().await.is_ok());
        assert!(reservation(&memory, 2 * MIB).grow_to(2 * MIB as u64).is_ok());
        assert!(reader.next().await.is_ok());
        // Taken with the message: the next one finds no memory.
        let taken = reader.take_memory();
        assert!(matches!(reader.next().await, Err(ReadError::OutOfMemory)));
        drop((reader, taken));
        assert!(reservation(&memory, 2 * MIB).grow_to(2 * MIB as u64).is_ok(), "all is released");
        assert!(writing.await.unwrap().is_err(), "the reader is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_read_loses_nothing() {
        let memory = Arc::<BodyMemory>::default();
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let mut reader =
            MessageReader::new(far, FrameSender::Backend, Bytes::new(), MIB, reservation(&memory, MIB));
        let mut bytes = Vec::new();
        super::super::encoder::push_frame(
            &mut bytes,
            FrameSender::Backend,
            super::super::encoder::FrameKind::Binary,
            &[7; 30_000],
        );
        assert!(!reader.decoder.is_within_message());
        for piece in bytes.chunks(1_000) {
            let read = tokio::time::timeout(Duration::from_millis(1), reader.next()).await;
            assert!(read.is_err(), "not whole yet");
            near.write_all(piece).await.unwrap();
        }
        assert_eq!(reader.next().await.unwrap(), Message::Binary(vec![7; 30_000].into()));
        assert!(!reader.decoder.is_within_message());
        drop(near);
        assert!(matches!(reader.next().await, Err(ReadError::Lost(_))));
    }

    #[tokio::test]
    async fn bytes_that_came_with_the_handshake_come_first() {
        let memory = Arc::<BodyMemory>::default();
        let first = Bytes::from_static(&[0x81, 2, b'h', b'i', 0x81]);
        let rest: &[u8] = &[1, b'!'];
        let mut reader =
            MessageReader::new(rest, FrameSender::Backend, first, MIB, reservation(&memory, MIB));
        assert_eq!(reader.next().await.unwrap(), Message::Text(Bytes::from_static(b"hi")));
        assert!(reader.decoder.is_within_message());
        assert_eq!(reader.next().await.unwrap(), Message::Text(Bytes::from_static(b"!")));
    }

    #[test]
    fn each_error_has_its_close_code() {
        let codes = [
            (ReadError::Lost(io::ErrorKind::UnexpectedEof.into()), None),
            (FrameError::Protocol("").into(), Some(1002)),
            (FrameError::InvalidUtf8.into(), Some(1007)),
            (FrameError::TooLarge.into(), Some(1009)),
            (ReadError::TooSlow, Some(1008)),
            (ReadError::OutOfMemory, Some(1013)),
        ];
        for (error, code) in codes {
            assert_eq!(error.close_code(), code, "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_may_take_its_time_and_a_pause_any() {
        let memory = Arc::<BodyMemory>::default();
        let (mut near, far) = tokio::io::duplex(100);
        let mut reader =
            MessageReader::new(far, FrameSender::Backend, Bytes::new(), MIB, reservation(&memory, MIB));
        reader.limit_message_time(Duration::from_secs(1));
        let pause = Duration::from_secs(60);
        assert!(tokio::time::timeout(pause, reader.next()).await.is_err());
        // A ping does not give more time to the message that it interrupts.
        near.write_all(&[0x01, 1, b'a']).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(600), reader.next()).await.is_err());
        near.write_all(&[0x89, 0]).await.unwrap();
        assert!(matches!(reader.next().await, Ok(Message::Ping(_))));
        assert!(tokio::time::timeout(Duration::from_millis(300), reader.next()).await.is_err());
        near.write_all(&[0x80, 1, b'b', 0x81]).await.unwrap();
        assert!(matches!(reader.next().await, Ok(Message::Text(text)) if text == "ab"));
        assert!(tokio::time::timeout(Duration::from_millis(900), reader.next()).await.is_err());
        assert!(matches!(tokio::time::timeout(pause, reader.next()).await, Ok(Err(ReadError::TooSlow))));
    }
}
