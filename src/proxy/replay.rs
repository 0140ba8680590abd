//! The session that stands in for the client's while a request is tried: every attempt reads
//! the same body from it, and replies pass through the story before the client sees them.
//!
//! The engine's own replay buffer ends at 64 KiB; this one is the whole body, shared and not
//! copied. It also races the engine's wait for the client against the time-outs that the
//! engine does not have.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::attempt::Due;
use super::context::Shared;
use super::headers;
use super::intake::{NoBody, broken};
use super::tap::{FIRST_BYTE, IDLE, Reply};
use super::trouble::Trouble;
use crate::record::writer::Receipt;

/// Most bytes that are handed to the engine at once: it says that it has taken a piece, not that
/// it has sent it, and the time-out of the first byte begins after the last one.
const PIECE_MAX: usize = 128 * 1024;
/// Pieces up to this are copied rather than sent each by itself.
const SMALL: usize = 16 * 1024;

/// How long the last bytes of an answer wait for its record.
const RECORDING: Duration = Duration::from_millis(20);

/// A body on its way to one attempt.
#[derive(Default)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// Whether the engine has fetched the first piece.
    begun: bool,
}

impl Outgoing {
    /// The pieces of the body, in order. Small ones that an edit left behind are joined: each
    /// would be a write, and there are servers of HTTP/2 that hang up on many small frames.
    pub(super) fn new(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let mut cut = VecDeque::new();
        let mut small: Vec<Bytes> = Vec::new();
        for mut piece in pieces {
            if piece.len() <= SMALL {
                small.push(piece);
                continue;
            }
            cut.extend(joined(&mut small));
            while piece.len() > PIECE_MAX {
                cut.push_back(piece.split_to(PIECE_MAX));
            }
            cut.push_back(piece);
        }
        cut.extend(joined(&mut small));
        Self { pieces: cut, begun: false }
    }

    fn first(&mut self) -> Option<Bytes> {
        self.begun = true;
        self.pieces.pop_front()
    }

    /// Whether nothing is left once the engine has the first piece.
    fn is_done(&self) -> bool {
        self.pieces.len() <= usize::from(!self.begun)
    }
}

/// The bytes of these pieces as one, if there are any.
fn joined(pieces: &mut Vec<Bytes>) -> Option<Bytes> {
    pieces.retain(|piece| !piece.is_empty());
    match pieces.len() {
        0 => None,
        1 => pieces.pop(),
        _ => Some(Bytes::from(std::mem::take(pieces).concat())),
    }
}

/// Sends what is due although nothing came in.
pub(super) async fn send_overdue(session: &mut ServerSession) -> Result<()> {
    // The replaying session asks the story what that is.
    session.response_duplex_vec(Vec::new()).await.map(|_| ())
}

/// Waits for the record of an answer whose last bytes are about to go out, for a moment: what a
/// client has got whole is written down even if this process is killed.
pub(super) async fn recorded(flow: &Shared, receipt: Option<Receipt>) {
    let Some(receipt) = receipt else { return };
    // Whoever is at its end at the same moment shares the way to the disk.
    yield_now().await;
    flow.lock().gateway().write_down();
    if timeout(RECORDING, receipt).await.is_err() {
        flow.lock().gateway().late();
    }
}

/// Puts a replaying session in place of the client's.
///
/// # Errors
/// As [`headers::kept`].
pub(super) fn wrap(session: &mut ServerSession, flow: &Shared) -> Result<()> {
    let head = headers::kept(session.req_header(), flow.lock().upgrades)?;
    let placeholder = ServerSession::new_custom(Box::new(()));
    let inner = std::mem::replace(session, placeholder);
    let replay = Replay { inner: Some(inner), head, flow: flow.clone(), timer: None, deaf: false };
    *session = ServerSession::new_custom(Box::new(replay));
    Ok(())
}

/// Puts the client's session back; does nothing if it is there.
pub(super) fn unwrap(session: &mut ServerSession, flow: &Shared) {
    if session.as_custom().is_none() {
        return;
    }
    // Dropping the replaying session hands the real one over.
    drop(std::mem::replace(session, ServerSession::new_custom(Box::new(()))));
    if let Some(real) = flow.lock().home.take() {
        *session = real;
    }
}

struct Replay {
    /// The client's session; taken only by `drop`.
    inner: Option<ServerSession>,
    /// What of the client's head may go upstream, of which the engine makes a copy for every attempt.
    head: RequestHeader,
    flow: Shared,
    timer: Option<Pin<Box<Sleep>>>,
    /// The client has sent something after its request: it is not listened to any more.
    deaf: bool,
}

/// Waits for the client to leave; `None` if it has sent something instead.
async fn client_left(session: &mut ServerSession, deaf: &mut bool) -> Option<Result<Option<Bytes>>> {
    if *deaf {
        return std::future::pending().await;
    }
    match session.read_body_or_idle(true).await {
        // The engine's word for data after the end of a body: a stray line end, or the next
        // request already. A byte of it is gone with the look, so this answer is the last on
        // this connection, and the client sends again what was not answered.
        Err(problem) if *problem.etype() == ErrorType::ConnectError => {
            *deaf = true;
            session.set_keepalive(None);
            None
        }
        left => Some(left),
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.flow.lock().home = self.inner.take();
    }
}

impl Replay {
    fn real(&self) -> &ServerSession {
        self.inner.as_ref().expect("only drop takes the session")
    }

    fn real_mut(&mut self) -> &mut ServerSession {
        self.inner.as_mut().expect("only drop takes the session")
    }

    /// Waits for the client to leave or for the time-out of the moment to pass.
    async fn watch(&mut self) -> Result<Option<Bytes>> {
        {
            let mut flow = self.flow.lock();
            if matches!(flow.reply, Reply::None) {
                flow.sent(std::time::Instant::now());
            }
        }
        loop {
            let due = self.flow.lock().deadline;
            let Some((due, then)) = due else {
                match self.client_left().await {
                    Some(left) => return left,
                    None => continue,
                }
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
            // The timer is set anew only when it is later than it need be or has fired: a
            // stream moves its deadline with each chunk.
            if timer.deadline() > Instant::from(due) || timer.is_elapsed() {
                timer.as_mut().reset(due.into());
            }
            let (deaf, inner) = (&mut self.deaf, self.inner.as_mut().expect("only drop takes the session"));
            tokio::select! {
                biased;
                left = client_left(inner, deaf) => match left {
                    Some(left) => return left,
                    None => continue,
                },
                () = timer.as_mut() => {}
            }
            let mut flow = self.flow.lock();
            if flow.deadline.is_none_or(|(due, _)| due > std::time::Instant::now()) {
                continue;
            }
            match then {
                Due::GiveUp(Trouble::FirstByteTimeout) => return Err(Error::new(FIRST_BYTE)),
                Due::GiveUp(_) => return Err(Error::new(IDLE)),
                Due::Release => {
                    // This future may be dropped at any await, so it cannot write. An empty
                    // piece of the body, said not to be the last, makes the engine run the
                    // body filter, which can.
                    flow.nudged = true;
                    return Ok(Some(Bytes::new()));
                }
            }
        }
    }

    async fn client_left(&mut self) -> Option<Result<Option<Bytes>>> {
        client_left(self.inner.as_mut().expect("only drop takes the session"), &mut self.deaf).await
    }

    /// The next piece of an upload that passes through.
    async fn read_on(&mut self, most: u64) -> Result<Option<Bytes>> {
        let refused = |status| Error::new(ErrorType::HTTPStatus(status)).into_down();
        let piece = match self.real_mut().read_request_body().await {
            Ok(piece) => piece,
            Err(problem) => {
                return Err(match broken(&problem) {
                    NoBody::Gone => problem.into_down(),
                    NoBody::Refused(refusal) | NoBody::Unframed(refusal) => refused(refusal.reason.status()),
                });
            }
        };
        let mut flow = self.flow.lock();
        match &piece {
            Some(piece) => {
                flow.body.length += piece.len() as u64;
                flow.body.consumed = true;
                if flow.body.length > most {
                    return Err(refused(413));
                }
            }
            None => flow.body.ended(),
        }
        Ok(piece)
    }
}

#[async_trait]
impl CustomSession for Replay {
    fn is_body_done(&mut self) -> bool {
        if self.real().was_upgraded() {
            return self.real_mut().is_body_done();
        }
        let (done, streams) = {
            let flow = self.flow.lock();
            (flow.outgoing.is_done() && !flow.nudged, flow.body.streams.is_some())
        };
        done && (!streams || self.real_mut().is_body_done())
    }

    fn is_body_empty(&mut self) -> bool {
        let flow = self.flow.lock();
        // Once the head has been sent, the engine would send an empty body's end after it. For
        // an upgrade that end can come behind a quick 101, and would be taken for the end of
        // the tunnel (seen once in sixty on loopback).
        let is_tunnel = flow.upgrades && flow.head_sent;
        flow.body.bytes.is_empty() && flow.body.streams.is_none() && !is_tunnel
    }

    fn enable_retry_buffering(&mut self) {
        // Called between the head and the body of each attempt.
        self.flow.lock().head_sent = true;
    }

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.flow.lock().outgoing.first()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if self.real().was_upgraded() {
            return self.real_mut().read_body_or_idle(no_body_expected).await;
        }
        if !no_body_expected {
            let (piece, streams) = {
                let mut flow = self.flow.lock();
                (flow.outgoing.pieces.pop_front(), flow.body.streams)
            };
            if piece.is_some() {
                return Ok(piece);
            }
            if let Some(most) = streams {
                return self.read_on(most).await;
            }
        }
        self.watch().await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let now = std::time::Instant::now();
        let (out, receipt) = {
            let mut flow = self.flow.lock();
            let out = match tasks.is_empty() {
                true => flow.overdue(now)?,
                false => flow.receive(tasks, now)?,
            };
            let receipt = if flow.is_told() { flow.settle() } else { None };
            (out, receipt)
        };
        if out.is_empty() {
            return Ok(false);
        }
        recorded(&self.flow, receipt).await;
        self.real_mut().response_duplex_vec(out).await
    }

    fn req_header(&self) -> &RequestHeader {
        &self.head
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    // From here on everything is the client's session's own business.

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.real_mut().read_request_body().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.real_mut().drain_request_body().await
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.real_mut().write_response_header(header).await
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, _end: bool) -> Result<()> {
        self.real_mut().write_response_header_ref(header).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.real_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.real_mut().write_response_trailers(trailers).await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.real().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.real().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.real().get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.real().request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.real().response_written()
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.real_mut().shutdown().await;
    }

    async fn finish(&mut self) -> Result<()> {
        self.real_mut().finish_body().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.real().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.real().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.real().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.real_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.real().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.real().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.real().to_h1_raw()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        self.real().is_upgrade_req()
    }

    fn was_upgraded(&self) -> bool {
        self.real().was_upgraded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_done_with_its_last_piece() {
        let piece = Bytes::from_static;
        let mut none = Outgoing::new([piece(b"")]);
        assert!(none.is_done());
        assert_eq!(none.first(), None);
        let mut one = Outgoing::new([piece(b"a")]);
        assert!(one.is_done(), "the engine sends the first piece with the end");
        assert_eq!(one.first(), Some(piece(b"a")));
        assert!(one.is_done());
        let large = Bytes::from(vec![b'x'; SMALL + 1]);
        let mut two = Outgoing::new([piece(b"a"), piece(b""), piece(b"b"), large.clone(), piece(b"")]);
        assert!(!two.is_done());
        assert_eq!(two.first(), Some(piece(b"ab")), "small ones are one");
        assert!(!two.is_done());
        assert_eq!(two.pieces.pop_front(), Some(large));
        assert!(two.is_done());
    }
}
