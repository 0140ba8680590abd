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

use crate::proxy::stream_wrapper::delegate_stream_traits;

/// RFC 9113, section 4.1: length (3 bytes), type, flags, stream (4 bytes).
const FRAME_HEADER_BYTES: usize = 9;
/// So much of a payload is looked at: a GOAWAY's last stream and error code.
const MAX_PAYLOAD_BYTES: usize = 8;
/// RFC 9113, section 6: types of frames, and the flag that ends a stream.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;

/// A client's HTTP/2 connection whose refusals are counted.
#[derive(Debug)]
pub(super) struct Http2ErrorCounter {
    inner: Stream,
    frames: WrittenFrames,
    malformed_requests: IntCounter,
}

impl Http2ErrorCounter {
    pub(super) fn new(inner: Stream, malformed_requests: IntCounter) -> Self {
        Self { inner, frames: WrittenFrames::default(), malformed_requests }
    }

    /// Looks at bytes that have been written, the first `count` of these.
    fn on_written<'b>(&mut self, bufs: impl Iterator<Item = &'b [u8]>, mut count: usize) {
        for buf in bufs {
            let written = buf.get(..count.min(buf.len())).unwrap_or_default();
            self.malformed_requests.inc_by(self.frames.count_refusals(written));
            count -= written.len();
        }
    }
}

/// Follows the frames that are written.
#[derive(Debug, Default)]
struct WrittenFrames {
    header: [u8; FRAME_HEADER_BYTES],
    /// Bytes of the current frame's header that have passed.
    header_bytes: usize,
    /// The beginning of the current frame's payload, for the types that matter.
    payload: [u8; MAX_PAYLOAD_BYTES],
    /// Bytes of the current frame's payload that have passed.
    payload_bytes: usize,
}

impl WrittenFrames {
    /// How many frames that end in these bytes refuse a malformed request or connection.
    fn count_refusals(&mut self, mut bytes: &[u8]) -> u64 {
        let mut refusals = 0;
        while !bytes.is_empty() {
            if self.header_bytes < FRAME_HEADER_BYTES {
                let taken = bytes.len().min(FRAME_HEADER_BYTES - self.header_bytes);
                let (part, rest) = bytes.split_at(taken);
                copy_into(&mut self.header, self.header_bytes, part);
                self.header_bytes += taken;
                bytes = rest;
                if self.header_bytes < FRAME_HEADER_BYTES {
                    break;
                }
            }
            let taken = bytes.len().min(self.payload_length() - self.payload_bytes);
            let (part, rest) = bytes.split_at(taken);
            copy_into(&mut self.payload, self.payload_bytes, part);
            self.payload_bytes += taken;
            bytes = rest;
            if self.payload_bytes == self.payload_length() {
                refusals += u64::from(self.is_refusal());
                (self.header_bytes, self.payload_bytes) = (0, 0);
            }
        }
        refusals
    }

    fn payload_length(&self) -> usize {
        let [high, middle, low, ..] = self.header;
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    }

    /// Whether the complete current frame refuses a malformed request or connection.
    fn is_refusal(&self) -> bool {
        let [_, _, _, frame_type, flags, ..] = self.header;
        let [a, b, c, d, e, f, g, h] = self.payload;
        match (frame_type, self.payload_length()) {
            (RST_STREAM, 4) => is_error_of_client([a, b, c, d]),
            (GOAWAY, 8..) => is_error_of_client([e, f, g, h]),
            // RFC 7541, appendix A: `:status: 400`, and `:status` with another value. A response of the balancer
            // has more fields.
            (HEADERS, 1..=8) => flags & END_STREAM != 0 && matches!(a, 0x8c | 0x48 | 0x08 | 0x18),
            _ => false,
        }
    }
}

/// RFC 9113, section 7: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR and
/// ENHANCE_YOUR_CALM.
fn is_error_of_client(code: [u8; 4]) -> bool {
    matches!(u32::from_be_bytes(code), 1 | 3 | 6 | 9 | 11)
}

/// Copies as much of `bytes` as fits into `target` from `at` on.
fn copy_into(target: &mut [u8], at: usize, bytes: &[u8]) {
    for (target, byte) in target.iter_mut().skip(at).zip(bytes) {
        *target = *byte;
    }
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
            let mut frames = WrittenFrames::default();
            let count: u64 = bytes.chunks(size).map(|piece| frames.count_refusals(piece)).sum();
            assert_eq!(count, refusals.len() as u64, "{size}");
        }
    }
}
