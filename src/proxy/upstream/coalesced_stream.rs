//! A connection that sends a request's head together with the beginning of its body: one system
//! call and one packet, where the engine makes two.

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

/// Most bytes that are joined, as many as a record of TLS has.
const MOST: usize = 16 * 1024;

/// A connection that can be told to wait for more.
#[derive(Debug)]
pub(in crate::proxy) struct Joint {
    inner: Stream,
    /// The next flush is not the end of what there is to send.
    waits: AtomicBool,
    held: Vec<u8>,
}

impl Joint {
    pub(in crate::proxy) fn new(inner: Stream) -> Self {
        Self { inner, waits: AtomicBool::new(false), held: Vec::new() }
    }

    /// What is flushed next waits for what is written after it, which has to follow at once.
    pub(in crate::proxy) fn wait_for_more(stream: &Stream) {
        if let Some(joint) = (**stream).as_any().downcast_ref::<Self>() {
            joint.waits.store(true, Ordering::Relaxed);
        }
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let all = loop {
            let Some(rest) = self.held.get(sent..).filter(|rest| !rest.is_empty()) else {
                break Poll::Ready(Ok(()));
            };
            match Pin::new(&mut self.inner).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => sent += written,
                Poll::Ready(Err(problem)) => break Poll::Ready(Err(problem)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.held.drain(..sent);
        if self.held.is_empty() {
            // A connection may be silent for long from here on.
            self.held = Vec::new();
        }
        all
    }
}

impl AsyncRead for Joint {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Joint {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let waits = *self.waits.get_mut();
        if (waits || !self.held.is_empty()) && self.held.len() + buf.len() <= MOST {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(self.waits.get_mut()) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

// From here on everything is the inner connection's own business.

#[async_trait]
impl Shutdown for Joint {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Joint {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Joint {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Joint {
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

impl GetProxyDigest for Joint {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Joint {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl Peek for Joint {}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn pair() -> (Stream, DuplexStream) {
        let (near, far) = duplex(8 * MOST);
        (Box::new(Joint::new(Box::new(near))), far)
    }

    async fn send(stream: &mut Stream, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
    }

    /// What has arrived by now.
    fn arrived(far: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 * MOST);
        while far.read_buf(&mut bytes).now_or_never().is_some() {}
        bytes
    }

    #[tokio::test]
    async fn a_head_waits_for_the_body_if_it_is_told_to() {
        let (mut stream, mut far) = pair();
        send(&mut stream, b"head").await;
        assert_eq!(arrived(&mut far), b"head", "nobody told it to wait");
        for body in [b"body".to_vec(), vec![b'x'; MOST - 4], vec![b'x'; MOST], vec![b'x'; 3 * MOST]] {
            Joint::wait_for_more(&stream);
            send(&mut stream, b"head").await;
            assert_eq!(arrived(&mut far), b"");
            send(&mut stream, &body).await;
            assert_eq!(arrived(&mut far), [b"head", &*body].concat());
        }
        send(&mut stream, b"more").await;
        assert_eq!(arrived(&mut far), b"more", "it waits once");
        Joint::wait_for_more(&stream);
        let large = vec![b'y'; 2 * MOST];
        send(&mut stream, &large).await;
        send(&mut stream, b"body").await;
        assert_eq!(arrived(&mut far), [&*large, b"body"].concat());
    }

    #[tokio::test]
    async fn what_waits_is_sent_piece_by_piece_where_there_is_little_room() {
        let (near, mut far) = duplex(3);
        let mut stream: Stream = Box::new(Joint::new(Box::new(near)));
        Joint::wait_for_more(&stream);
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
