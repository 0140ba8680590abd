//! One try: the request goes to a backend, its reply comes back and out, while client, backend and
//! time-outs are listened to at once.

use std::collections::VecDeque;
use std::future::{pending, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use http::{Method, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::{Error, ErrorSource, ErrorType, Result};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::relay::{FIRST_BYTE, IDLE};
use super::retry_state::Due;
use super::upstream_error::Trouble;
use crate::proxy::client::request_body::{NoBody, broken};
use crate::proxy::context::RequestContext;
use crate::proxy::timer::Timer;
use crate::proxy::upstream::connection::{Progress, Upstream};
use crate::record::writer::Receipt;

/// Most bytes that are handed to the engine at once: between two pieces the reply is looked for.
const PIECE_MAX: usize = 128 * 1024;
/// Pieces up to this are copied rather than sent each by itself.
const SMALL: usize = 16 * 1024;
/// Most parts of a reply that are taken together if they are there already.
const TOGETHER: usize = 4;
/// How long the last bytes of an answer wait for its record.
const RECORDING: Duration = Duration::from_millis(20);

/// The pieces of a body, in order. Small ones that an edit left behind are joined: each would be a
/// write, and there are servers of HTTP/2 that hang up on many small frames.
pub(in crate::proxy) fn pieces(held: impl IntoIterator<Item = Bytes>) -> VecDeque<Bytes> {
    let mut cut = VecDeque::new();
    let mut small: Vec<Bytes> = Vec::new();
    for mut piece in held {
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
    cut
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

/// Waits for the record of an answer whose last bytes are about to go out, for a moment: what a
/// client has got whole is written down even if this process is killed.
pub(in crate::proxy) async fn recorded(flow: &RequestContext, receipt: Option<Receipt>) {
    let Some(receipt) = receipt else { return };
    // Whoever is at its end at the same moment shares the way to the disk.
    yield_now().await;
    flow.gateway().write_down();
    if timeout(RECORDING, receipt).await.is_err() {
        flow.gateway().late();
    }
}

/// Waits for the client to leave.
pub(in crate::proxy) async fn client_left(session: &mut ServerSession, deaf: &mut bool) -> Box<Error> {
    while !*deaf {
        match session.read_body_or_idle(true).await {
            // The engine's word for data after the end of a body: a stray line end, or the next
            // request already. A byte of it is gone with the look, so this answer is the last on
            // this connection, and the client sends again what was not answered.
            Err(problem) if *problem.etype() == ErrorType::ConnectError => {
                *deaf = true;
                session.set_keepalive(None);
            }
            Err(problem) => return problem.into_down(),
            Ok(_) => return Error::explain(ErrorType::ConnectionClosed, "the client has left").into_down(),
        }
    }
    pending().await
}

/// What the client is listened to for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ear {
    /// More of its upload.
    Upload,
    /// Whether it leaves.
    Leaving,
    /// The other protocol.
    Tunnel,
    /// Nothing: there is no room for what it sends, or no way on.
    Closed,
}

impl Ear {
    async fn listen(self, session: &mut ServerSession, deaf: &mut bool) -> Result<Option<Bytes>> {
        match self {
            Self::Upload => session.read_request_body().await,
            Self::Leaving => Err(client_left(session, deaf).await),
            Self::Tunnel => session.read_body_or_idle(false).await.map_err(Error::into_down),
            Self::Closed => pending().await,
        }
    }
}

enum Event {
    Backend(Progress),
    Client(Result<Option<Bytes>>),
    Room,
    Due,
}

/// A request under way to a backend.
pub(in crate::proxy) struct Exchange<'e> {
    session: &'e mut ServerSession,
    flow: &'e mut RequestContext,
    upstream: &'e mut Upstream,
    /// What is held of its body and not sent yet.
    pieces: VecDeque<Bytes>,
    /// The rest of its body is still to come from the client: the most bytes there may be.
    upload: Option<u64>,
}

impl<'e> Exchange<'e> {
    pub(in crate::proxy) fn new(
        session: &'e mut ServerSession,
        flow: &'e mut RequestContext,
        upstream: &'e mut Upstream,
    ) -> Self {
        let (pieces, upload) = (std::mem::take(&mut flow.pieces), flow.body.streams);
        Self { session, flow, upstream, pieces, upload }
    }

    /// Sends the body and passes the reply on, to the end of the answer.
    ///
    /// # Errors
    /// When it broke off, or somebody else is to be asked.
    pub(in crate::proxy) async fn run(mut self, timer: &mut Timer) -> Result<()> {
        // The way to the backend broke off: what it said is passed on all the same.
        let mut cut = None;
        let mut is_sent = self.pieces.is_empty() && self.upload.is_none();
        if is_sent {
            self.flow.sent(Instant::now());
        } else if !self.pieces.is_empty() {
            self.send_next(&mut is_sent, &mut cut).await;
        }
        loop {
            let has_room = !is_sent && !self.upstream.is_sending();
            let is_held = has_room && !self.pieces.is_empty();
            let ear = match () {
                () if self.session.was_upgraded() && cut.is_none() => Ear::Tunnel,
                () if has_room && !is_held && self.upload.is_some() => Ear::Upload,
                () if self.upload.is_some() || self.session.was_upgraded() => Ear::Closed,
                () => Ear::Leaving,
            };
            let due = self.flow.deadline.filter(|_| is_sent);
            let event = tokio::select! {
                biased;
                progress = self.upstream.next() => Event::Backend(progress),
                () = ready(()), if is_held => Event::Room,
                heard = ear.listen(self.session, &mut self.flow.deaf) => Event::Client(heard),
                () = timer.until(due.map(|(due, _)| due)) => Event::Due,
            };
            match event {
                Event::Backend(Progress::Read(read)) => {
                    if self.take(read, &mut is_sent, &mut cut).await? {
                        return Ok(());
                    }
                }
                Event::Backend(Progress::Sent(sent)) => self.sent(sent, &mut is_sent, &mut cut),
                Event::Room => self.send_next(&mut is_sent, &mut cut).await,
                Event::Client(heard) if ear == Ear::Tunnel => match heard? {
                    Some(bytes) => cut = self.upstream.send_through(&bytes).await.err().map(Error::into_up),
                    None => return Ok(()),
                },
                Event::Client(heard) => {
                    self.uploaded(heard)?;
                    if self.upload.is_none() || !self.pieces.is_empty() {
                        self.send_next(&mut is_sent, &mut cut).await;
                    }
                }
                Event::Due => {
                    if self.overdue(due.map(|(_, then)| then)).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Sends the next piece of the body, or its end.
    async fn send_next(&mut self, is_sent: &mut bool, cut: &mut Option<Box<Error>>) {
        let piece = self.pieces.pop_front().unwrap_or_default();
        let last = self.pieces.is_empty() && self.upload.is_none();
        match self.upstream.send(piece, last).await {
            Ok(true) => self.sent(Ok(()), is_sent, cut),
            Ok(false) => {}
            Err(problem) => self.sent(Err(problem), is_sent, cut),
        }
    }

    /// A piece of the body has been sent, or could not be.
    fn sent(&mut self, sent: Result<()>, is_sent: &mut bool, cut: &mut Option<Box<Error>>) {
        match sent {
            Ok(()) if self.pieces.is_empty() && self.upload.is_none() => {
                *is_sent = true;
                self.flow.sent(Instant::now());
            }
            Ok(()) => {}
            Err(problem) => {
                *is_sent = true;
                *cut = Some(problem.into_up());
                self.flow.sent(Instant::now());
            }
        }
    }

    /// Takes in what came of an upload.
    fn uploaded(&mut self, heard: Result<Option<Bytes>>) -> Result<()> {
        let Some(most) = self.upload else { return heard.map(|_| ()) };
        let refused = |status| Err(Error::new(ErrorType::HTTPStatus(status)).into_down());
        match heard {
            Ok(Some(piece)) => {
                let body = &mut self.flow.body;
                body.length += piece.len() as u64;
                body.consumed = true;
                if body.length > most {
                    return refused(413);
                }
                if !piece.is_empty() {
                    self.pieces.push_back(piece);
                }
                Ok(())
            }
            Ok(None) => {
                self.flow.body.ended();
                self.upload = None;
                Ok(())
            }
            Err(problem) => match broken(&problem) {
                NoBody::Gone => Err(problem.into_down()),
                NoBody::Refused(refusal) | NoBody::Unframed(refusal) => refused(refusal.reason.status()),
            },
        }
    }

    /// Passes on what came of a reply; says whether the client has all it gets.
    async fn take(
        &mut self,
        read: Result<HttpTask>,
        is_sent: &mut bool,
        cut: &mut Option<Box<Error>>,
    ) -> Result<bool> {
        let mut tasks = Vec::with_capacity(TOGETHER);
        tasks.push(self.part(read, cut)?);
        while tasks.len() < TOGETHER
            && !tasks.last().is_none_or(HttpTask::is_end)
            && let Some(progress) = self.upstream.next().now_or_never()
        {
            match progress {
                Progress::Read(read) => tasks.push(self.part(read, cut)?),
                Progress::Sent(sent) => self.sent(sent, is_sent, cut),
            }
        }
        let ends = tasks.last().is_some_and(HttpTask::is_end);
        let out = self.flow.receive(tasks, Instant::now())?;
        let is_over = self.pass(out).await?;
        if ends && !is_over && !self.flow.is_committed() {
            return Err(Error::explain(ErrorType::ConnectionClosed, "a reply without an answer").into_up());
        }
        Ok(is_over || ends)
    }

    /// A part of a reply, framed for the client.
    fn part(&self, read: Result<HttpTask>, cut: &mut Option<Box<Error>>) -> Result<HttpTask> {
        match read {
            Ok(HttpTask::Header(mut header, ends)) => {
                self.frame(&mut header, ends)?;
                Ok(HttpTask::Header(header, ends))
            }
            Ok(task) => Ok(task),
            Err(problem) => Ok(HttpTask::Failed(cut.take().unwrap_or(problem).into_up())),
        }
    }

    /// A reply without a length ends with its connection, or with its stream. To the client it is
    /// chunked.
    fn frame(&self, header: &mut ResponseHeader, ends: bool) -> Result<()> {
        let is_bare = self.flow.method == Method::HEAD
            || header.status.is_informational()
            || matches!(header.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let is_framed = header.headers.contains_key(header::CONTENT_LENGTH)
            || header.headers.contains_key(header::TRANSFER_ENCODING);
        let is_http2 = header.version == Version::HTTP_2;
        header.set_version(Version::HTTP_11);
        if !is_bare && !is_framed && (is_http2 || !ends) {
            header.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
        Ok(())
    }

    /// Gives the client what is ready; says whether that is all it gets.
    async fn pass(&mut self, out: Vec<HttpTask>) -> Result<bool> {
        let receipt = if self.flow.is_told() { self.flow.settle() } else { None };
        if out.is_empty() {
            return Ok(false);
        }
        recorded(self.flow, receipt).await;
        self.session.response_duplex_vec(out).await.map_err(|mut problem| {
            if *problem.esource() == ErrorSource::Unset {
                problem.as_down();
            }
            problem
        })
    }

    /// It has been waited long enough.
    async fn overdue(&mut self, then: Option<Due>) -> Result<bool> {
        match then {
            Some(Due::GiveUp(Trouble::FirstByteTimeout)) => Error::e_explain(FIRST_BYTE, "no reply"),
            Some(Due::GiveUp(_)) => Error::e_explain(IDLE, "silence"),
            Some(Due::Release) => {
                let out = self.flow.overdue(Instant::now())?;
                self.pass(out).await
            }
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_one_and_large_ones_are_cut() {
        let piece = Bytes::from_static;
        assert!(pieces([piece(b"")]).is_empty());
        assert_eq!(pieces([piece(b"a")]), [piece(b"a")]);
        let large = Bytes::from(vec![b'x'; SMALL + 1]);
        let cut = pieces([piece(b"a"), piece(b""), piece(b"b"), large.clone(), piece(b"")]);
        assert_eq!(cut, [piece(b"ab"), large]);
        let cut = pieces([Bytes::from(vec![b'x'; 2 * PIECE_MAX + 1])]);
        assert_eq!(cut.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE_MAX, PIECE_MAX, 1]);
    }
}
