//! A client's HTTP/1.1 connection while the chunked body of a request is read from it: checks the body's
//! framing before Pingora parses it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use crate::proxy::framing::chunked::{CheckedBytes, ChunkedBody};
use crate::proxy::framing::error::FramingError;
use crate::proxy::stream_wrapper::{delegate_async_write, delegate_stream_traits};

/// A connection from which a chunked body is read. What follows the body is not checked.
#[derive(Debug)]
pub(in crate::proxy::client) struct ChunkedStream {
    inner: Stream,
    body: ChunkedBody,
    /// Every further read fails.
    is_malformed: bool,
}

impl ChunkedStream {
    /// Wraps a connection of which `bytes` have already been read, the first `head_length` of them the
    /// request's head. If the body in them is malformed, the rest is removed from them.
    pub(in crate::proxy::client) fn wrap(inner: Stream, bytes: &mut BytesMut, head_length: usize) -> Stream {
        let mut body = ChunkedBody::new();
        let checked = body.check(bytes.get(head_length..).unwrap_or_default());
        let mut is_malformed = false;
        if let CheckedBytes::MalformedAfter(well_formed) = checked {
            bytes.truncate(head_length + well_formed);
            is_malformed = true;
        }
        Box::new(Self { inner, body, is_malformed })
    }

    /// The connection without this wrapper, or as it is if it has none.
    pub(in crate::proxy::client) fn unwrap_if_wrapped(stream: Stream) -> Option<Stream> {
        if !(*stream).as_any().is::<Self>() {
            return Some(stream);
        }
        stream.into_any().downcast::<Self>().ok().map(|wrapper| wrapper.inner)
    }
}

impl AsyncRead for ChunkedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_malformed {
            return Poll::Ready(Err(FramingError(ChunkedBody::MALFORMED).into()));
        }
        let start = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let checked = self.body.check(buf.filled().get(start..).unwrap_or_default());
        if let CheckedBytes::MalformedAfter(well_formed) = checked {
            self.is_malformed = true;
            buf.set_filled(start + well_formed);
            // A read of no bytes would mean that the client has closed the connection.
            if well_formed == 0 {
                return Poll::Ready(Err(FramingError(ChunkedBody::MALFORMED).into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

delegate_async_write!(ChunkedStream, inner);
delegate_stream_traits!(ChunkedStream, inner);
