//! Bytes that were written to a stream and not yet to the one that it wraps.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pingora::protocols::Stream;
use tokio::io::AsyncWrite as _;

/// How many slices one write has at most. Pingora writes the size of a chunk, the chunk and its end.
const MAX_SLICES: usize = 4;

/// They are in a buffer that is there only while it holds something: a connection may be idle for a long time.
#[derive(Debug, Default)]
pub(super) struct PendingBytes {
    bytes: Vec<u8>,
}

impl PendingBytes {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn clear(&mut self) {
        self.bytes = Vec::new();
    }

    /// Writes them to `inner`.
    pub(super) fn poll_write_all(
        &mut self,
        inner: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = ready!(Pin::new(&mut *inner).poll_write(cx, &self.bytes))?;
            self.remove_written(written)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes them to `inner` and, after them, these bytes: of both as much as it takes. Returns how many of the new
    /// ones are written.
    pub(super) fn poll_write_before(
        &mut self,
        inner: &mut Stream,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let pending = self.len();
            if pending == 0 {
                return Pin::new(inner).poll_write_vectored(cx, bufs);
            }
            let mut slices = [IoSlice::new(&[]); 1 + MAX_SLICES];
            let all = [IoSlice::new(&self.bytes)].into_iter().chain(bufs.iter().copied());
            slices.iter_mut().zip(all).for_each(|(slice, next)| *slice = next);
            let written = ready!(Pin::new(&mut *inner).poll_write_vectored(cx, &slices))?;
            self.remove_written(written.min(pending))?;
            if written > pending {
                return Poll::Ready(Ok(written - pending));
            }
        }
    }

    fn remove_written(&mut self, written: usize) -> io::Result<()> {
        match written {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            all if all == self.len() => self.clear(),
            some => drop(self.bytes.drain(..some)),
        }
        Ok(())
    }
}
