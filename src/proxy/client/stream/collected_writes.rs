//! A client's plain HTTP/1.1 connection, to which the head and a short body of a response are written together.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::FutureExt as _;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::proxy::pending_bytes::PendingBytes;
use crate::proxy::stream_wrapper::delegate_stream_traits;

/// So much is collected until the next flush.
const MAX_COLLECTED_BYTES: usize = 4 * 1024;

/// A connection whose writes are collected until they are flushed. Unlike the buffer that Pingora's streams can have, the
/// memory for that is there only between the first write and the flush.
#[derive(Debug)]
pub(in crate::proxy::client) struct CollectedWrites {
    inner: Stream,
    pending: PendingBytes,
}

impl CollectedWrites {
    pub(in crate::proxy::client) fn wrap(inner: Stream) -> Stream {
        Box::new(Self { inner, pending: PendingBytes::default() })
    }
}

impl Drop for CollectedWrites {
    /// Writes what can be written at once, as Pingora's streams do: a client is to see that a response has broken off.
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            let _ = self.flush().now_or_never();
        }
    }
}

impl AsyncRead for CollectedWrites {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for CollectedWrites {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, pending } = &mut *self;
        ready!(pending.poll_write_all(inner, cx))?;
        Pin::new(inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { inner, pending } = &mut *self;
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if pending.len() + length > MAX_COLLECTED_BYTES {
            return pending.poll_write_before(inner, cx, bufs);
        }
        bufs.iter().for_each(|buf| pending.push(buf));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

delegate_stream_traits!(CollectedWrites, inner);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[test]
    fn short_writes_wait_for_the_flush_and_long_ones_take_them_along() {
        let (inner, mut peer) = duplex(2 * MAX_COLLECTED_BYTES);
        let mut stream = CollectedWrites::wrap(Box::new(inner));
        let mut received = vec![0; 4 * MAX_COLLECTED_BYTES];
        stream.write_all(b"head ").now_or_never().unwrap().unwrap();
        stream.write_all(b"body").now_or_never().unwrap().unwrap();
        assert!(peer.read(&mut received).now_or_never().is_none());
        stream.flush().now_or_never().unwrap().unwrap();
        assert_eq!(peer.read(&mut received).now_or_never().unwrap().unwrap(), 9);
        assert!(received.starts_with(b"head body"));
        // Long ones are not collected, and come after what is.
        let long = vec![b'x'; MAX_COLLECTED_BYTES];
        stream.write_all(b"head ").now_or_never().unwrap().unwrap();
        stream.write_all(&long).now_or_never().unwrap().unwrap();
        let length = peer.read(&mut received).now_or_never().unwrap().unwrap();
        assert_eq!(received[..length], [b"head ", &*long].concat());
        // The beginning of a response that breaks off.
        stream.write_all(b"head").now_or_never().unwrap().unwrap();
        pingora::protocols::Shutdown::shutdown(&mut *stream).now_or_never().unwrap();
        assert_eq!(peer.read(&mut received).now_or_never().unwrap().unwrap(), 4);
        stream.write_all(b"head").now_or_never().unwrap().unwrap();
        drop(stream);
        assert_eq!(peer.read(&mut received).now_or_never().unwrap().unwrap(), 4);
    }

    #[test]
    fn nothing_is_lost_to_a_peer_that_reads_slowly() {
        let (inner, mut peer) = duplex(7);
        let mut stream = CollectedWrites::wrap(Box::new(inner));
        let sent: Vec<u8> = (0..3 * MAX_COLLECTED_BYTES).map(|n| n as u8).collect();
        let write = async {
            for (n, piece) in sent.chunks(MAX_COLLECTED_BYTES / 2 + 1).enumerate() {
                stream.write_all(piece).await.unwrap();
                if n % 2 == 0 {
                    stream.flush().await.unwrap();
                }
            }
            stream.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { tokio::join!(write, peer.read_to_end(&mut received)) }).1.unwrap();
        assert_eq!(received, sent);
    }
}
