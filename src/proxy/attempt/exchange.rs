//! The exchange of one attempt: the request goes to a backend and its response to the client, while
//! client, backend and deadlines are waited for at once.

use std::collections::VecDeque;
use std::future::{pending, ready};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use http::{Method, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::deadline::DeadlineAction;
use super::response_handler::ResponseHandler;
use super::upstream_error::UpstreamError;
use crate::proxy::client::presence::client_disconnect;
use crate::proxy::client::request_body::{BodyReadError, classify_read_error};
use crate::proxy::client::response_writer::wait_until_recorded;
use crate::proxy::context::RequestContext;
use crate::proxy::error_types::{FIRST_BYTE_TIMEOUT, IDLE_TIMEOUT};
use crate::proxy::timer::Timer;
use crate::proxy::upstream::connection::{UpstreamConnection, UpstreamEvent};

/// Most parts of a response that are taken together if they have arrived already.
const MAX_TASKS_TOGETHER: usize = 4;

/// What is read from the client at a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientInterest {
    /// More of its upload.
    Upload,
    /// Only whether it disconnects.
    Disconnect,
    /// Bytes of the tunnel.
    Tunnel,
    /// Nothing: there is no room for what it sends, or no backend to send it to.
    Nothing,
}

impl ClientInterest {
    async fn read(self, session: &mut ServerSession, has_pipelined: &mut bool) -> Result<Option<Bytes>> {
        match self {
            Self::Upload => session.read_request_body().await,
            Self::Disconnect => Err(client_disconnect(session, has_pipelined).await),
            Self::Tunnel => session.read_body_or_idle(false).await.map_err(Error::into_down),
            Self::Nothing => pending().await,
        }
    }
}

/// What happens next.
enum Event {
    Backend(UpstreamEvent),
    Client(Result<Option<Bytes>>),
    /// The backend can take the next piece of the body.
    RoomUpstream,
    Deadline,
}

/// How far the request has been sent.
struct SendProgress {
    /// Pieces of the body that are not sent yet.
    unsent: VecDeque<Bytes>,
    /// More of the body comes from the client, which may send at most this many bytes in all.
    streaming_limit: Option<u64>,
    /// The whole request has been sent, or no more of it can be.
    is_done: bool,
    /// Sending failed. The response is still read: a backend may answer before it closes.
    failure: Option<Box<Error>>,
}

impl SendProgress {
    fn has_unsent_body(&self) -> bool {
        !self.unsent.is_empty() || self.streaming_limit.is_some()
    }
}

/// One attempt on its connection.
pub(in crate::proxy) struct AttemptExchange<'e> {
    session: &'e mut ServerSession,
    context: &'e mut RequestContext,
    upstream: &'e mut UpstreamConnection,
    progress: SendProgress,
}

impl<'e> AttemptExchange<'e> {
    /// An exchange whose request head has been sent.
    pub(in crate::proxy) fn new(
        session: &'e mut ServerSession,
        context: &'e mut RequestContext,
        upstream: &'e mut UpstreamConnection,
    ) -> Self {
        let unsent = std::mem::take(&mut context.body.unsent);
        let streaming_limit = context.body.streaming_limit;
        let progress = SendProgress { unsent, streaming_limit, is_done: false, failure: None };
        Self { session, context, upstream, progress }
    }

    /// Sends the body and passes the response on, to its end.
    ///
    /// # Errors
    /// When it broke off, or another backend is to be tried.
    pub(in crate::proxy) async fn run(mut self, timer: &mut Timer) -> Result<()> {
        if !self.progress.has_unsent_body() {
            self.progress.is_done = true;
            self.context.on_request_sent(Instant::now());
        } else if !self.progress.unsent.is_empty() {
            self.send_next().await;
        }
        loop {
            let has_room = !self.progress.is_done && !self.upstream.is_sending();
            let can_send_held = has_room && !self.progress.unsent.is_empty();
            let interest = self.client_interest(has_room, can_send_held);
            // The time for the response begins when the request has been sent.
            let deadline = self.context.deadline.filter(|_| self.progress.is_done);
            // In this order: a response that has arrived counts before the client's disconnect, and
            // reading it makes room in the backend's buffers, which sending may wait for.
            let event = tokio::select! {
                biased;
                event = self.upstream.next() => Event::Backend(event),
                () = ready(()), if can_send_held => Event::RoomUpstream,
                read = interest.read(self.session, &mut self.context.has_pipelined) => Event::Client(read),
                () = timer.until(deadline.map(|deadline| deadline.at)) => Event::Deadline,
            };
            match event {
                Event::Backend(UpstreamEvent::Read(read)) => {
                    if self.on_response(read).await? {
                        return Ok(());
                    }
                }
                Event::Backend(UpstreamEvent::Sent(sent)) => self.on_sent(sent),
                Event::RoomUpstream => self.send_next().await,
                Event::Client(read) if interest == ClientInterest::Tunnel => match read? {
                    Some(bytes) => {
                        let sent = self.upstream.send_tunnel_bytes(&bytes).await;
                        self.progress.failure = sent.err().map(Error::into_up);
                    }
                    None => return Ok(()),
                },
                Event::Client(read) => {
                    self.on_upload(read)?;
                    if self.progress.streaming_limit.is_none() || !self.progress.unsent.is_empty() {
                        self.send_next().await;
                    }
                }
                Event::Deadline => {
                    if self.on_deadline(deadline.map(|deadline| deadline.action)).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn client_interest(&self, has_room: bool, can_send_held: bool) -> ClientInterest {
        let is_tunnel = self.session.was_upgraded();
        let is_upload = self.progress.streaming_limit.is_some();
        match () {
            () if is_tunnel && self.progress.failure.is_none() => ClientInterest::Tunnel,
            () if has_room && !can_send_held && is_upload => ClientInterest::Upload,
            () if is_upload || is_tunnel => ClientInterest::Nothing,
            () => ClientInterest::Disconnect,
        }
    }

    /// Sends the next piece of the body, or its end.
    async fn send_next(&mut self) {
        let piece = self.progress.unsent.pop_front().unwrap_or_default();
        let is_last = !self.progress.has_unsent_body();
        match self.upstream.send(piece, is_last).await {
            Ok(true) => self.on_sent(Ok(())),
            Ok(false) => {}
            Err(problem) => self.on_sent(Err(problem)),
        }
    }

    /// A piece of the body has been sent, or could not be.
    fn on_sent(&mut self, sent: Result<()>) {
        match sent {
            Ok(()) if self.progress.has_unsent_body() => return,
            Ok(()) => {}
            Err(problem) => self.progress.failure = Some(problem.into_up()),
        }
        self.progress.is_done = true;
        self.context.on_request_sent(Instant::now());
    }

    /// More of an upload has arrived, or its end, or it broke off.
    fn on_upload(&mut self, read: Result<Option<Bytes>>) -> Result<()> {
        let Some(limit) = self.progress.streaming_limit else { return read.map(|_| ()) };
        let refused = |status| Err(Error::new(ErrorType::HTTPStatus(status)).into_down());
        match read {
            Ok(Some(piece)) => {
                let body = &mut self.context.body;
                body.bytes_read += piece.len() as u64;
                body.is_consumed = true;
                if body.bytes_read > limit {
                    return refused(413);
                }
                if !piece.is_empty() {
                    self.progress.unsent.push_back(piece);
                }
                Ok(())
            }
            Ok(None) => {
                self.context.body.note_end();
                self.progress.streaming_limit = None;
                Ok(())
            }
            Err(problem) => match classify_read_error(&problem) {
                BodyReadError::ClientGone => Err(problem.into_down()),
                BodyReadError::Refused(refusal) | BodyReadError::Unframed(refusal) => {
                    refused(refusal.reason.status())
                }
            },
        }
    }

    /// Passes on what came of a response; returns whether the client has all that it gets.
    async fn on_response(&mut self, read: Result<HttpTask>) -> Result<bool> {
        let mut tasks = Vec::with_capacity(MAX_TASKS_TOGETHER);
        tasks.push(self.framed_task(read)?);
        // What has arrived already goes to the client in one write.
        while tasks.len() < MAX_TASKS_TOGETHER
            && !tasks.last().is_none_or(HttpTask::is_end)
            && let Some(event) = self.upstream.next().now_or_never()
        {
            match event {
                UpstreamEvent::Read(read) => tasks.push(self.framed_task(read)?),
                UpstreamEvent::Sent(sent) => self.on_sent(sent),
            }
        }
        let is_end = tasks.last().is_some_and(HttpTask::is_end);
        let out = ResponseHandler::new(self.context, Instant::now()).receive(tasks)?;
        let is_over = self.write_to_client(out).await?;
        if is_end && !is_over && !self.context.is_committed() {
            let error =
                Error::explain(ErrorType::ConnectionClosed, "the response ended without a final head");
            return Err(error.into_up());
        }
        Ok(is_over || is_end)
    }

    /// A part of a response, framed for the client.
    fn framed_task(&mut self, read: Result<HttpTask>) -> Result<HttpTask> {
        match read {
            Ok(HttpTask::Header(mut header, is_end)) => {
                self.set_framing(&mut header, is_end)?;
                Ok(HttpTask::Header(header, is_end))
            }
            Ok(task) => Ok(task),
            // Where sending failed first, that is the cause.
            Err(problem) => Ok(HttpTask::Failed(self.progress.failure.take().unwrap_or(problem).into_up())),
        }
    }

    /// A response without a length ends with its connection, or with its HTTP/2 stream. To the client
    /// it is chunked, so that its end can be told from a break.
    fn set_framing(&self, header: &mut ResponseHeader, is_end: bool) -> Result<()> {
        // RFC 9112, section 6.3: these have no body, whatever their fields say.
        let has_no_body = self.context.request.method == Method::HEAD
            || header.status.is_informational()
            || matches!(header.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let is_framed = header.headers.contains_key(header::CONTENT_LENGTH)
            || header.headers.contains_key(header::TRANSFER_ENCODING);
        let is_http2 = header.version == Version::HTTP_2;
        header.set_version(Version::HTTP_11);
        if !has_no_body && !is_framed && (is_http2 || !is_end) {
            header.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
        Ok(())
    }

    /// Writes to the client what is ready; returns whether that is all that it gets. The record is
    /// written before the last bytes go out.
    async fn write_to_client(&mut self, out: Vec<HttpTask>) -> Result<bool> {
        let receipt = if self.context.is_ready_to_settle() { self.context.settle() } else { None };
        if out.is_empty() {
            return Ok(false);
        }
        wait_until_recorded(self.context, receipt).await;
        self.session.response_duplex_vec(out).await.map_err(|mut problem| {
            // The engine leaves the source open where writing to the client failed.
            if *problem.esource() == ErrorSource::Unset {
                problem.as_down();
            }
            problem
        })
    }

    async fn on_deadline(&mut self, action: Option<DeadlineAction>) -> Result<bool> {
        match action {
            Some(DeadlineAction::GiveUp(UpstreamError::FirstByteTimeout)) => {
                Error::e_explain(FIRST_BYTE_TIMEOUT, "no response head in time")
            }
            Some(DeadlineAction::GiveUp(_)) => Error::e_explain(IDLE_TIMEOUT, "silence within a response"),
            Some(DeadlineAction::ReleaseHeld) => {
                let out = ResponseHandler::new(self.context, Instant::now()).release_held()?;
                self.write_to_client(out).await
            }
            None => Ok(false),
        }
    }
}
