//! Taking a request's body in: whole, bounded in size, time and memory; or, for an upload
//! too large to hold, only as far as needed to know that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora::protocols::http::ServerSession;
use tokio::time::{Instant, timeout_at};

use crate::refusal::{Reason, Refusal};

/// Memory for all held bodies together.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Budget {
    used: AtomicU64,
}

impl Budget {
    /// A share that has nothing yet, of a budget that is so large at the moment.
    pub(in crate::proxy) fn share(budget: &Arc<Self>, total: u64) -> Share {
        Share { budget: Arc::clone(budget), total, bytes: 0 }
    }

    fn take(&self, bytes: u64, total: u64) -> bool {
        let take = |used: u64| used.checked_add(bytes).filter(|used| *used <= total);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// A share of the budget; given back when dropped.
#[derive(Debug)]
pub(in crate::proxy) struct Share {
    budget: Arc<Budget>,
    total: u64,
    bytes: u64,
}

impl Share {
    /// Takes what is missing to so many bytes.
    ///
    /// # Errors
    /// `overloaded` when there is not so much left.
    pub(in crate::proxy) fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 || self.budget.take(more, self.total) {
            self.bytes += more;
            return Ok(());
        }
        let message = "the balancer holds too many request bodies at the moment; try again shortly";
        Err(Refusal::new(Reason::Overloaded, message).after(Duration::from_secs(1)))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// A body as far as it was taken in.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Intake {
    /// The bytes that are held.
    pub(in crate::proxy) bytes: Bytes,
    /// Bytes seen so far, held or not.
    pub(in crate::proxy) length: u64,
    /// More follows that is not held: the most bytes there may be in all.
    pub(in crate::proxy) streams: Option<u64>,
    /// The length that was announced.
    pub(in crate::proxy) announced: Option<u64>,
    /// Some of what is not held has been read: the body cannot be sent again.
    pub(in crate::proxy) consumed: bool,
    /// Whether there was a body that was not, or not yet, read to its end.
    unread: bool,
    /// Its part of the budget; given back with it, or with what is taken out of it.
    share: Option<Share>,
}

impl Intake {
    /// Nothing of a body that there is.
    pub(in crate::proxy) fn unread() -> Self {
        Self { unread: true, ..Self::default() }
    }

    /// Whether its length is that of the whole body.
    pub(in crate::proxy) fn is_complete(&self) -> bool {
        !self.unread
    }

    /// Takes what is held out, and gives its part of the budget back: whoever has it now bounds it.
    pub(in crate::proxy) fn release(&mut self) -> Bytes {
        self.share = None;
        std::mem::take(&mut self.bytes)
    }

    /// The end of a body that passes through has been read.
    pub(in crate::proxy) fn ended(&mut self) {
        self.unread = false;
    }
}

/// What bounds an intake.
#[derive(Clone)]
pub(in crate::proxy) struct Bounds {
    /// Most bytes that are held.
    pub(in crate::proxy) held: u64,
    /// Most bytes of an upload that passes through; `None` if this is no upload.
    pub(in crate::proxy) streamed: Option<u64>,
    /// For the whole body.
    pub(in crate::proxy) deadline: Duration,
    pub(in crate::proxy) budget: Arc<Budget>,
    /// Memory for all held bodies together.
    pub(in crate::proxy) memory: u64,
}

/// Why a body was not taken in.
pub(in crate::proxy) enum NoBody {
    /// The client is told.
    Refused(Refusal),
    /// The client is told, and where its next request would begin is not known.
    Unframed(Refusal),
    /// The client is gone.
    Gone,
}

impl From<Refusal> for NoBody {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The length a request announces; `None` for chunked and HTTP/2 without one.
pub(in crate::proxy) fn announced(session: &ServerSession) -> Option<u64> {
    let value = session.get_header(http::header::CONTENT_LENGTH)?;
    value.to_str().ok()?.trim().parse().ok()
}

/// Takes the body in.
///
/// # Errors
/// `body_too_large`, `request_timeout`, `overloaded`, `bad_request` for broken framing, or a
/// client that left.
pub(in crate::proxy) async fn take(session: &mut ServerSession, bounds: &Bounds) -> Result<Intake, NoBody> {
    if session.is_body_done() {
        return Ok(Intake::default());
    }
    let announced = announced(session);
    let most = bounds.streamed.unwrap_or(bounds.held);
    if announced.is_some_and(|length| length > most) {
        return Err(too_large(most).into());
    }
    if announced.is_some_and(|length| length > bounds.held) {
        expect(session).await?;
        return Ok(Intake { streams: Some(most), announced, ..Intake::unread() });
    }
    expect(session).await?;
    let deadline = Instant::now() + bounds.deadline;
    // Memory is taken for what arrives: an announcement costs its sender nothing.
    let mut share = Budget::share(&bounds.budget, bounds.memory);
    let mut whole = Gathered::default();
    loop {
        let piece = match timeout_at(deadline, session.read_request_body()).await {
            Err(_) => {
                let message = format!("the request body was not complete within {:?}", bounds.deadline);
                return Err(NoBody::Unframed(Refusal::new(Reason::RequestTimeout, message)));
            }
            Ok(Err(problem)) => return Err(broken(&problem)),
            Ok(Ok(piece)) => piece,
        };
        let Some(piece) = piece else { break };
        let length = whole.length() + piece.len() as u64;
        if length > bounds.held && bounds.streamed.is_none() {
            return Err(too_large(bounds.held).into());
        }
        if length > share.bytes {
            share.grow_to(length)?;
        }
        whole.push(piece, announced);
        if length > bounds.held {
            let streams = Some(most);
            let bytes = whole.into_bytes();
            return Ok(Intake { length, bytes, streams, announced, share: Some(share), ..Intake::unread() });
        }
        if session.is_body_done() {
            break;
        }
    }
    let bytes = whole.into_bytes();
    if announced.is_some_and(|announced| announced != bytes.len() as u64) {
        return Err(NoBody::Gone);
    }
    Ok(Intake { length: bytes.len() as u64, bytes, share: Some(share), ..Intake::default() })
}

/// A client that sent `Expect: 100-continue` waits for a word before it sends its body.
async fn expect(session: &mut ServerSession) -> Result<(), NoBody> {
    let expects = session
        .get_header(http::header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if expects && session.write_continue_response().await.is_err() {
        return Err(NoBody::Gone);
    }
    Ok(())
}

fn too_large(most: u64) -> Refusal {
    Refusal::new(Reason::BodyTooLarge, format!("the request body may have at most {most} bytes here"))
}

/// What a body that cannot be read on means.
pub(in crate::proxy) fn broken(problem: &pingora::Error) -> NoBody {
    use pingora::ErrorType::{ConnectionClosed, ReadError, ReadTimedout};
    match problem.etype() {
        ConnectionClosed | ReadError => NoBody::Gone,
        ReadTimedout => {
            NoBody::Unframed(Refusal::new(Reason::RequestTimeout, "the request body did not arrive in time"))
        }
        _ => NoBody::Unframed(Refusal::bad_request("the request body's framing is malformed")),
    }
}

/// The pieces read so far: one is kept as it is, several are joined as they come.
#[derive(Default)]
struct Gathered {
    only: Bytes,
    joined: BytesMut,
}

impl Gathered {
    fn length(&self) -> u64 {
        (self.only.len() + self.joined.len()) as u64
    }

    fn push(&mut self, piece: Bytes, announced: Option<u64>) {
        if self.length() == 0 {
            self.only = piece;
            return;
        }
        if !self.only.is_empty() {
            // Never more than a body this size may be set aside for a length merely announced.
            let announced = announced.unwrap_or(0).min(1024 * 1024);
            self.joined.reserve(usize::try_from(announced).unwrap_or(0).max(self.only.len() + piece.len()));
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
    fn shares_are_bounded_together_and_given_back() {
        let budget = Arc::<Budget>::default();
        let mut a = Budget::share(&budget, 100);
        let mut b = Budget::share(&budget, 100);
        assert!(a.grow_to(60).is_ok());
        assert_eq!(b.grow_to(50).unwrap_err().reason, Reason::Overloaded);
        drop(a);
        assert!(b.grow_to(100).is_ok());
        drop(b);
        assert!(budget.take(100, 100));
    }

    #[test]
    fn pieces_join_in_order() {
        for pieces in [&["a"][..], &["a", "b"], &["ab", "", "c", "defg"]] {
            let mut gathered = Gathered::default();
            for piece in pieces {
                gathered.push(Bytes::copy_from_slice(piece.as_bytes()), Some(3));
            }
            assert_eq!(gathered.into_bytes(), pieces.concat().as_bytes());
        }
    }
}
