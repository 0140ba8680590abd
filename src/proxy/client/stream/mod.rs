//! What is done with the bytes of a client's connection that the engine does not do: they are checked, timed, counted,
//! collected, or read without being copied.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead as _, ReadBuf};

pub(super) mod chunked;
pub(super) mod collected_writes;
pub(super) mod http1;
pub(super) mod http2;
mod http2_deadline;
mod http2_errors;
mod http2_frames;
pub(in crate::proxy) mod http2_unread;

/// How much is read while there is no room in a buffer: all of most heads, and a short body.
const FIRST_READ_BYTES: usize = 4 * 1024;

/// Reads what has arrived, at most `limit` bytes. The buffer grows only if something has, by at least `growth`: most
/// connections are idle. Returns the number of bytes; 0 if there will be no more.
pub(super) fn poll_read_arrived(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
    limit: usize,
    growth: usize,
) -> Poll<io::Result<usize>> {
    let mut arrived = [MaybeUninit::uninit(); FIRST_READ_BYTES];
    let mut arrived = ReadBuf::uninit(arrived.get_mut(..limit.min(FIRST_READ_BYTES)).unwrap_or_default());
    ready!(Pin::new(stream).poll_read(cx, &mut arrived))?;
    if !arrived.filled().is_empty() {
        buffer.reserve(growth);
    }
    buffer.extend_from_slice(arrived.filled());
    Poll::Ready(Ok(arrived.filled().len()))
}
