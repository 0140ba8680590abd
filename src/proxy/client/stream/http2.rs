//! A client's HTTP/2 connection, with what h2 and Pingora neither limit nor report: the deadline of request heads, what
//! waits for a client that does not read, and the number of malformed requests.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use log::debug;
use pingora::protocols::Stream;
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http2_deadline::HeadDeadline;
use super::http2_errors::is_refusal;
use super::http2_frames::{FrameEvent, FrameReader};
use super::http2_unread::{OpenStreams, UnreadLimit, WriteOperation};
use crate::proxy::client::body_memory::MemoryReservation;
use crate::proxy::client::reset;
use crate::proxy::stream_wrapper::delegate_stream_traits;

/// A client's connection. Reads fail when a request head is too slow, writes also when the client does not read.
#[derive(Debug)]
pub(in crate::proxy::client) struct Http2Stream {
    inner: Stream,
    heads: HeadDeadline,
    /// The frames that are written.
    written: FrameReader,
    open_streams: OpenStreams,
    unread: UnreadLimit,
    malformed_requests: IntCounter,
}

/// The limits of a connection.
pub(in crate::proxy::client) struct Http2Limits {
    /// When the first head has to be complete.
    pub(in crate::proxy::client) first_head_deadline: Instant,
    /// How long a later head may take.
    pub(in crate::proxy::client) head_limit: Duration,
    /// How long the client may read nothing.
    pub(in crate::proxy::client) idle_limit: Duration,
    /// For what waits meanwhile.
    pub(in crate::proxy::client) memory: MemoryReservation,
}

impl Http2Stream {
    pub(in crate::proxy::client) fn new(
        inner: Stream,
        limits: Http2Limits,
        malformed_requests: IntCounter,
    ) -> Self {
        let Http2Limits { first_head_deadline, head_limit, idle_limit, memory } = limits;
        Self {
            inner,
            heads: HeadDeadline::new(first_head_deadline, head_limit),
            written: FrameReader::default(),
            open_streams: OpenStreams::default(),
            unread: UnreadLimit::new(idle_limit, memory),
            malformed_requests,
        }
    }

    /// Looks at bytes that have been written, the first `count` of these.
    fn on_written<'b>(&mut self, bufs: impl Iterator<Item = &'b [u8]>, mut count: usize) {
        let Self { written, open_streams, malformed_requests, .. } = self;
        for buf in bufs {
            let part = buf.get(..count.min(buf.len())).unwrap_or_default();
            written.feed(part, &mut |event| {
                if let FrameEvent::Ends(frame, payload) = event {
                    open_streams.on_written(frame);
                    if is_refusal(frame, payload) {
                        malformed_requests.inc();
                    }
                }
            });
            count -= part.len();
        }
    }

    /// Checks the result of an operation.
    fn check<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        operation: WriteOperation,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        let was_pending = result.is_pending();
        if was_pending {
            self.heads.check_first(cx)?;
        }
        let checked = self.unread.check(result, operation, self.open_streams.count(), cx);
        // Otherwise the kernel keeps what the client has not read for some more minutes.
        if was_pending
            && checked.is_ready()
            && let Err(error) = reset::enable_reset_on_close(&self.inner)
        {
            debug!("cannot reset the connection of a client that does not read: {error}");
        }
        checked
    }
}

impl AsyncRead for Http2Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled_before = buf.filled().len();
        let Self { inner, heads, open_streams, .. } = &mut *self;
        let read = Pin::new(inner).poll_read(cx, buf);
        if matches!(read, Poll::Ready(Ok(()))) {
            let bytes = buf.filled().get(filled_before..).unwrap_or_default();
            heads.feed(bytes, &mut |frame| open_streams.on_read(frame));
        }
        heads.check(cx)?;
        read
    }
}

impl AsyncWrite for Http2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = written {
            self.on_written([buf].into_iter(), count);
        }
        self.check(written, WriteOperation::Write, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.check(flushed, WriteOperation::Flush, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.check(closed, WriteOperation::Flush, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(count)) = written {
            self.on_written(bufs.iter().map(|buf| &**buf), count);
        }
        self.check(written, WriteOperation::Write, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

delegate_stream_traits!(Http2Stream, inner);
