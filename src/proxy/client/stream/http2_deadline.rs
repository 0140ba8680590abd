//! The deadline of HTTP/2 request heads. An HTTP/2 connection whose first request head, or any later head
//! that has begun, is not complete in time is closed.
//!
//! h2 has no such deadline, and does not show that a head has begun before it is complete. So this reads the
//! headers of the frames as their bytes pass.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep, sleep_until};

use super::http2_frames::{CONTINUATION, END_HEADERS, FrameEvent, FrameHeader, FrameReader, HEADERS};

/// RFC 9113, section 3.4: what a client sends before its first frame.
const PREFACE_BYTES: usize = 24;

/// The deadline of the head that a client's connection awaits.
#[derive(Debug)]
pub(super) struct HeadDeadline {
    frames: FrameTracker,
    head_limit: Duration,
    /// How many heads were complete when the timer was set.
    heads_at_timer: u64,
    /// Set while a head is awaited.
    timer: Option<Pin<Box<Sleep>>>,
}

impl HeadDeadline {
    /// The first head has to be complete at `first_deadline`, a later one within `head_limit`.
    pub(super) fn new(first_deadline: Instant, head_limit: Duration) -> Self {
        let timer = Some(Box::pin(sleep_until(first_deadline.into())));
        Self { frames: FrameTracker::default(), head_limit, heads_at_timer: 0, timer }
    }

    /// Takes the next bytes of the client. `on_frame` gets the frames that end in them.
    pub(super) fn feed(&mut self, bytes: &[u8], on_frame: &mut impl FnMut(FrameHeader)) {
        self.frames.feed(bytes, on_frame);
    }

    /// Checks the deadline of the first head. To be called while nothing is read, because the client takes nothing. A
    /// later head may then be slow because it is not read.
    ///
    /// # Errors
    /// If the head is too slow.
    pub(super) fn check_first(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.frames.complete_heads == 0 { self.check(cx) } else { Ok(()) }
    }

    /// Sets the timer for the head that is now awaited, if any, and checks it. To be called whenever the connection
    /// has been read.
    ///
    /// # Errors
    /// If the head is too slow.
    pub(super) fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.frames.complete_heads != self.heads_at_timer {
            self.heads_at_timer = self.frames.complete_heads;
            self.timer = None;
        }
        if !self.frames.is_head_awaited() {
            return Ok(());
        }
        let limit = self.head_limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "a request head is too slow")),
            Poll::Pending => Ok(()),
        }
    }
}

/// Follows the frames of a client far enough to know whether a request head has begun and not ended. What is
/// not HTTP/2 is left to h2, which closes the connection.
#[derive(Debug, Default)]
struct FrameTracker {
    /// Bytes of the preface that have passed.
    preface_bytes: usize,
    frames: FrameReader,
    is_in_head: bool,
    complete_heads: u64,
}

impl FrameTracker {
    fn is_head_awaited(&self) -> bool {
        self.is_in_head || self.complete_heads == 0
    }

    fn feed(&mut self, bytes: &[u8], on_frame: &mut impl FnMut(FrameHeader)) {
        let preface = bytes.len().min(PREFACE_BYTES - self.preface_bytes);
        self.preface_bytes += preface;
        let (is_in_head, complete_heads) = (&mut self.is_in_head, &mut self.complete_heads);
        self.frames.feed(bytes.get(preface..).unwrap_or_default(), &mut |event| match event {
            // RFC 9113, sections 6.2 and 6.10: a head consists of these frames.
            FrameEvent::Begins(frame) => *is_in_head |= matches!(frame.frame_type, HEADERS | CONTINUATION),
            FrameEvent::Ends(frame, _) => {
                if matches!(frame.frame_type, HEADERS | CONTINUATION) && frame.flags & END_HEADERS != 0 {
                    *is_in_head = false;
                    *complete_heads += 1;
                }
                on_frame(frame);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(frame_type: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, frame_type, flags, 0, 0, 0, 1];
        frame.resize(9 + usize::from(length), 0xff);
        frame
    }

    /// Whether a head is awaited, and how many were complete, after these bytes in pieces of each size.
    fn state_after(bytes: &[u8]) -> (bool, u64) {
        let states = [1, 2, 7, bytes.len().max(1)].map(|size| {
            let mut frames = FrameTracker::default();
            bytes.chunks(size).for_each(|piece| frames.feed(piece, &mut |_| ()));
            (frames.is_head_awaited(), frames.complete_heads)
        });
        assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
        states[0]
    }

    #[test]
    fn a_head_is_awaited_at_first_and_from_its_first_frame_to_the_end_of_its_last() {
        let preface = vec![b'P'; PREFACE_BYTES];
        let (data, settings, priority) = (frame(0, 0, 200), frame(4, 0, 0), 0x20);
        let whole_head = frame(HEADERS, END_HEADERS | priority, 40);
        let (begun, more) = (frame(HEADERS, 1, 40), frame(CONTINUATION, 0, 3));
        let end = frame(CONTINUATION, END_HEADERS, 0);
        type Pieces<'p> = &'p [&'p [u8]];
        let cases: [(Pieces<'_>, (bool, u64)); 9] = [
            (&[], (true, 0)),
            (&[&preface[..3]], (true, 0)),
            (&[&preface, &settings], (true, 0)),
            (&[&preface, &settings, &whole_head], (false, 1)),
            (&[&preface, &settings, &whole_head, &data, &frame(6, 0, 8), &data[..100]], (false, 1)),
            (&[&preface, &settings, &whole_head[..48]], (true, 0)),
            (&[&preface, &whole_head, &data, &begun], (true, 1)),
            (&[&preface, &whole_head, &begun, &more, &more], (true, 1)),
            (&[&preface, &whole_head, &begun, &more, &end, &data], (false, 2)),
        ];
        for (pieces, expected) in cases {
            assert_eq!(state_after(&pieces.concat()), expected, "{pieces:?}");
        }
    }
}
