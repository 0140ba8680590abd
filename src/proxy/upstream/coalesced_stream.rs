//! A connection that sends a request's head together with the beginning of its body, in one system call and
//! one packet. Pingora flushes after the head, which makes two.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum bytes that are collected: as many as a TLS record holds.
const MAX_COALESCED_BYTES: usize = 16 * 1024;

/// A connection one flush of which can be delayed until the next write.
#[derive(Debug)]
pub(super) struct CoalescedStream {
    inner: Stream,
    /// The next flush does nothing, because another write follows at once. Atomic, because Pingora's session
    /// gives out its stream only as a shared reference.
    coalesces_next_flush: AtomicBool,
    /// Bytes that have been written to this stream but not to `inner`.
    pending_bytes: Vec<u8>,
}

impl CoalescedStream {
    pub(super) fn new(inner: Stream) -> Self {
        Self { inner, coalesces_next_flush: AtomicBool::new(false), pending_bytes: Vec::new() }
    }

    /// Delays the next flush of this stream until the write after it, which has to follow at once. Does
    /// nothing with a stream of another type.
    pub(super) fn coalesce_next_flush(stream: &Stream) {
        if let Some(coalesced) = (**stream).as_any().downcast_ref::<Self>() {
            coalesced.coalesces_next_flush.store(true, Ordering::Relaxed);
        }
    }

    /// Writes the pending bytes to the inner connection.
    fn poll_write_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let result = loop {
            let Some(rest) = self.pending_bytes.get(written..).filter(|rest| !rest.is_empty()) else {
                break Poll::Ready(Ok(()));
            };
            match Pin::new(&mut self.inner).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => written += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.pending_bytes.drain(..written);
        if self.pending_bytes.is_empty() {
            // Frees the buffer: the connection may now be idle for a long time.
            self.pending_bytes = Vec::new();
        }
        result
    }
}

impl AsyncRead for CoalescedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for CoalescedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let coalesces_next_flush = *self.coalesces_next_flush.get_mut();
        if (coalesces_next_flush || !self.pending_bytes.is_empty())
            && self.pending_bytes.len() + buf.len() <= MAX_COALESCED_BYTES
        {
            self.pending_bytes.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        // In order: the new bytes come after those that are pending.
        ready!(self.poll_write_pending(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(self.coalesces_next_flush.get_mut()) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_write_pending(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

// Everything below is delegated to the inner connection.

#[async_trait]
impl Shutdown for CoalescedStream {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for CoalescedStream {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for CoalescedStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for CoalescedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for CoalescedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for CoalescedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl Peek for CoalescedStream {}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A coalesced stream and the other end of its connection.
    fn coalesced_pair() -> (Stream, DuplexStream) {
        let (inner, peer) = duplex(8 * MAX_COALESCED_BYTES);
        (Box::new(CoalescedStream::new(Box::new(inner))), peer)
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
    async fn pending_bytes_are_sent_piece_by_piece_if_the_peer_reads_slowly() {
        let (inner, mut peer) = duplex(3);
        let mut stream: Stream = Box::new(CoalescedStream::new(Box::new(inner)));
        CoalescedStream::coalesce_next_flush(&stream);
        let send_both = async {
            send(&mut stream, b"the head, ").await;
            send(&mut stream, b"the body").await;
            drop(stream);
        };
        let mut bytes = Vec::new();
        let (read, ()) = tokio::join!(peer.read_to_end(&mut bytes), send_both);
        assert_eq!((read.unwrap(), &*bytes), (18, &b"the head, the body"[..]));
    }
}
