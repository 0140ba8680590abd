//! Reads a request's body: whole, bounded in size, time and memory; or, for an upload too large to
//! hold, only as far as needed to know that. The rest of such an upload is read by
//! `attempt/exchange.rs` while it is sent on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora::protocols::http::ServerSession;
use tokio::time::{Instant, timeout_at};

use super::body_memory::{BodyMemory, MemoryReservation};
use crate::refusal::{Refusal, RefusalReason};

/// Most bytes that are handed to the engine at once: between two pieces the response is polled.
const MAX_PIECE_BYTES: usize = 128 * 1024;
/// Pieces up to this size are copied together rather than sent one by one.
const MAX_COPIED_BYTES: usize = 16 * 1024;
/// Most bytes of buffer that a declared length alone makes the balancer reserve.
const MAX_DECLARED_RESERVE: u64 = 1024 * 1024;

/// A request's body, as far as it was read.
#[derive(Debug, Default)]
pub(in crate::proxy) struct RequestBody {
    /// The bytes that are held for every attempt.
    pub(in crate::proxy) held: Bytes,
    /// What the current attempt has yet to send of them.
    pub(in crate::proxy) unsent: VecDeque<Bytes>,
    /// Bytes read so far, held or not.
    pub(in crate::proxy) bytes_read: u64,
    /// The body is an upload that passes through and may have at most this many bytes in all.
    pub(in crate::proxy) streaming_limit: Option<u64>,
    /// The `Content-Length` of the client.
    pub(in crate::proxy) declared_length: Option<u64>,
    /// A part that is not held has been read: the body cannot be sent again.
    pub(in crate::proxy) is_consumed: bool,
    /// There is a body that has not been read to its end.
    has_unread_rest: bool,
    /// The memory of what is held; given back together with it.
    reservation: Option<MemoryReservation>,
}

impl RequestBody {
    /// A body of which nothing has been read.
    pub(super) fn unread() -> Self {
        Self { has_unread_rest: true, ..Self::default() }
    }

    /// Whether the whole body has been read.
    pub(in crate::proxy) fn is_complete(&self) -> bool {
        !self.has_unread_rest
    }

    /// Queues the body of the next attempt: what is held, after its edits.
    pub(in crate::proxy) fn queue(&mut self, held: impl IntoIterator<Item = Bytes>) {
        self.unsent = split_and_join(held);
    }

    /// Takes what is held and gives its memory back: whoever takes it bounds it from here on.
    pub(in crate::proxy) fn take_held(&mut self) -> Bytes {
        self.reservation = None;
        std::mem::take(&mut self.held)
    }

    /// Records that an upload has been read to its end.
    pub(in crate::proxy) fn note_end(&mut self) {
        self.has_unread_rest = false;
    }
}

/// Cuts large pieces and joins small ones, in order. Small pieces that an edit left behind would each
/// be a write of their own, and there are HTTP/2 servers that close the connection on many small frames.
fn split_and_join(held: impl IntoIterator<Item = Bytes>) -> VecDeque<Bytes> {
    let mut pieces = VecDeque::new();
    let mut small: Vec<Bytes> = Vec::new();
    for mut piece in held {
        if piece.len() <= MAX_COPIED_BYTES {
            small.push(piece);
            continue;
        }
        pieces.extend(join(&mut small));
        while piece.len() > MAX_PIECE_BYTES {
            pieces.push_back(piece.split_to(MAX_PIECE_BYTES));
        }
        pieces.push_back(piece);
    }
    pieces.extend(join(&mut small));
    pieces
}

/// The bytes of these pieces as one, if there are any; takes them.
fn join(pieces: &mut Vec<Bytes>) -> Option<Bytes> {
    pieces.retain(|piece| !piece.is_empty());
    match pieces.len() {
        0 => None,
        1 => pieces.pop(),
        _ => Some(Bytes::from(std::mem::take(pieces).concat())),
    }
}

/// The limits of one body.
#[derive(Clone)]
pub(super) struct BodyLimits {
    /// Most bytes that are held.
    pub(super) max_held: u64,
    /// Most bytes of an upload that passes through; `None` if this is no upload.
    pub(super) max_streamed: Option<u64>,
    /// For the whole body.
    pub(in crate::proxy) timeout: Duration,
    pub(in crate::proxy) memory: Arc<BodyMemory>,
    /// Most bytes of all held bodies together.
    pub(in crate::proxy) memory_limit: u64,
}

/// Why a body was not read.
pub(in crate::proxy) enum BodyReadError {
    /// The client gets this refusal.
    Refused(Refusal),
    /// The same, and the connection has to be closed: where the next request begins is unknown.
    Unframed(Refusal),
    /// The client has disconnected.
    ClientGone,
}

impl From<Refusal> for BodyReadError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Reads the body.
///
/// # Errors
/// `body_too_large`, `request_timeout`, `overloaded`, `bad_request` for broken framing, or a client
/// that disconnected.
pub(super) async fn read_body(
    session: &mut ServerSession,
    limits: &BodyLimits,
) -> Result<RequestBody, BodyReadError> {
    if session.is_body_done() {
        return Ok(RequestBody::default());
    }
    let declared_length = declared_length(session);
    let max_length = limits.max_streamed.unwrap_or(limits.max_held);
    if declared_length.is_some_and(|length| length > max_length) {
        return Err(too_large(max_length).into());
    }
    send_continue(session).await?;
    if declared_length.is_some_and(|length| length > limits.max_held) {
        let streaming_limit = Some(max_length);
        return Ok(RequestBody { streaming_limit, declared_length, ..RequestBody::unread() });
    }
    let deadline = Instant::now() + limits.timeout;
    // Memory is reserved for what arrives: declaring a length costs its sender nothing.
    let mut reservation = BodyMemory::reservation(&limits.memory, limits.memory_limit);
    let mut buffer = BodyBuffer::default();
    loop {
        let piece = match timeout_at(deadline, session.read_request_body()).await {
            Err(_) => {
                let message = format!("the request body was not complete within {:?}", limits.timeout);
                return Err(BodyReadError::Unframed(Refusal::new(RefusalReason::RequestTimeout, message)));
            }
            Ok(Err(problem)) => return Err(classify_read_error(&problem)),
            Ok(Ok(piece)) => piece,
        };
        let Some(piece) = piece else { break };
        let bytes_read = buffer.len() + piece.len() as u64;
        if bytes_read > limits.max_held && limits.max_streamed.is_none() {
            return Err(too_large(limits.max_held).into());
        }
        if bytes_read > reservation.bytes() {
            reservation.grow_to(bytes_read)?;
        }
        buffer.push(piece, declared_length);
        if bytes_read > limits.max_held {
            return Ok(RequestBody {
                held: buffer.into_bytes(),
                bytes_read,
                streaming_limit: Some(max_length),
                declared_length,
                reservation: Some(reservation),
                ..RequestBody::unread()
            });
        }
        if session.is_body_done() {
            break;
        }
    }
    let held = buffer.into_bytes();
    let bytes_read = held.len() as u64;
    // A body that is shorter than declared: the connection ended in the middle of it.
    if declared_length.is_some_and(|declared| declared != bytes_read) {
        return Err(BodyReadError::ClientGone);
    }
    Ok(RequestBody { held, bytes_read, reservation: Some(reservation), ..RequestBody::default() })
}

/// The length that a request declares; `None` for chunked bodies and HTTP/2 without one.
fn declared_length(session: &ServerSession) -> Option<u64> {
    let value = session.get_header(http::header::CONTENT_LENGTH)?;
    value.to_str().ok()?.trim().parse().ok()
}

/// A client that sent `Expect: 100-continue` waits for this before it sends its body (RFC 9110,
/// section 10.1.1).
async fn send_continue(session: &mut ServerSession) -> Result<(), BodyReadError> {
    let expects_continue = session
        .get_header(http::header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if expects_continue && session.write_continue_response().await.is_err() {
        return Err(BodyReadError::ClientGone);
    }
    Ok(())
}

fn too_large(max_length: u64) -> Refusal {
    let message = format!("the request body may have at most {max_length} bytes here");
    Refusal::new(RefusalReason::BodyTooLarge, message)
}

/// What an error of reading the body means for the client.
pub(in crate::proxy) fn classify_read_error(problem: &pingora::Error) -> BodyReadError {
    use pingora::ErrorType::{ConnectionClosed, ReadError, ReadTimedout};
    match problem.etype() {
        ConnectionClosed | ReadError => BodyReadError::ClientGone,
        ReadTimedout => {
            let message = "the request body did not arrive in time";
            BodyReadError::Unframed(Refusal::new(RefusalReason::RequestTimeout, message))
        }
        _ => BodyReadError::Unframed(Refusal::bad_request("the request body's framing is malformed")),
    }
}

/// The pieces read so far: one is kept as it is, several are joined as they come.
#[derive(Default)]
struct BodyBuffer {
    only: Bytes,
    joined: BytesMut,
}

impl BodyBuffer {
    fn len(&self) -> u64 {
        (self.only.len() + self.joined.len()) as u64
    }

    fn push(&mut self, piece: Bytes, declared_length: Option<u64>) {
        if self.len() == 0 {
            self.only = piece;
            return;
        }
        if !self.only.is_empty() {
            let declared = declared_length.unwrap_or(0).min(MAX_DECLARED_RESERVE);
            self.joined.reserve(usize::try_from(declared).unwrap_or(0).max(self.only.len() + piece.len()));
            self.joined.extend_from_slice(&self.only);
            self.only = Bytes::new();
        }
        self.joined.extend_from_slice(&piece);
    }

    fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.only } else { self.joined.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_sent_as_one_and_large_ones_are_cut() {
        let piece = Bytes::from_static;
        assert!(split_and_join([piece(b"")]).is_empty());
        assert_eq!(split_and_join([piece(b"a")]), [piece(b"a")]);
        let large = Bytes::from(vec![b'x'; MAX_COPIED_BYTES + 1]);
        let pieces = split_and_join([piece(b"a"), piece(b""), piece(b"b"), large.clone(), piece(b"")]);
        assert_eq!(pieces, [piece(b"ab"), large]);
        let pieces = split_and_join([Bytes::from(vec![b'x'; 2 * MAX_PIECE_BYTES + 1])]);
        let lengths = pieces.iter().map(Bytes::len).collect::<Vec<_>>();
        assert_eq!(lengths, [MAX_PIECE_BYTES, MAX_PIECE_BYTES, 1]);
    }

    #[test]
    fn pieces_are_joined_in_order() {
        for pieces in [&["a"][..], &["a", "b"], &["ab", "", "c", "defg"]] {
            let mut buffer = BodyBuffer::default();
            for piece in pieces {
                buffer.push(Bytes::copy_from_slice(piece.as_bytes()), Some(3));
            }
            assert_eq!(buffer.into_bytes(), pieces.concat().as_bytes());
        }
    }
}
