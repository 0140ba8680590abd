//! Counts what the engine refuses on an HTTP/2 connection by itself, before a request reaches the phases.
//!
//! h2 and Pingora answer malformed requests with a reset of the stream, a GOAWAY, or a head without any field
//! but its status, and tell nobody. So this reads the headers of the frames that they write.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::protocols::Stream;
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http2_frames::{END_STREAM, FrameEvent, FrameHeader, FrameReader, GOAWAY, HEADERS, RST_STREAM};
use crate::proxy::stream_wrapper::delegate_stream_traits;

/// A client's HTTP/2 connection whose refusals are counted.
#[derive(Debug)]
pub(in crate::proxy::client) struct Http2ErrorCounter {
    inner: Stream,
    /// The frames that are written.
    frames: FrameReader,
    malformed_requests: IntCounter,
}

impl Http2ErrorCounter {
    pub(in crate::proxy::client) fn new(inner: Stream, malformed_requests: IntCounter) -> Self {
        Self { inner, frames: FrameReader::default(), malformed_requests }
    }

    /// Looks at bytes that have been written, the first `count` of these.
    fn on_written<'b>(&mut self, bufs: impl Iterator<Item = &'b [u8]>, mut count: usize) {
        for buf in bufs {
            let written = buf.get(..count.min(buf.len())).unwrap_or_default();
            self.malformed_requests.inc_by(count_refusals(&mut self.frames, written));
            count -= written.len();
        }
    }
}

/// How many frames that end in these bytes refuse a malformed request or connection.
fn count_refusals(frames: &mut FrameReader, bytes: &[u8]) -> u64 {
    let mut refusals = 0;
    frames.feed(bytes, &mut |event| {
        if let FrameEvent::Ends(frame, payload) = event {
            refusals += u64::from(is_refusal(frame, payload));
        }
    });
    refusals
}

/// Whether a frame, with this beginning of its payload, refuses a malformed request or connection.
fn is_refusal(frame: FrameHeader, [a, b, c, d, e, f, g, h]: [u8; 8]) -> bool {
    match (frame.frame_type, frame.length) {
        (RST_STREAM, 4) => is_error_of_client([a, b, c, d]),
        (GOAWAY, 8..) => is_error_of_client([e, f, g, h]),
        // RFC 7541, appendix A: `:status: 400`, and `:status` with another value. A response of the balancer
        // has more fields.
        (HEADERS, 1..=8) => frame.flags & END_STREAM != 0 && matches!(a, 0x8c | 0x48 | 0x08 | 0x18),
        _ => false,
    }
}

/// RFC 9113, section 7: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR and
/// ENHANCE_YOUR_CALM.
fn is_error_of_client(code: [u8; 4]) -> bool {
    matches!(u32::from_be_bytes(code), 1 | 3 | 6 | 9 | 11)
}

impl AsyncRead for Http2ErrorCounter {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Http2ErrorCounter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = written {
            self.on_written([buf].into_iter(), count);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(count)) = written {
            self.on_written(bufs.iter().map(|buf| &**buf), count);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

delegate_stream_traits!(Http2ErrorCounter, inner);

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(frame_type: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, frame_type, flags, 0, 0, 0, 1][..], payload].concat()
    }

    #[test]
    fn refusals_are_counted_in_any_pieces() {
        let refusals = [
            frame(RST_STREAM, 0, &[0, 0, 0, 1]),
            frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 11, b'x']),
            frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 9]),
            frame(HEADERS, 5, &[0x8c]),
            frame(HEADERS, 5, &[0x48, 0x82, 0x64, 0x02]),
        ];
        let others = [
            frame(0, 1, &[RST_STREAM; 200]),
            frame(4, 0, &[]),
            frame(RST_STREAM, 0, &[0, 0, 0, 8]),
            frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
            frame(HEADERS, 4, &[0x8c]),
            frame(HEADERS, 5, &[0x88]),
            frame(HEADERS, 5, &[0x8c, 0, 0, 0, 0, 0, 0, 0, 0]),
        ];
        let bytes: Vec<u8> = others.iter().chain(&refusals).chain(&others).flatten().copied().collect();
        for size in [1, 2, 7, 9, 11, bytes.len()] {
            let mut frames = FrameReader::default();
            let count: u64 = bytes.chunks(size).map(|piece| count_refusals(&mut frames, piece)).sum();
            assert_eq!(count, refusals.len() as u64, "{size}");
        }
    }
}
