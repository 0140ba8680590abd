//! A connection that sends a request's head together with the beginning of its body: one system call
//! and one packet, where the engine makes two.

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

/// Most bytes that are sent together: as many as a TLS record holds.
const MAX_COALESCED_BYTES: usize = 16 * 1024;

/// A connection of which one flush can be put off until the next write.
#[derive(Debug)]
pub(super) struct CoalescedStream {
    inner: Stream,
    /// The next flush does nothing: another write follows at once.
    waits: AtomicBool,
    pending: Vec<u8>,
}

impl CoalescedStream {
    pub(in crate::proxy) fn new(inner: Stream) -> Self {
        Self { inner, waits: AtomicBool::new(false), pending: Vec::new() }
    }

    /// Puts the next flush off until the write after it, which has to follow at once.
    pub(super) fn coalesce_next_flush(stream: &Stream) {
        if let Some(joint) = (**stream).as_any().downcast_ref::<Self>() {
            joint.waits.store(true, Ordering::Relaxed);
        }
    }

    fn poll_write_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let all = loop {
            let Some(rest) = self.pending.get(sent..).filter(|rest| !rest.is_empty()) else {
                break Poll::Ready(Ok(()));
            };
            match Pin::new(&mut self.inner).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => sent += written,
                Poll::Ready(Err(problem)) => break Poll::Ready(Err(problem)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.pending.drain(..sent);
        if self.pending.is_empty() {
            // The connection may be idle for long from here on: its memory is freed.
            self.pending = Vec::new();
        }
        all
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
        let coalesces_next_flush = *self.waits.get_mut();
        if (coalesces_next_flush || !self.pending.is_empty())
            && self.pending.len() + buf.len() <= MAX_COALESCED_BYTES
        {
            self.pending.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_write_pending(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(self.waits.get_mut()) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_write_pending(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

// Everything below is passed to the inner connection.

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

    fn pair() -> (Stream, DuplexStream) {
        let (near, far) = duplex(8 * MAX_COALESCED_BYTES);
        (Box::new(CoalescedStream::new(Box::new(near))), far)
    }

    async fn send(stream: &mut Stream, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
    }

    /// Bytes that have arrived by now.
    fn arrived(far: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 * MAX_COALESCED_BYTES);
        while far.read_buf(&mut bytes).now_or_never().is_some() {}
        bytes
    }

    #[tokio::test]
    async fn a_head_is_sent_with_the_body_only_when_asked_to() {
        let (mut stream, mut far) = pair();
        send(&mut stream, b"head").await;
        assert_eq!(arrived(&mut far), b"head", "it was not asked to wait");
        for body in [
            b"body".to_vec(),
            vec![b'x'; MAX_COALESCED_BYTES - 4],
            vec![b'x'; MAX_COALESCED_BYTES],
            vec![b'x'; 3 * MAX_COALESCED_BYTES],
        ] {
            CoalescedStream::coalesce_next_flush(&stream);
            send(&mut stream, b"head").await;
            assert_eq!(arrived(&mut far), b"");
            send(&mut stream, &body).await;
            assert_eq!(arrived(&mut far), [b"head", &*body].concat());
        }
        send(&mut stream, b"more").await;
        assert_eq!(arrived(&mut far), b"more", "only one flush is put off");
        CoalescedStream::coalesce_next_flush(&stream);
        let large = vec![b'y'; 2 * MAX_COALESCED_BYTES];
        send(&mut stream, &large).await;
        send(&mut stream, b"body").await;
        assert_eq!(arrived(&mut far), [&*large, b"body"].concat());
    }

    #[tokio::test]
    async fn pending_bytes_are_sent_piece_by_piece_when_the_peer_reads_slowly() {
        let (near, mut far) = duplex(3);
        let mut stream: Stream = Box::new(CoalescedStream::new(Box::new(near)));
        CoalescedStream::coalesce_next_flush(&stream);
        let sent = async {
            send(&mut stream, b"the head, ").await;
            send(&mut stream, b"the body").await;
            drop(stream);
        };
        let mut bytes = Vec::new();
        let (read, ()) = tokio::join!(far.read_to_end(&mut bytes), sent);
        assert_eq!((read.unwrap(), &*bytes), (18, &b"the head, the body"[..]));
    }
}
