//! A client's HTTP/1.1 connection, from which a request's body can be read straight into the buffer that holds it.
//! Pingora would copy each body twice: from its own buffer into pieces, which then have to be joined.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, BytesMut};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{IO, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use super::poll_read_arrived;
use crate::proxy::stream_wrapper::{delegate_async_write, delegate_stream_traits};

/// Largest buffer that is allocated because of a declared length, before so many bytes have arrived.
pub(in crate::proxy::client) const MAX_PREALLOCATED_BYTES: usize = 1024 * 1024;

/// A connection. Bytes that were read beyond a request head are returned by the next read.
///
/// Pingora's sessions give only a shared reference to their stream, hence the locks; nothing ever waits for them.
pub(in crate::proxy::client) struct Http1Stream {
    inner: Mutex<Stream>,
    /// What was read together with a head and comes after it; read before anything else.
    arrived: Mutex<BytesMut>,
    /// What was read together with a body and comes after it. Kept apart, so that Pingora sees only what happens on the
    /// connection while it waits for the client to disconnect.
    next_request: Mutex<BytesMut>,
}

impl Http1Stream {
    /// Wraps a connection.
    pub(in crate::proxy::client) fn wrap(inner: Stream) -> Stream {
        Box::new(Self { inner: Mutex::new(inner), arrived: Mutex::default(), next_request: Mutex::default() })
    }

    /// The connection of this session; `None` if its bodies have to be read through Pingora: those of HTTP/2, and
    /// chunked ones.
    pub(in crate::proxy::client) fn of_session(session: &ServerSession) -> Option<&Self> {
        match session {
            ServerSession::H1(session) => Self::of_stream(session.stream()),
            _ => None,
        }
    }

    fn of_stream(stream: &Stream) -> Option<&Self> {
        (**stream).as_any().downcast_ref()
    }

    /// Puts back what was read of this connection after the first `length` bytes. It is copied, so that it does not
    /// keep the memory of the head.
    pub(in crate::proxy::client) fn unread(stream: &Stream, bytes: &mut BytesMut, length: usize) {
        let Some(stream) = Self::of_stream(stream) else { return };
        let Some(rest) = bytes.get(length..).filter(|rest| !rest.is_empty()) else { return };
        let mut unread = BytesMut::from(rest);
        bytes.truncate(length);
        let mut arrived = lock(&stream.arrived);
        unread.extend_from_slice(&arrived);
        *arrived = unread;
    }

    /// Makes what was read of the next request the first that is read. Called before its head is read.
    pub(in crate::proxy::client) fn begin_request(stream: &Stream) {
        if let Some(stream) = Self::of_stream(stream) {
            let next_request = std::mem::take(&mut *lock(&stream.next_request));
            if !next_request.is_empty() {
                *lock(&stream.arrived) = next_request;
            }
        }
    }

    /// Reads more of a body of which `rest` bytes are missing in `body`. Returns their number; 0 if the connection has
    /// ended.
    pub(in crate::proxy::client) async fn read_body(
        &self,
        body: &mut BytesMut,
        rest: usize,
    ) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read_body(cx, body, rest)).await
    }

    fn poll_read_body(
        &self,
        cx: &mut Context<'_>,
        body: &mut BytesMut,
        rest: usize,
    ) -> Poll<io::Result<usize>> {
        let mut arrived = lock(&self.arrived);
        if !arrived.is_empty() {
            let mut bytes = std::mem::take(&mut *arrived);
            if bytes.len() > rest {
                // Copied, so that the body does not keep the memory of what follows.
                let body = BytesMut::from(bytes.get(..rest).unwrap_or_default());
                bytes.advance(rest);
                *lock(&self.next_request) = std::mem::replace(&mut bytes, body);
            }
            let count = bytes.len();
            if count == rest && body.is_empty() {
                *body = bytes;
            } else {
                body.reserve(growth(body, rest));
                body.extend_from_slice(&bytes);
            }
            return Poll::Ready(Ok(count));
        }
        let mut inner = lock(&self.inner);
        if body.len() < body.capacity() {
            return pin!(inner.read_buf(&mut body.limit(rest))).poll(cx);
        }
        // A length is easily declared without sending anything.
        let growth = growth(body, rest);
        poll_read_arrived(&mut inner, cx, body, rest, growth)
    }

    fn inner(&self) -> MutexGuard<'_, Stream> {
        lock(&self.inner)
    }

    fn inner_mut(&mut self) -> &mut dyn IO {
        &mut **self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much the buffer of a body grows by, of which `rest` bytes are missing. That of a long one doubles.
fn growth(body: &BytesMut, rest: usize) -> usize {
    rest.min(body.len().max(MAX_PREALLOCATED_BYTES))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Http1Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let arrived = self.arrived.get_mut().unwrap_or_else(PoisonError::into_inner);
        if arrived.is_empty() {
            return Pin::new(self.inner_mut()).poll_read(cx, buf);
        }
        let mut bytes = std::mem::take(arrived);
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes.split_to(count));
        if !bytes.is_empty() {
            *arrived = bytes;
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Http1Stream {
    /// Nothing of what has arrived: it is the beginning of a prompt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1Stream").field("inner", &self.inner).finish_non_exhaustive()
    }
}

delegate_async_write!(Http1Stream, inner(), inner_mut());
delegate_stream_traits!(Http1Stream, inner(), inner_mut());

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;

    /// A connection on which these bytes have arrived, the first `unread` of them having been put back.
    fn connection(bytes: &[u8], unread: usize) -> (Stream, tokio::io::DuplexStream) {
        let (inner, mut peer) = duplex(1024);
        let (first, rest) = bytes.split_at(unread);
        peer.write_all(rest).now_or_never().unwrap().unwrap();
        let stream = Http1Stream::wrap(Box::new(inner));
        Http1Stream::unread(&stream, &mut BytesMut::from(first), 0);
        (stream, peer)
    }

    #[test]
    fn a_body_is_read_to_its_end_and_no_further() {
        let bytes = b"the body and the next request";
        for unread in 0..bytes.len() {
            for length in 1..bytes.len() {
                let (mut stream, _peer) = connection(bytes, unread);
                let mut body = BytesMut::new();
                while body.len() < length {
                    let rest = length - body.len();
                    assert_ne!(read_body(&stream, &mut body, rest), Some(0));
                }
                assert_eq!(body, bytes[..length]);
                // While the request is served, Pingora sees nothing of the next one that came with it.
                let on_connection = stream.read_u8().now_or_never().map(Result::unwrap);
                assert_eq!(on_connection, bytes.get(length.max(unread)).copied());
                Http1Stream::begin_request(&stream);
                let mut bytes = bytes.to_vec();
                if on_connection.is_some() {
                    bytes.remove(length.max(unread));
                }
                let mut next = vec![0; bytes.len() - length];
                stream.read_exact(&mut next).now_or_never().unwrap().unwrap();
                assert_eq!(next, bytes[length..]);
            }
        }
    }

    fn read_body(stream: &Stream, body: &mut BytesMut, rest: usize) -> Option<usize> {
        Http1Stream::of_stream(stream).unwrap().read_body(body, rest).now_or_never().map(Result::unwrap)
    }

    #[test]
    fn nothing_of_a_head_is_kept() {
        let (mut stream, _peer) = connection(b"", 0);
        let mut head = BytesMut::from(&[b'h'; 64 * 1024][..]);
        head.extend_from_slice(b"body and next");
        Http1Stream::unread(&stream, &mut head, 64 * 1024);
        let mut body = BytesMut::new();
        assert_eq!(read_body(&stream, &mut body, 4), Some(4));
        assert!(body.capacity() < 64, "{}", body.capacity());
        Http1Stream::begin_request(&stream);
        assert_eq!(stream.read(&mut [0; 64]).now_or_never().unwrap().unwrap(), 9);
        let stream = Http1Stream::of_stream(&stream).unwrap();
        assert_eq!((lock(&stream.arrived).capacity(), lock(&stream.next_request).capacity()), (0, 0));
    }

    #[test]
    fn what_arrived_with_the_head_is_copied_only_once() {
        let (stream, _peer) = connection(b"body", 4);
        let arrived_at = lock(&Http1Stream::of_stream(&stream).unwrap().arrived).as_ptr();
        let mut body = BytesMut::new();
        assert_eq!(read_body(&stream, &mut body, 4), Some(4));
        assert_eq!(body.as_ptr(), arrived_at);
    }

    #[test]
    fn nothing_is_allocated_before_something_arrives_and_a_long_body_doubles_its_buffer() {
        let (stream, mut peer) = connection(b"", 0);
        let (mut body, length) = (BytesMut::new(), 8 * MAX_PREALLOCATED_BYTES);
        assert_eq!(read_body(&stream, &mut body, length), None);
        assert_eq!(body.capacity(), 0);
        peer.write_all(b"x").now_or_never().unwrap().unwrap();
        assert_eq!(read_body(&stream, &mut body, length), Some(1));
        assert!((MAX_PREALLOCATED_BYTES..2 * MAX_PREALLOCATED_BYTES).contains(&body.capacity()));
        body.resize(body.capacity(), b'x');
        peer.write_all(b"x").now_or_never().unwrap().unwrap();
        let rest = length - body.len();
        assert_eq!(read_body(&stream, &mut body, rest), Some(1));
        assert!((2 * MAX_PREALLOCATED_BYTES..4 * MAX_PREALLOCATED_BYTES).contains(&body.capacity()));
        drop(peer);
        assert_eq!(read_body(&stream, &mut body, 1), Some(0), "the connection has ended");
    }
}
