//! A tunnel: after a 101, bytes go both ways until both sides have closed their direction. Neither direction
//! waits for the other, so that a side may write without reading.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::proxy::timer::Timer;

/// The most bytes that are read at once, and so the most that wait for a side that does not read.
const READ_BYTES: usize = 8 * 1024;

/// How a tunnel ended.
#[derive(Debug)]
pub(super) enum TunnelEnd {
    /// Both directions were closed, or the client was lost after it had closed its own.
    Closed,
    ClientLost(io::Error),
    /// The client did not take what the backend sent.
    ClientDoesNotRead,
    BackendLost(io::Error),
    /// The backend did not take what the client sent.
    BackendDoesNotRead,
}

/// The two connections of a tunnel.
pub(super) struct Tunnel {
    client: Stream,
    backend: Stream,
    to_backend: Direction,
    to_client: Direction,
}

/// The bytes of one direction.
#[derive(Default)]
struct Direction {
    /// Bytes that have been read and not written.
    pending: Bytes,
    /// Since when the other side takes nothing of `pending`.
    blocked_since: Option<Instant>,
    needs_flush: bool,
    has_read_end: bool,
    /// The end has been passed on.
    is_closed: bool,
}

/// Which connection of a direction failed.
enum DirectionError {
    Source(io::Error),
    Target(io::Error),
}

impl Tunnel {
    /// A tunnel between these connections. The bytes and the end have already been read from the client.
    pub(super) fn new(client: Stream, backend: Stream, client_bytes: Bytes, has_client_ended: bool) -> Self {
        let to_backend =
            Direction { pending: client_bytes, has_read_end: has_client_ended, ..Direction::default() };
        Self { client, backend, to_backend, to_client: Direction::default() }
    }

    /// Relays bytes until the tunnel ends. It ends as well if one side takes nothing of what is to be written to it
    /// for `idle_limit`, or no byte passes after one side has closed its direction. While both are open it may be
    /// silent: TCP keep-alive finds a side that is lost. `on_bytes_to_client` is told what the backend sends.
    pub(super) async fn run(
        &mut self,
        idle_limit: Duration,
        timer: &mut Timer,
        mut on_bytes_to_client: impl FnMut(&[u8]),
    ) -> TunnelEnd {
        let mut last_progress = Instant::now();
        loop {
            let deadline = self.quiet_since(last_progress) + idle_limit;
            let mut timed_out = pin!(timer.wait_until(Some(deadline)));
            let end = poll_fn(|cx| {
                let mut passed_bytes = 0;
                let end = self.poll_both(cx, &mut passed_bytes, &mut on_bytes_to_client);
                if passed_bytes > 0 {
                    last_progress = Instant::now();
                }
                match end {
                    Poll::Ready(end) => Poll::Ready(Some(end)),
                    Poll::Pending => timed_out.as_mut().poll(cx).map(|()| None),
                }
            });
            if let Some(end) = end.await {
                return end;
            }
            let quiet_since = self.quiet_since(last_progress);
            let now = Instant::now();
            if now >= quiet_since + idle_limit {
                match self.end_by_timeout(quiet_since) {
                    Some(end) => return end,
                    None => last_progress = now,
                }
            }
        }
    }

    /// Since when nothing passes, or one side takes nothing.
    fn quiet_since(&self, last_progress: Instant) -> Instant {
        let blocked_since = [self.to_backend.blocked_since, self.to_client.blocked_since];
        blocked_since.into_iter().flatten().fold(last_progress, Instant::min)
    }

    fn poll_both(
        &mut self,
        cx: &mut Context<'_>,
        passed_bytes: &mut usize,
        on_bytes_to_client: &mut impl FnMut(&[u8]),
    ) -> Poll<TunnelEnd> {
        let Self { client, backend, to_backend, to_client } = self;
        let upwards = to_backend.poll(cx, client, backend, &mut |bytes| *passed_bytes += bytes.len());
        let downwards = to_client.poll(cx, backend, client, &mut |bytes| {
            *passed_bytes += bytes.len();
            on_bytes_to_client(bytes);
        });
        let has_client_closed = to_backend.has_read_end;
        match (upwards, downwards) {
            (Poll::Ready(Err(DirectionError::Source(error))), _)
            | (_, Poll::Ready(Err(DirectionError::Target(error)))) => {
                Poll::Ready(if has_client_closed || to_client.is_closed {
                    TunnelEnd::Closed
                } else {
                    TunnelEnd::ClientLost(error)
                })
            }
            // What the backend still sends goes to the client although it takes nothing more.
            (Poll::Ready(Err(DirectionError::Target(_))), Poll::Pending) if !to_client.has_read_end => {
                Poll::Pending
            }
            (Poll::Ready(Err(DirectionError::Target(error))), _)
            | (_, Poll::Ready(Err(DirectionError::Source(error)))) => Poll::Ready(if to_client.is_closed {
                TunnelEnd::Closed
            } else {
                TunnelEnd::BackendLost(error)
            }),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(TunnelEnd::Closed),
            _ => Poll::Pending,
        }
    }

    /// Writes a last frame to the client, which has read all frames before it.
    pub(super) async fn send_last_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.to_client.pending.is_empty() {
            self.client.write_all(frame).await?;
        }
        self.client.flush().await?;
        self.client.shutdown().await
    }

    /// How the tunnel ends that is quiet since then; `None` if it goes on.
    fn end_by_timeout(&self, since: Instant) -> Option<TunnelEnd> {
        let is_blocked = |direction: &Direction| direction.blocked_since.is_some_and(|at| at <= since);
        match () {
            () if is_blocked(&self.to_backend) => Some(TunnelEnd::BackendDoesNotRead),
            () if is_blocked(&self.to_client) => Some(TunnelEnd::ClientDoesNotRead),
            // One side has closed its direction, and the other has nothing more to say.
            () if self.to_backend.is_closed || self.to_client.is_closed => Some(TunnelEnd::Closed),
            () => None,
        }
    }
}

impl Direction {
    /// Relays what can be relayed now; ready when the end has been passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        target: &mut Stream,
        on_bytes: &mut impl FnMut(&[u8]),
    ) -> Poll<Result<(), DirectionError>> {
        let mut buffer = [0; READ_BYTES];
        loop {
            match self.poll_write_pending(cx, target) {
                Poll::Ready(written) => written.map_err(DirectionError::Target)?,
                Poll::Pending => return Poll::Pending,
            }
            if self.has_read_end {
                return self.poll_close(cx, target).map_err(DirectionError::Target);
            }
            let mut read_buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut *source).poll_read(cx, &mut read_buffer) {
                Poll::Ready(read) => read.map_err(DirectionError::Source)?,
                Poll::Pending => {
                    return match self.poll_flush(cx, target) {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(DirectionError::Target(error))),
                        _ => Poll::Pending,
                    };
                }
            }
            let bytes = read_buffer.filled();
            self.has_read_end = bytes.is_empty();
            on_bytes(bytes);
            let written = match Pin::new(&mut *target).poll_write(cx, bytes) {
                Poll::Ready(written) => written.map_err(DirectionError::Target)?,
                Poll::Pending => 0,
            };
            self.needs_flush |= written > 0;
            // Copied only if they have to wait.
            self.pending = Bytes::copy_from_slice(bytes.get(written..).unwrap_or_default());
        }
    }

    /// Writes the pending bytes.
    fn poll_write_pending(&mut self, cx: &mut Context<'_>, target: &mut Stream) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            match Pin::new(&mut *target).poll_write(cx, &self.pending) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.pending.advance(written);
                    self.needs_flush = true;
                    self.blocked_since = None;
                }
                Poll::Ready(Err(error)) => {
                    self.blocked_since = None;
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        self.pending = Bytes::new();
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, target: &mut Stream) -> Poll<io::Result<()>> {
        if !self.needs_flush {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(target).poll_flush(cx);
        self.needs_flush = !matches!(flushed, Poll::Ready(Ok(())));
        match &flushed {
            Poll::Pending => self.blocked_since = self.blocked_since.or_else(|| Some(Instant::now())),
            Poll::Ready(_) => self.blocked_since = None,
        }
        flushed
    }

    /// Passes the end of the direction on.
    fn poll_close(&mut self, cx: &mut Context<'_>, target: &mut Stream) -> Poll<io::Result<()>> {
        if !self.is_closed {
            std::task::ready!(self.poll_flush(cx, target))?;
            std::task::ready!(Pin::new(target).poll_shutdown(cx))?;
            self.is_closed = true;
        }
        Poll::Ready(Ok(()))
    }
}
