//! A connection that sends a request's head together with the beginning of its body, in one system call and
//! one packet (Pingora flushes after the head, which makes two), and whose writes do not wait.
//!
//! A backend may answer a request that it does not read, so what it sends has to be read while the request is
//! written. Pingora's session can do only one of the two at a time. So this takes over what the socket does
//! not accept, and writes it whenever the session reads.
//!
//! It also checks the framing of responses before Pingora parses them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::proxy::framing::response::ResponseFraming;
use crate::proxy::pending_bytes::PendingBytes;
use crate::proxy::stream_wrapper::delegate_stream_traits;

/// Maximum bytes that are collected: as many as a TLS record holds.
const MAX_COALESCED_BYTES: usize = 16 * 1024;
/// Maximum bytes of one read. Pingora reads 64 KiB, which wait, twice, for a client that does not read. TLS does
/// not read more than a record.
const MAX_READ_BYTES: u64 = 24 * 1024;
/// Further writes wait while more than this is pending.
const MAX_PENDING_BYTES: usize = 128 * 1024;

/// A connection one flush of which can be delayed until the next write, and whose writes do not wait.
#[derive(Debug)]
pub(super) struct CoalescedStream {
    inner: Stream,
    /// Shared, because Pingora's session gives out its stream only as a shared reference.
    state: Arc<WriteState>,
    /// Bytes that have been written to this stream but not to `inner`.
    pending_bytes: PendingBytes,
    /// The framing of the current response.
    response: ResponseFraming,
}

/// What of a [`CoalescedStream`] is known outside of Pingora's session.
#[derive(Debug, Default)]
pub(super) struct WriteState {
    /// The next bytes that are read are those of a new response.
    expects_new_response: AtomicBool,
    /// The next flush does nothing, because another write follows at once.
    coalesces_next_flush: AtomicBool,
    /// The socket does not accept all that has been written; reads of the stream write the rest.
    is_blocked: AtomicBool,
    /// Why the rest could not be written.
    error: Mutex<Option<io::Error>>,
}

impl WriteState {
    /// Whether reads of the stream still have to write something.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    /// Takes the error of what reads have written.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl CoalescedStream {
    /// Wraps a stream, unless it is wrapped already.
    pub(super) fn wrap(stream: Stream) -> Stream {
        if Self::write_state(&stream).is_some() {
            return stream;
        }
        let response = ResponseFraming::default();
        Box::new(Self {
            inner: stream,
            state: Arc::default(),
            pending_bytes: PendingBytes::default(),
            response,
        })
    }

    /// The wrapped stream, whose writes wait; the same stream if bytes are pending, which is not the case after a
    /// response.
    pub(super) fn unwrap(stream: Stream) -> Stream {
        if Self::write_state(&stream).is_none() {
            return stream;
        }
        let coalesced = stream.into_any().downcast::<Self>().expect("only this type has a write state");
        if coalesced.pending_bytes.is_empty() { coalesced.inner } else { coalesced }
    }

    /// Prepares for a request and its response. Does nothing with a stream of another type.
    pub(super) fn begin_request(stream: &Stream) {
        if let Some(state) = Self::write_state(stream) {
            state.expects_new_response.store(true, Ordering::Relaxed);
        }
    }

    /// Delays the next flush of this stream until the write after it, which has to follow at once. Does
    /// nothing with a stream of another type.
    pub(super) fn coalesce_next_flush(stream: &Stream) {
        if let Some(state) = Self::write_state(stream) {
            state.coalesces_next_flush.store(true, Ordering::Relaxed);
        }
    }

    /// The state of this stream; `None` for a stream of another type.
    pub(super) fn write_state(stream: &Stream) -> Option<&Arc<WriteState>> {
        (**stream).as_any().downcast_ref::<Self>().map(|coalesced| &coalesced.state)
    }

    /// Writes and flushes all that is pending, and notes whether that is done.
    fn poll_flush_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match self.pending_bytes.poll_write_all(&mut self.inner, cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.inner).poll_flush(cx),
            other => other,
        };
        self.state.is_blocked.store(flushed.is_pending(), Ordering::Relaxed);
        flushed
    }
}

impl AsyncRead for CoalescedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.state.is_blocked()
            && let Poll::Ready(Err(error)) = self.poll_flush_pending(cx)
        {
            self.pending_bytes.clear();
            *self.state.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
        if self.state.expects_new_response.load(Ordering::Relaxed) {
            self.state.expects_new_response.store(false, Ordering::Relaxed);
            self.response = ResponseFraming::default();
        }
        // Not after the read: nothing more may arrive.
        self.response.ensure_well_formed()?;
        let start = buf.filled().len();
        let mut limited_reader = (&mut self.inner).take(MAX_READ_BYTES);
        ready!(Pin::new(&mut limited_reader).poll_read(cx, buf))?;
        let well_formed = self.response.check(buf.filled().get(start..).unwrap_or_default())?;
        buf.set_filled(start + well_formed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CoalescedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let coalesces_next_flush = self.state.coalesces_next_flush.load(Ordering::Relaxed);
        if (coalesces_next_flush || !self.pending_bytes.is_empty())
            && self.pending_bytes.len() + buf.len() <= MAX_COALESCED_BYTES
        {
            self.pending_bytes.push(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        let Self { inner, pending_bytes, .. } = &mut *self;
        let written = pending_bytes.poll_write_before(inner, cx, &[IoSlice::new(buf)]);
        if written.is_ready() || self.pending_bytes.len() > MAX_PENDING_BYTES {
            return written;
        }
        self.pending_bytes.push(buf);
        self.state.is_blocked.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.coalesces_next_flush.swap(false, Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        match self.poll_flush_pending(cx) {
            // `poll_read` goes on with it.
            Poll::Pending => Poll::Ready(Ok(())),
            flushed @ Poll::Ready(_) => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush_pending(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

delegate_stream_traits!(CoalescedStream, inner);

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A coalesced stream and the other end of its connection.
    fn coalesced_pair() -> (Stream, DuplexStream) {
        let (inner, peer) = duplex(8 * MAX_COALESCED_BYTES);
        (CoalescedStream::wrap(Box::new(inner)), peer)
    }

    async fn send(stream: &mut Stream, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
    }

    /// The bytes that have arrived at the other end.
    fn arrived_bytes(peer: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 * MAX_COALESCED_BYTES);
        while peer.read_buf(&mut bytes).now_or_never().is_some() {}
        bytes
    }

    #[tokio::test]
    async fn a_flush_is_delayed_once_after_each_request_for_it() {
        let (mut stream, mut peer) = coalesced_pair();
        send(&mut stream, b"head").await;
        assert_eq!(arrived_bytes(&mut peer), b"head", "not delayed");
        for body in [
            b"body".to_vec(),
            vec![b'x'; MAX_COALESCED_BYTES - 4],
            vec![b'x'; MAX_COALESCED_BYTES],
            vec![b'x'; 3 * MAX_COALESCED_BYTES],
        ] {
            CoalescedStream::coalesce_next_flush(&stream);
            send(&mut stream, b"head").await;
            assert_eq!(arrived_bytes(&mut peer), b"");
            send(&mut stream, &body).await;
            assert_eq!(arrived_bytes(&mut peer), [b"head", &*body].concat());
        }
        send(&mut stream, b"more").await;
        assert_eq!(arrived_bytes(&mut peer), b"more", "only one flush is delayed");
        CoalescedStream::coalesce_next_flush(&stream);
        let large = vec![b'y'; 2 * MAX_COALESCED_BYTES];
        send(&mut stream, &large).await;
        send(&mut stream, b"body").await;
        assert_eq!(arrived_bytes(&mut peer), [&*large, b"body"].concat());
    }

    #[tokio::test]
    async fn writes_do_not_wait_and_reads_send_the_rest_piece_by_piece() {
        let (inner, mut peer) = duplex(3);
        let mut stream = CoalescedStream::wrap(Box::new(inner));
        CoalescedStream::coalesce_next_flush(&stream);
        let body = vec![b'x'; MAX_PENDING_BYTES];
        send(&mut stream, b"the head, ").now_or_never().expect("it waits for the peer");
        send(&mut stream, &body).now_or_never().expect("it waits for the peer");
        let state = Arc::clone(CoalescedStream::write_state(&stream).unwrap());
        assert!(state.is_blocked());
        assert!(stream.write_all(b"more").now_or_never().is_none(), "without a limit");
        let mut bytes = vec![0; body.len() + 10];
        let mut response = [0; 8];
        let exchange = async {
            peer.read_exact(&mut bytes).await.unwrap();
            while state.is_blocked() {
                tokio::task::yield_now().await;
            }
            peer.write_all(b"HTTP/1.1").await.unwrap();
        };
        let (read, ()) = tokio::join!(stream.read_exact(&mut response), exchange);
        read.unwrap();
        assert!(bytes == [b"the head, ", &*body].concat() && response == *b"HTTP/1.1");
        assert!(state.take_error().is_none());
        // The peer is gone: reads report why the rest cannot be written.
        send(&mut stream, &body).now_or_never().unwrap();
        drop(peer);
        let _ = stream.read(&mut response).await;
        assert!(!state.is_blocked() && state.take_error().is_some());
    }
}
