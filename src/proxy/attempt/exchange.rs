//! The exchange of one attempt: sends the request to the backend and the response to the client, and
//! waits for the client, the backend and the deadline at the same time.

use std::collections::VecDeque;
use std::future::{pending, ready};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use http::{Method, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::{Error, ErrorType, Result};

use super::deadline::{AttemptDeadline, DeadlineAction};
use super::response_handler::ResponseHandler;
use super::response_state::ResponseState;
use super::silence::Silence;
use super::upstream_error::UpstreamError;
use crate::proxy::client::presence::wait_for_disconnect;
use crate::proxy::client::request_body::{BodyReadError, classify_body_read_error};
use crate::proxy::client::response_writer::{body_length, flush_and_wait_for_record, write_to_client};
use crate::proxy::context::RequestContext;
use crate::proxy::timer::Timer;
use crate::proxy::upstream::connection::{UpstreamConnection, UpstreamEvent};

/// Maximum number of parts of a response that are written to the client together, if they have already
/// arrived.
const MAX_COALESCED_TASKS: usize = 4;
/// No further part is added to this many bytes, because they wait in memory while the client does not read.
const MAX_COALESCED_BYTES: usize = 8 * 1024;

/// What the exchange currently reads from the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientReadMode {
    /// The next piece of its upload.
    Upload,
    /// Nothing, but its disconnect is noticed.
    Disconnect,
    /// Nothing: the backend cannot take more yet, or no more at all.
    Nothing,
}

impl ClientReadMode {
    async fn read_from_client(
        self,
        session: &mut ServerSession,
        has_pipelined_bytes: &mut bool,
    ) -> Result<Option<Bytes>> {
        match self {
            Self::Upload => session.read_request_body().await,
            Self::Disconnect => Err(wait_for_disconnect(session, has_pipelined_bytes).await),
            Self::Nothing => pending().await,
        }
    }
}

/// What the exchange reacts to.
enum ExchangeEvent {
    Backend(UpstreamEvent),
    /// What was read from the client: bytes, `None` for their end, or an error.
    Client(Result<Option<Bytes>>),
    /// The backend can take the next piece of the body.
    CanSend,
    Deadline,
}

/// How much of the request has been sent.
struct SendProgress {
    /// Pieces of the body in memory that are not yet sent.
    unsent_pieces: VecDeque<Bytes>,
    /// Maximum length of the whole body while the client still uploads it; `None` once all of it has been
    /// read.
    max_streamed_upload_bytes: Option<u64>,
    /// The request has been sent completely, or no more of it can be sent.
    has_sending_ended: bool,
    /// When the piece that is being sent has to be sent.
    piece_deadline: Option<Instant>,
    /// When the next piece of the upload has to arrive; set while one is awaited. Pingora has such a timeout for
    /// HTTP/1.1 only.
    upload_deadline: Option<Instant>,
    /// Why sending failed. The response is still read, because a backend may respond and then close the
    /// connection without reading the rest of the request.
    send_error: Option<Box<Error>>,
}

impl SendProgress {
    fn has_unsent_body(&self) -> bool {
        !self.unsent_pieces.is_empty() || self.max_streamed_upload_bytes.is_some()
    }
}

/// The exchange of request and response on one upstream connection.
pub(in crate::proxy) struct AttemptExchange<'e> {
    pub(super) session: &'e mut ServerSession,
    pub(super) context: &'e mut RequestContext,
    pub(super) upstream: &'e mut UpstreamConnection,
    progress: SendProgress,
    silence: Silence,
}

impl<'e> AttemptExchange<'e> {
    /// An exchange on a connection on which the request head has been sent.
    pub(in crate::proxy) fn new(
        session: &'e mut ServerSession,
        context: &'e mut RequestContext,
        upstream: &'e mut UpstreamConnection,
    ) -> Self {
        let unsent_pieces = std::mem::take(&mut context.body.unsent_pieces);
        let max_streamed_upload_bytes = context.body.max_streamed_upload_bytes;
        let progress = SendProgress {
            unsent_pieces,
            max_streamed_upload_bytes,
            has_sending_ended: false,
            piece_deadline: None,
            upload_deadline: None,
            send_error: None,
        };
        Self { session, context, upstream, progress, silence: Silence::default() }
    }

    /// Sends the body and relays the response until the client has all that it gets.
    ///
    /// # Errors
    /// If one side failed, a deadline passed, or the response is dropped in favour of another attempt.
    pub(in crate::proxy) async fn run(mut self, timer: &mut Timer) -> Result<()> {
        if !self.progress.has_unsent_body() {
            self.on_request_sent();
        } else if !self.progress.unsent_pieces.is_empty() {
            self.send_next_piece().await;
        }
        loop {
            let can_send = !self.progress.has_sending_ended && !self.upstream.has_pending_body_write();
            let can_send_piece = can_send && !self.progress.unsent_pieces.is_empty();
            let read_mode = self.client_read_mode(can_send, can_send_piece);
            if read_mode == ClientReadMode::Upload && self.progress.upload_deadline.is_none() {
                let limit = self.context.gateway().timeouts.request_body;
                self.progress.upload_deadline = Some(Instant::now() + limit);
            }
            let deadline = self.next_deadline();
            // The response comes first for two reasons. What has arrived of it is handled before a
            // disconnect of the client. And the next branch is always ready while it is enabled, but a
            // backend may stop reading the request until its response is read.
            let event = tokio::select! {
                biased;
                event = self.upstream.next_event() => ExchangeEvent::Backend(event),
                () = ready(()), if can_send_piece => ExchangeEvent::CanSend,
                read = read_mode.read_from_client(self.session, &mut self.context.has_pipelined_bytes) => ExchangeEvent::Client(read),
                () = timer.wait_until(deadline.map(|deadline| deadline.at)) => ExchangeEvent::Deadline,
            };
            match event {
                ExchangeEvent::Backend(UpstreamEvent::Read(read)) => {
                    if self.on_response_read(read).await? {
                        return Ok(());
                    }
                    if self.session.was_upgraded() {
                        // Boxed, so that the future of an ordinary request does not have room for it.
                        return Box::pin(self.run_tunnel(timer)).await;
                    }
                }
                ExchangeEvent::Backend(UpstreamEvent::BodyPieceSent(sent)) => self.on_piece_sent(sent),
                ExchangeEvent::CanSend => self.send_next_piece().await,
                ExchangeEvent::Client(read) => {
                    self.on_client_read(read)?;
                    // A piece, or the end of the body; nothing after an empty read.
                    if self.progress.max_streamed_upload_bytes.is_none()
                        || !self.progress.unsent_pieces.is_empty()
                    {
                        self.send_next_piece().await;
                    }
                }
                ExchangeEvent::Deadline => {
                    if let Some(AttemptDeadline { action, .. }) = deadline {
                        let tasks = self.context.on_deadline_passed(action, &mut self.silence)?;
                        if self.record_and_write_to_client(tasks).await? {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// The deadline that is next. None applies to the response until the request has been sent, because an upload
    /// takes as long as its client takes, unless the response is held.
    fn next_deadline(&self) -> Option<AttemptDeadline> {
        let is_held = matches!(
            self.context.response_state,
            ResponseState::HeldResponse(_) | ResponseState::HeldStream(_)
        );
        let of_response =
            self.context.attempt_deadline.filter(|_| self.progress.has_sending_ended || is_held);
        let action = DeadlineAction::GiveUp(UpstreamError::IdleTimeout);
        let of_piece = self.progress.piece_deadline.map(|at| AttemptDeadline { at, action });
        let action = DeadlineAction::RefuseUpload;
        let of_upload = self.progress.upload_deadline.map(|at| AttemptDeadline { at, action });
        let all = of_response.into_iter().chain(of_piece).chain(of_upload).chain(self.silence.deadline());
        all.min_by_key(|deadline| deadline.at)
    }

    fn client_read_mode(&self, can_send: bool, can_send_piece: bool) -> ClientReadMode {
        let is_upload = self.progress.max_streamed_upload_bytes.is_some();
        match () {
            () if can_send && !can_send_piece && is_upload => ClientReadMode::Upload,
            // Not even a disconnect: to notice it a byte has to be read, which would belong to the upload.
            () if is_upload => ClientReadMode::Nothing,
            () => ClientReadMode::Disconnect,
        }
    }

    /// Sends the next piece of the body, or the end of the body if no piece is left.
    async fn send_next_piece(&mut self) {
        let piece = self.progress.unsent_pieces.pop_front().unwrap_or_default();
        let is_last = !self.progress.has_unsent_body();
        match self.upstream.start_sending_body_piece(piece, is_last).await {
            Ok(true) => self.on_piece_sent(Ok(())),
            // `UpstreamEvent::BodyPieceSent` follows.
            Ok(false) => {
                let limit = self.context.gateway().timeouts.response_idle;
                self.progress.piece_deadline = Some(Instant::now() + limit);
            }
            Err(error) => self.on_piece_sent(Err(error)),
        }
    }

    /// Records that a piece of the body has been sent, or could not be sent.
    fn on_piece_sent(&mut self, sent: Result<()>) {
        self.progress.piece_deadline = None;
        match sent {
            Ok(()) if self.progress.has_unsent_body() => return,
            Ok(()) => {}
            Err(error) => self.progress.send_error = Some(error.into_up()),
        }
        // After a failure as well: the deadline limits how long a response is then waited for.
        self.on_request_sent();
    }

    /// Records that the request has been sent, or that no more of it can be.
    fn on_request_sent(&mut self) {
        let now = Instant::now();
        self.progress.has_sending_ended = true;
        self.context.on_request_sent(now);
        if matches!(self.context.response_state, ResponseState::Awaited) {
            self.silence.begin(now);
        }
    }

    /// Handles what was read from the client: a piece of its upload, the end of it, or an error. Without
    /// an upload it can only be the client's disconnect.
    ///
    /// # Errors
    /// If the client disconnected, or its upload is refused ([`is_upload_error`]).
    ///
    /// [`is_upload_error`]: super::upstream_error::is_upload_error
    fn on_client_read(&mut self, read: Result<Option<Bytes>>) -> Result<()> {
        self.progress.upload_deadline = None;
        let Some(limit) = self.progress.max_streamed_upload_bytes else { return read.map(|_| ()) };
        let refused = |status| Err(Error::new(ErrorType::HTTPStatus(status)).into_down());
        match read {
            Ok(Some(piece)) => {
                let body = &mut self.context.body;
                body.bytes_read += piece.len() as u64;
                body.is_no_longer_replayable = true;
                if body.bytes_read > limit {
                    return refused(413);
                }
                if !piece.is_empty() {
                    self.progress.unsent_pieces.push_back(piece);
                }
                Ok(())
            }
            Ok(None) => {
                self.context.body.note_upload_end();
                self.progress.max_streamed_upload_bytes = None;
                Ok(())
            }
            Err(error) => match classify_body_read_error(&error) {
                BodyReadError::ClientGone => Err(error.into_down()),
                BodyReadError::Refused(refusal) | BodyReadError::RefusedWithClose(refusal) => {
                    refused(refusal.reason.status())
                }
            },
        }
    }

    /// Handles what was read of the response; returns whether the client has all that it gets.
    async fn on_response_read(&mut self, read: Result<HttpTask>) -> Result<bool> {
        self.silence.end();
        let mut tasks = Vec::with_capacity(MAX_COALESCED_TASKS);
        tasks.push(self.frame_task(read)?);
        // Parts that have already arrived go to the client in one write.
        while tasks.len() < MAX_COALESCED_TASKS
            && tasks.iter().map(body_length).sum::<usize>() < MAX_COALESCED_BYTES
            && !tasks.last().is_none_or(|task| task.is_end() || opens_tunnel(task))
            && let Some(event) = self.upstream.next_event().now_or_never()
        {
            match event {
                UpstreamEvent::Read(read) => tasks.push(self.frame_task(read)?),
                UpstreamEvent::BodyPieceSent(sent) => self.on_piece_sent(sent),
            }
        }
        let is_end = tasks.last().is_some_and(HttpTask::is_end);
        let client_tasks = self.handle(tasks)?;
        let is_over = self.record_and_write_to_client(client_tasks).await?;
        // While the client was slow to take this, the backend could not send more.
        if self.context.attempt_deadline.is_some()
            && matches!(self.context.response_state, ResponseState::Relayed(_))
        {
            self.context.restart_idle_deadline(Instant::now());
        }
        if is_end && !is_over && !self.context.is_response_committed() {
            let error = Error::explain(ErrorType::ConnectionClosed, "the response ended before a final head");
            return Err(error.into_up());
        }
        Ok(is_over || is_end)
    }

    /// Decides what the client gets of these parts of the response.
    pub(super) fn handle(&mut self, tasks: Vec<HttpTask>) -> Result<Vec<HttpTask>> {
        ResponseHandler::new(self.context, Instant::now()).handle_tasks(tasks)
    }

    /// A part of the response, with the framing for the client. A failure becomes a task as well, because
    /// its meaning depends on the state of the response.
    fn frame_task(&mut self, read: Result<HttpTask>) -> Result<HttpTask> {
        match read {
            Ok(HttpTask::Header(mut header, is_end)) => {
                self.set_client_framing(&mut header, is_end)?;
                Ok(HttpTask::Header(header, is_end))
            }
            Ok(task) => Ok(task),
            // If sending failed before, that is the cause.
            Err(error) => Ok(HttpTask::Failed(self.progress.send_error.take().unwrap_or(error).into_up())),
        }
    }

    /// Makes a response without a length chunked for the client. From the backend it ends with its
    /// connection or HTTP/2 stream; the client has to tell that end from an incomplete response.
    fn set_client_framing(&self, header: &mut ResponseHeader, is_end: bool) -> Result<()> {
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
        merge_equal_lengths(header)
    }

    /// Writes these parts of the response to the client; returns whether it has all that it gets. The record
    /// is written before the last of them.
    pub(super) async fn record_and_write_to_client(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let receipt =
            if self.context.is_record_ready_to_submit() { self.context.submit_record() } else { None };
        if tasks.is_empty() {
            return Ok(false);
        }
        flush_and_wait_for_record(self.context, receipt).await;
        let limit = self.context.gateway().timeouts.response_idle;
        write_to_client(self.session, tasks, limit, || self.context.hold_unread_response()).await
    }
}

/// Whether what follows is the first bytes of a tunnel, which are not part of a response.
fn opens_tunnel(task: &HttpTask) -> bool {
    matches!(task, HttpTask::Header(head, _) if head.status == StatusCode::SWITCHING_PROTOCOLS)
}

/// Makes one `Content-Length` of several equal values, which `framing/response.rs` allows from backends:
/// clients need not.
fn merge_equal_lengths(header: &mut ResponseHeader) -> Result<()> {
    let mut values = header.headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(()) };
    if values.next().is_none() && !first.as_bytes().contains(&b',') {
        return Ok(());
    }
    let value = first.to_str().ok().and_then(|value| value.split(',').next()).unwrap_or("").trim().to_owned();
    header.insert_header(header::CONTENT_LENGTH, value)
}
