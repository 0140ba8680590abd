//! Reads a request's body into memory, with limits on its size, time and memory. Of an upload that is too
//! large to be held, only as much is read as shows that; `attempt/exchange.rs` reads the rest while it is
//! sent to the backend.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora::protocols::http::ServerSession;
use tokio::time::{Instant, timeout, timeout_at};

use super::body_memory::{BodyMemory, MemoryReservation};
use super::stream::http1::{Http1Stream, MAX_PREALLOCATED_BYTES};
use crate::names::Caller;
use crate::proxy::framing::error::is_framing_error;
use crate::refusal::{Refusal, RefusalReason};

/// Largest piece that is given to Pingora at once. Over HTTP/1.1, what a backend does not take of it is copied.
const MAX_PIECE_BYTES: usize = 128 * 1024;
/// Pieces up to this size are copied into one instead of being sent one by one.
const MAX_SMALL_PIECE_BYTES: usize = 16 * 1024;

/// A request's body.
#[derive(Debug, Default)]
pub(in crate::proxy) struct RequestBody {
    /// What has been read before the first attempt: all of the body, or the beginning of an upload. It is
    /// held so that every attempt can send it.
    pub(in crate::proxy) held_bytes: Bytes,
    /// What the current attempt has to send of the held bytes, after edits.
    pub(in crate::proxy) unsent_pieces: VecDeque<Bytes>,
    /// Bytes read from the client so far, held or not.
    pub(in crate::proxy) bytes_read: u64,
    /// Maximum length of an upload that is streamed to the backend; `None` if the whole body is held.
    pub(in crate::proxy) max_streamed_upload_bytes: Option<u64>,
    /// The client's `Content-Length`.
    pub(in crate::proxy) declared_length: Option<u64>,
    /// Bytes that are not held have been read, so the body cannot be sent again.
    pub(in crate::proxy) is_no_longer_replayable: bool,
    /// There is a body, and its end has not been read.
    has_unread_rest: bool,
    /// The memory of the held bytes.
    memory_reservation: Option<MemoryReservation>,
}

impl RequestBody {
    /// A body of which nothing has been read.
    pub(super) fn unread() -> Self {
        Self { has_unread_rest: true, ..Self::default() }
    }

    /// A body that has been read whole, with its memory.
    pub(in crate::proxy) fn held(bytes: Bytes, memory: MemoryReservation) -> Self {
        let (bytes_read, memory_reservation) = (bytes.len() as u64, Some(memory));
        Self { bytes_read, held_bytes: bytes, memory_reservation, ..Self::default() }
    }

    /// Whether the whole body has been read.
    pub(in crate::proxy) fn is_fully_read(&self) -> bool {
        !self.has_unread_rest
    }

    /// Queues the held bytes, after edits, to be sent by the next attempt.
    pub(in crate::proxy) fn replace_unsent_pieces(&mut self, pieces: impl IntoIterator<Item = Bytes>) {
        self.unsent_pieces = even_out_pieces(pieces);
    }

    /// Length in bytes of what the current attempt still has to send of the held bytes.
    pub(in crate::proxy) fn unsent_bytes(&self) -> usize {
        self.unsent_pieces.iter().map(Bytes::len).sum()
    }

    /// Takes the held bytes and releases their reservation. They no longer count towards the memory limit;
    /// the caller has to limit them.
    pub(in crate::proxy) fn take_and_unreserve_held_bytes(&mut self) -> Bytes {
        self.memory_reservation = None;
        std::mem::take(&mut self.held_bytes)
    }

    /// Records that an upload has been read to its end.
    pub(in crate::proxy) fn note_upload_end(&mut self) {
        self.has_unread_rest = false;
    }
}

/// Splits large pieces and joins small neighbours; the order stays the same. Each edit of a body leaves
/// small pieces behind. Each of them would be a write of its own, and some HTTP/2 servers close a connection
/// with many small frames.
fn even_out_pieces(pieces: impl IntoIterator<Item = Bytes>) -> VecDeque<Bytes> {
    let mut result = VecDeque::new();
    let mut small_pieces: Vec<Bytes> = Vec::new();
    for mut piece in pieces {
        if piece.len() <= MAX_SMALL_PIECE_BYTES {
            small_pieces.push(piece);
            continue;
        }
        result.extend(join_pieces(&mut small_pieces));
        while piece.len() > MAX_PIECE_BYTES {
            result.push_back(piece.split_to(MAX_PIECE_BYTES));
        }
        result.push_back(piece);
    }
    result.extend(join_pieces(&mut small_pieces));
    result
}

/// Takes these pieces and joins them; `None` if all of them are empty.
fn join_pieces(pieces: &mut Vec<Bytes>) -> Option<Bytes> {
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
    /// A larger body is refused or, if it is an upload, streamed.
    pub(super) max_held_bytes: u64,
    /// Maximum length of an upload, which is streamed if it cannot be held; `None` if the request is no
    /// upload.
    pub(super) max_streamed_upload_bytes: Option<u64>,
    /// For the whole body.
    pub(super) timeout: Duration,
    pub(super) body_memory: Arc<BodyMemory>,
    /// Whose body it is.
    pub(super) memory_holder: Caller,
    /// Maximum memory of all held bodies together.
    pub(super) max_total_held_bytes: u64,
}

/// Why a body was not read.
pub(in crate::proxy) enum BodyReadError {
    /// The client gets this refusal.
    Refused(Refusal),
    /// The client gets this refusal, then its connection is closed, because it is not known where its next
    /// request begins.
    RefusedWithClose(Refusal),
    /// The client has disconnected.
    ClientGone,
}

impl From<Refusal> for BodyReadError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Reads the body: all of it, or as much of an upload as shows that it is too large to be held.
///
/// # Errors
/// `body_too_large`, `request_timeout`, `overloaded`, `bad_request` for malformed framing, or
/// [`BodyReadError::ClientGone`].
pub(super) async fn read_body(
    session: &mut ServerSession,
    limits: &BodyLimits,
) -> Result<RequestBody, BodyReadError> {
    let declared_length = declared_length(session);
    // Such a body is read directly from the connection. Pingora must not have begun to read it: see `admit.rs`,
    // `configure_session`.
    let sized_length = declared_length
        .filter(|length| *length > 0 && Http1Stream::of_session(session).is_some())
        .and_then(|length| usize::try_from(length).ok());
    if sized_length.is_none() && session.is_body_done() {
        return Ok(RequestBody::default());
    }
    let max_length = limits.max_streamed_upload_bytes.unwrap_or(limits.max_held_bytes);
    if declared_length.is_some_and(|length| length > max_length) {
        return Err(too_large_refusal(max_length).into());
    }
    // After the check of the length: a client that waits for this then does not send a body that is too
    // large.
    send_continue_if_expected(session, limits.timeout).await?;
    if declared_length.is_some_and(|length| length > limits.max_held_bytes) {
        let max_streamed_upload_bytes = Some(max_length);
        return Ok(RequestBody { max_streamed_upload_bytes, declared_length, ..RequestBody::unread() });
    }
    let deadline = Instant::now() + limits.timeout;
    // Memory is reserved as the bytes arrive. A length is easily declared without sending anything.
    let mut reservation = BodyMemory::empty_reservation(
        &limits.body_memory,
        limits.memory_holder.clone(),
        limits.max_total_held_bytes,
    );
    if let (Some(length), Some(stream)) = (sized_length, Http1Stream::of_session(session)) {
        let mut body = BytesMut::new();
        let reading = read_sized_body(stream, length, &mut body, &mut reservation);
        let read = timeout_at(deadline, reading).await.unwrap_or_else(|_| Err(body_timeout(limits.timeout)));
        declare_rest(session, length - body.len())?;
        read?;
        return Ok(RequestBody::held(body.freeze(), reservation));
    }
    let mut buffer = BodyBuffer::default();
    loop {
        let piece = match timeout_at(deadline, session.read_request_body()).await {
            Err(_) => return Err(body_timeout(limits.timeout)),
            Ok(Err(error)) => return Err(classify_body_read_error(&error)),
            Ok(Ok(piece)) => piece,
        };
        let Some(piece) = piece else { break };
        let bytes_read = buffer.len() + piece.len() as u64;
        if bytes_read > limits.max_held_bytes && limits.max_streamed_upload_bytes.is_none() {
            return Err(too_large_refusal(limits.max_held_bytes).into());
        }
        if bytes_read > reservation.reserved_bytes() {
            reservation.grow_to(bytes_read)?;
        }
        buffer.push(piece, declared_length);
        if bytes_read > limits.max_held_bytes {
            return Ok(RequestBody {
                held_bytes: buffer.into_bytes(),
                bytes_read,
                max_streamed_upload_bytes: Some(max_length),
                declared_length,
                memory_reservation: Some(reservation),
                ..RequestBody::unread()
            });
        }
        if session.is_body_done() {
            break;
        }
    }
    let held = buffer.into_bytes();
    let bytes_read = held.len() as u64;
    // The body is shorter than declared: the connection ended in the middle of it.
    if declared_length.is_some_and(|declared| declared != bytes_read) {
        return Err(BodyReadError::ClientGone);
    }
    Ok(RequestBody {
        held_bytes: held,
        bytes_read,
        memory_reservation: Some(reservation),
        ..RequestBody::default()
    })
}

/// Reads all of a body with a length, without Pingora.
///
/// # Errors
/// `overloaded`, or [`BodyReadError::ClientGone`]. What has been read is in `body`.
async fn read_sized_body(
    stream: &Http1Stream,
    length: usize,
    body: &mut BytesMut,
    reservation: &mut MemoryReservation,
) -> Result<(), BodyReadError> {
    while body.len() < length {
        let rest = length - body.len();
        match stream.read_body(body, rest).await {
            // The body is shorter than declared: the connection ended in the middle of it.
            Ok(0) | Err(_) => return Err(BodyReadError::ClientGone),
            Ok(_) => reservation.grow_to(body.len() as u64)?,
        }
    }
    Ok(())
}

/// Has the head declare the part of the body that has not been read, so that Pingora finds the next request behind it.
fn declare_rest(session: &mut ServerSession, rest: usize) -> Result<(), BodyReadError> {
    let head = session.req_header_mut();
    if rest == 0 {
        head.remove_header(&http::header::CONTENT_LENGTH);
        return Ok(());
    }
    head.insert_header(http::header::CONTENT_LENGTH, rest).map_err(|_| malformed_body())
}

fn body_timeout(limit: Duration) -> BodyReadError {
    let message = format!("the request body was not complete within {limit:?}");
    BodyReadError::RefusedWithClose(Refusal::new(RefusalReason::RequestTimeout, message))
}

/// The client's `Content-Length`; `None` for a chunked body, or an HTTP/2 request without it.
fn declared_length(session: &ServerSession) -> Option<u64> {
    let value = session.get_header(http::header::CONTENT_LENGTH)?;
    value.to_str().ok()?.trim().parse().ok()
}

/// Sends a 100 to a client that waits for it before it sends its body (RFC 9110, section 10.1.1).
async fn send_continue_if_expected(
    session: &mut ServerSession,
    limit: Duration,
) -> Result<(), BodyReadError> {
    let expects_continue = session
        .get_header(http::header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if expects_continue && !matches!(timeout(limit, session.write_continue_response()).await, Ok(Ok(()))) {
        return Err(BodyReadError::ClientGone);
    }
    Ok(())
}

fn too_large_refusal(max_length: u64) -> Refusal {
    let message = format!("the request body may have at most {max_length} bytes here");
    Refusal::new(RefusalReason::BodyTooLarge, message)
}

/// What Pingora's error of reading a body means for the client.
pub(in crate::proxy) fn classify_body_read_error(error: &pingora::Error) -> BodyReadError {
    use pingora::ErrorType::{ConnectionClosed, ReadError, ReadTimedout};
    match error.etype() {
        ReadError if is_framing_error(error) => malformed_body(),
        ConnectionClosed | ReadError => BodyReadError::ClientGone,
        ReadTimedout => {
            let message = "the request body did not arrive in time";
            BodyReadError::RefusedWithClose(Refusal::new(RefusalReason::RequestTimeout, message))
        }
        _ => malformed_body(),
    }
}

fn malformed_body() -> BodyReadError {
    BodyReadError::RefusedWithClose(Refusal::bad_request("the request body's framing is malformed"))
}

/// Collects the pieces of a body. A single piece is not copied.
#[derive(Default)]
struct BodyBuffer {
    /// The first piece, as long as it is the only one.
    single_piece: Bytes,
    /// All pieces, once there are several.
    joined_pieces: BytesMut,
}

impl BodyBuffer {
    fn len(&self) -> u64 {
        (self.single_piece.len() + self.joined_pieces.len()) as u64
    }

    fn push(&mut self, piece: Bytes, declared_length: Option<u64>) {
        if self.len() == 0 {
            self.single_piece = piece;
            return;
        }
        if !self.single_piece.is_empty() {
            let declared = declared_length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
            let arrived = self.single_piece.len() + piece.len();
            self.joined_pieces.reserve(declared.min(MAX_PREALLOCATED_BYTES).max(arrived));
            self.joined_pieces.extend_from_slice(&self.single_piece);
            self.single_piece = Bytes::new();
        }
        self.joined_pieces.extend_from_slice(&piece);
    }

    fn into_bytes(self) -> Bytes {
        if self.joined_pieces.is_empty() { self.single_piece } else { self.joined_pieces.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_joined_and_large_ones_are_split() {
        let piece = Bytes::from_static;
        assert!(even_out_pieces([piece(b"")]).is_empty());
        assert_eq!(even_out_pieces([piece(b"a")]), [piece(b"a")]);
        let large = Bytes::from(vec![b'x'; MAX_SMALL_PIECE_BYTES + 1]);
        let pieces = even_out_pieces([piece(b"a"), piece(b""), piece(b"b"), large.clone(), piece(b"")]);
        assert_eq!(pieces, [piece(b"ab"), large]);
        let pieces = even_out_pieces([Bytes::from(vec![b'x'; 2 * MAX_PIECE_BYTES + 1])]);
        let lengths = pieces.iter().map(Bytes::len).collect::<Vec<_>>();
        assert_eq!(lengths, [MAX_PIECE_BYTES, MAX_PIECE_BYTES, 1]);
    }

    #[test]
    fn a_body_buffer_keeps_the_order_of_its_pieces() {
        for pieces in [&["a"][..], &["a", "b"], &["ab", "", "c", "defg"]] {
            let mut buffer = BodyBuffer::default();
            for piece in pieces {
                buffer.push(Bytes::copy_from_slice(piece.as_bytes()), Some(3));
            }
            assert_eq!(buffer.into_bytes(), pieces.concat().as_bytes());
        }
    }
}
