//! What waits in h2 for a client that does not read its connection. h2 takes a response, or the rest of one, that fits into
//! [`MAX_HTTP2_SEND_BUFFER_BYTES`] whether it can be written or not, so that its request is over and its stream has no
//! deadline any more. And while h2 cannot write, it does not read: nothing else of the connection has a deadline
//! either.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::time::{Sleep, sleep};

use super::http2_frames::{DATA, END_STREAM, FrameHeader, HEADERS, RST_STREAM};
use crate::proxy::client::body_memory::MemoryReservation;
use crate::proxy::client::timeouts::UNREAD_GRACE;

/// Maximum bytes of a response that h2 holds for a client that does not read. Its default is 400 KiB for each stream, if
/// the client's window is as large.
pub(in crate::proxy) const MAX_HTTP2_SEND_BUFFER_BYTES: usize = 32 * 1024;
/// More streams than a client may open at a time are not counted.
const MAX_COUNTED_STREAMS: usize = 128;

/// The streams of a connection whose responses have not been written to their end.
#[derive(Debug, Default)]
pub(super) struct OpenStreams(SmallVec<[u32; 8]>);

impl OpenStreams {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The client has sent this frame.
    pub(super) fn on_read(&mut self, frame: FrameHeader) {
        match frame.frame_type {
            HEADERS if !self.0.contains(&frame.stream_id) && self.0.len() < MAX_COUNTED_STREAMS => {
                self.0.push(frame.stream_id);
            }
            RST_STREAM => self.remove(frame.stream_id),
            _ => {}
        }
    }

    /// This frame has been written to the client.
    pub(super) fn on_written(&mut self, frame: FrameHeader) {
        let ends = match frame.frame_type {
            DATA | HEADERS => frame.flags & END_STREAM != 0,
            RST_STREAM => true,
            _ => false,
        };
        if ends {
            self.remove(frame.stream_id);
        }
    }

    fn remove(&mut self, stream_id: u32) {
        if let Some(at) = self.0.iter().position(|open| *open == stream_id) {
            self.0.swap_remove(at);
        }
    }
}

/// What was tried on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteOperation {
    Write,
    Flush,
}

/// Limits for how long, and in how much memory, responses wait for a client that does not read.
#[derive(Debug)]
pub(super) struct UnreadLimit {
    /// How long nothing may be written.
    idle_limit: Duration,
    memory: MemoryReservation,
    /// Set while nothing can be written.
    blocked: Option<Box<Blocked>>,
}

#[derive(Debug)]
struct Blocked {
    since: Instant,
    by: WriteOperation,
    /// When it is looked at again.
    timer: Pin<Box<Sleep>>,
}

impl UnreadLimit {
    /// The responses wait in this memory.
    pub(super) fn new(idle_limit: Duration, memory: MemoryReservation) -> Self {
        Self { idle_limit, memory, blocked: None }
    }

    /// Takes the result of an operation, and returns it unless the connection waits for its client for too long, or
    /// takes too much memory meanwhile.
    ///
    /// # Errors
    /// That of the operation, or [`io::ErrorKind::TimedOut`].
    pub(super) fn check<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        operation: WriteOperation,
        open_streams: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            return match self.on_blocked(operation, open_streams, cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            };
        }
        // After a flush that had to wait, a write may be taken into a buffer although the client reads nothing.
        let is_over =
            |blocked: &Blocked| operation == WriteOperation::Flush || blocked.by == WriteOperation::Write;
        if self.blocked.as_deref().is_some_and(is_over) {
            self.blocked = None;
            drop(self.memory.split_off(0));
        }
        result
    }

    fn on_blocked(
        &mut self,
        operation: WriteOperation,
        open_streams: usize,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        let grace = UNREAD_GRACE.min(self.idle_limit);
        let blocked = self.blocked.get_or_insert_with(|| {
            Box::new(Blocked { since: Instant::now(), by: operation, timer: Box::pin(sleep(grace)) })
        });
        if operation == WriteOperation::Write {
            blocked.by = operation;
        }
        while blocked.timer.as_mut().poll(cx).is_ready() {
            let waited = blocked.since.elapsed();
            let waiting_bytes = (open_streams * MAX_HTTP2_SEND_BUFFER_BYTES) as u64;
            if waited >= self.idle_limit || !self.memory.grow_for_unread_responses(waiting_bytes) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
            }
            // Others may end meanwhile, and wait as well.
            let next = tokio::time::Instant::now() + UNREAD_GRACE.min(self.idle_limit.saturating_sub(waited));
            blocked.timer.as_mut().reset(next);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use super::*;
    use crate::names::Caller;
    use crate::proxy::client::body_memory::BodyMemory;

    fn frame(frame_type: u8, flags: u8, stream_id: u32) -> FrameHeader {
        FrameHeader { frame_type, flags, length: 0, stream_id }
    }

    #[test]
    fn a_stream_is_open_from_its_head_to_the_end_of_its_response() {
        let mut streams = OpenStreams::default();
        for id in [1, 3, 5, 7] {
            streams.on_read(frame(HEADERS, 0, id));
            streams.on_read(frame(DATA, END_STREAM, id));
        }
        streams.on_read(frame(HEADERS, END_STREAM, 1));
        assert_eq!(streams.count(), 4, "trailers open no other stream");
        streams.on_written(frame(HEADERS, 0, 1));
        streams.on_written(frame(DATA, 0, 1));
        assert_eq!(streams.count(), 4);
        streams.on_written(frame(DATA, END_STREAM, 1));
        streams.on_written(frame(HEADERS, END_STREAM, 3));
        streams.on_written(frame(RST_STREAM, 0, 5));
        assert_eq!(streams.count(), 1);
        streams.on_read(frame(RST_STREAM, 0, 7));
        streams.on_written(frame(RST_STREAM, 0, 7));
        assert_eq!(streams.count(), 0);
        (0..1000).for_each(|id| streams.on_read(frame(HEADERS, 0, id)));
        assert_eq!(streams.count(), MAX_COUNTED_STREAMS);
    }

    struct Fixture {
        memory: Arc<BodyMemory>,
        unread: UnreadLimit,
    }

    impl Fixture {
        /// Time is paused, but not for `Instant`: so limits are short.
        fn new(idle_limit: Duration, max_bytes: u64) -> Self {
            let memory = Arc::<BodyMemory>::default();
            let reservation = BodyMemory::empty_reservation(&memory, Caller::Address(None), max_bytes);
            Self { unread: UnreadLimit::new(idle_limit, reservation), memory }
        }

        /// The next result of a connection that can write nothing; `None` if it just waits for this time.
        async fn wait(&mut self, operation: WriteOperation, time: Duration) -> Option<io::ErrorKind> {
            let check = poll_fn(|cx| self.unread.check(Poll::<io::Result<()>>::Pending, operation, 2, cx));
            tokio::time::timeout(time, check).await.ok().map(|result| result.unwrap_err().kind())
        }

        async fn succeed(&mut self, operation: WriteOperation) {
            let check = poll_fn(|cx| self.unread.check(Poll::Ready(Ok(())), operation, 2, cx));
            assert!(check.await.is_ok());
        }
    }

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_connection_that_takes_nothing_for_too_long_fails() {
        use WriteOperation::{Flush, Write};
        let mut fixture = Fixture::new(SHORT, u64::MAX);
        assert_eq!(fixture.wait(Write, SHORT * 100).await, Some(io::ErrorKind::TimedOut));
        // A write that is taken is progress, if it had to wait before. After a flush only a flush is.
        for (waits, succeeds, is_over) in
            [(Write, Write, true), (Write, Flush, true), (Flush, Flush, true), (Flush, Write, false)]
        {
            let mut fixture = Fixture::new(SHORT * 100, u64::MAX);
            assert_eq!(fixture.wait(waits, Duration::ZERO).await, None);
            fixture.succeed(succeeds).await;
            assert_eq!(fixture.unread.blocked.is_none(), is_over, "{waits:?} {succeeds:?}");
        }
    }

    #[tokio::test]
    async fn what_waits_takes_memory_after_a_while_and_gives_it_back() {
        let waiting_bytes = 2 * MAX_HTTP2_SEND_BUFFER_BYTES as u64;
        let mut fixture = Fixture::new(UNREAD_GRACE * 100, waiting_bytes);
        assert_eq!(fixture.wait(WriteOperation::Write, UNREAD_GRACE / 2).await, None);
        assert!(fixture.memory.is_unused());
        assert_eq!(fixture.wait(WriteOperation::Write, UNREAD_GRACE).await, None);
        assert!(!fixture.memory.is_unused());
        fixture.succeed(WriteOperation::Write).await;
        assert!(fixture.memory.is_unused());
        let mut fixture = Fixture::new(UNREAD_GRACE * 100, waiting_bytes - 1);
        let failed = fixture.wait(WriteOperation::Write, UNREAD_GRACE * 50).await;
        assert_eq!(failed, Some(io::ErrorKind::TimedOut));
    }
}
