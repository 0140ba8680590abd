//! The exchange of a turn on an upstream socket: its `response.create` goes there, the events of its response come
//! back. What they mean is decided where that is decided for HTTP (`attempt/response_handler.rs`): an event is a part
//! of a stream, and an error event with a status is an error response.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::{Error, ErrorType, Result};

use super::error_event::response_event;
use super::shared::HeldMessage;
use super::turn::Turn;
use super::upstream_socket::UpstreamSocket;
use crate::azure::request::socket_message::mentions_lane;
use crate::azure::response::socket_event::{error_event_status, is_socket_limit, made_response_id};
use crate::proxy::attempt::deadline::{AttemptDeadline, DeadlineAction};
use crate::proxy::attempt::response_handler::ResponseHandler;
use crate::proxy::attempt::response_state::ResponseState;
use crate::proxy::attempt::upstream_error::UpstreamError;
use crate::proxy::client::response_writer::flush_and_wait_for_record;
use crate::proxy::error_types::CLIENT_GONE;
use crate::proxy::upstream::connection::{UpstreamConnection, UpstreamEvent};
use crate::proxy::websocket::frames::{Message, ReadError};

/// The most events that are written to the client together, if they have already arrived.
const MAX_COALESCED_EVENTS: usize = 16;
/// No further event is added to this many bytes.
const MAX_COALESCED_BYTES: usize = 16 * 1024;

/// What the exchange reacts to.
enum TurnEvent {
    Backend(std::result::Result<Message, ReadError>),
    /// A message of the client about the turn; `None` if the client is lost.
    Client(Option<HeldMessage>),
    /// Everything that was queued has been sent, or sending failed.
    Sent(io::Result<()>),
    Deadline,
}

/// What is being sent to the backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    Nothing,
    /// The `response.create`. The deadline for the first event starts once it has been sent.
    Create,
    /// Other messages.
    More,
}

impl Turn {
    /// Sends the turn's message on this socket and relays the events that follow, until the response has ended.
    ///
    /// # Errors
    /// If the socket or the client is lost, a deadline passed, or the response is dropped in favour of another attempt.
    pub(super) async fn exchange(&mut self, socket: &mut UpstreamSocket) -> Result<()> {
        let pieces = std::mem::take(&mut self.context.body.unsent_pieces);
        let create = match <[Bytes; 1]>::try_from(Vec::from(pieces)) {
            Ok([create]) => create,
            Err(pieces) => Bytes::from(pieces.concat()),
        };
        self.response_id.store(None);
        let has_lane = self.message.lane.is_some();
        socket.push(&create, has_lane);
        self.passed_messages.iter().for_each(|message| socket.push(&message.bytes, has_lane));
        let mut sending = self.begin_sending(socket, Sending::Create);
        loop {
            if let Some(error) = socket.end.take() {
                return Err(error);
            }
            let deadline = self.next_deadline();
            // Events come first: a backend may respond before it has read everything, and then stop reading.
            let event = tokio::select! {
                biased;
                message = socket.reader.next() => TurnEvent::Backend(message),
                sent = socket.writer.flush(), if sending != Sending::Nothing => TurnEvent::Sent(sent),
                message = self.client_messages.recv() => TurnEvent::Client(message),
                () = self.timer.wait_until(deadline.map(|deadline| deadline.at)) => TurnEvent::Deadline,
            };
            match event {
                TurnEvent::Client(None) => return Err(Error::new(CLIENT_GONE).into_down()),
                TurnEvent::Client(Some(message)) => {
                    socket.push(&message.bytes, has_lane);
                    sending = self.begin_sending(socket, sending);
                    if !self.context.is_response_committed() {
                        self.passed_messages.push(message);
                    }
                }
                TurnEvent::Sent(Ok(())) => {
                    if sending == Sending::Create {
                        self.begin_waiting(Instant::now());
                    }
                    sending = Sending::Nothing;
                    (socket.has_unsent, self.send_deadline) = (false, None);
                }
                TurnEvent::Sent(Err(error)) => return Err(socket_failed(error)),
                TurnEvent::Deadline => self.on_deadline(deadline).await?,
                TurnEvent::Backend(message) => {
                    self.silence.end();
                    let (events, has_ping) = take_events(socket, message)?;
                    if has_ping {
                        sending = self.begin_sending(socket, sending);
                    }
                    if !socket.refuses_lanes
                        && let [first] = events.as_slice()
                        && self.is_refusal_of_lane(first)
                    {
                        self.note_lanes_refused(socket);
                        socket.push(&create, has_lane);
                        sending = self.begin_sending(socket, Sending::Create);
                    } else if !events.is_empty() && self.relay_events(socket, events).await? {
                        return Ok(());
                    }
                    if self.context.is_response_committed() {
                        self.passed_messages = Vec::new();
                    }
                }
            }
        }
    }

    /// Starts to send what was queued, which the backend has to read within `timeouts.idle`.
    fn begin_sending(&mut self, socket: &mut UpstreamSocket, sending: Sending) -> Sending {
        socket.has_unsent = true;
        let limit = self.context.gateway().timeouts.response_idle;
        self.send_deadline.get_or_insert_with(|| Instant::now() + limit);
        if sending == Sending::Nothing { Sending::More } else { sending }
    }

    /// Records that the backend has the request, and starts the deadline for its response.
    pub(super) fn begin_waiting(&mut self, now: Instant) {
        self.context.attempt_deadline = None;
        self.context.on_request_sent(now);
        self.silence.begin(now);
    }

    /// Relays events, or holds them; returns whether the response has ended.
    ///
    /// # Errors
    /// As [`Turn::exchange`].
    async fn relay_events(&mut self, socket: &mut UpstreamSocket, events: Vec<Bytes>) -> Result<bool> {
        let mut tasks = Vec::with_capacity(events.len() + 1);
        let mut is_awaited = matches!(self.context.response_state, ResponseState::Awaited);
        for event in events {
            self.note_response_id(socket, &event);
            if is_awaited && is_socket_limit(&event) {
                return Err(socket_lost("the backend's WebSocket is at its limit of time"));
            }
            // Once the stream has begun, an error event is part of it.
            let error_status = if is_awaited { error_event_status(&event) } else { None };
            match error_status {
                Some(status) => {
                    tasks.push(HttpTask::Header(Box::new(error_head(socket, status, &event)?), false));
                    tasks.push(HttpTask::Body(Some(event), true));
                    break;
                }
                None => {
                    if is_awaited {
                        tasks.push(HttpTask::Header(Box::new(stream_head(socket)?), false));
                    }
                    let event = socket.event_for_client(event, self.message.lane.as_deref());
                    tasks.push(HttpTask::UpgradedBody(Some(event), false));
                }
            }
            is_awaited = false;
        }
        let output = ResponseHandler::new(&mut self.context, Instant::now()).handle_tasks(tasks)?;
        let is_over = self.write(output).await?;
        // While the client was slow to take this, the backend could not send more.
        if matches!(self.context.response_state, ResponseState::Relayed(_)) {
            self.context.restart_idle_deadline(Instant::now());
        }
        Ok(is_over)
    }

    /// Relays an HTTP response to a handshake; `first` is the part that has been read.
    ///
    /// # Errors
    /// If it is dropped in favour of another attempt, or failed.
    pub(super) async fn relay_http_response(
        &mut self,
        first: HttpTask,
        upstream: &mut UpstreamConnection,
    ) -> Result<()> {
        let mut task = first;
        loop {
            self.silence.end();
            let is_end = task.is_end();
            let output = ResponseHandler::new(&mut self.context, Instant::now()).handle_tasks(vec![task])?;
            if self.write(output).await? || is_end {
                return Ok(());
            }
            let next = self.wait_for_backend(upstream.next_event()).await?;
            task = match next {
                UpstreamEvent::Read(read) => read.unwrap_or_else(|error| HttpTask::Failed(error.into_up())),
                UpstreamEvent::BodyPieceSent(_) => HttpTask::Body(None, false),
            };
        }
    }

    /// Waits for a backend until the deadline of the attempt.
    ///
    /// # Errors
    /// If a deadline passes or the client is lost.
    pub(super) async fn wait_for_backend<T>(&mut self, answer: impl Future<Output = T>) -> Result<T> {
        let mut answer = std::pin::pin!(answer);
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer),
                () = self.shared.client.lost() => return Err(Error::new(CLIENT_GONE).into_down()),
                () = self.timer.wait_until(deadline.map(|deadline| deadline.at)) => {}
            }
            self.on_deadline(deadline).await?;
        }
    }

    /// Writes these parts of a response to the client as messages; returns whether the response has ended. The record
    /// is written before the last message.
    ///
    /// # Errors
    /// [`CLIENT_GONE`]; the backend's error if the response failed.
    pub(super) async fn write(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut messages = Vec::with_capacity(tasks.len());
        let mut error_response: Option<(Box<ResponseHeader>, Vec<Bytes>)> = None;
        for task in tasks {
            match task {
                HttpTask::Header(header, _) if header.status.as_u16() >= 400 => {
                    error_response = Some((header, Vec::new()));
                }
                HttpTask::Body(Some(data), _) => {
                    if let Some((_, pieces)) = &mut error_response {
                        pieces.push(data);
                    }
                }
                HttpTask::UpgradedBody(Some(event), _) => messages.push(event),
                HttpTask::Failed(error) => return Err(error),
                _ => {}
            }
        }
        let is_error = error_response.is_some();
        if let Some((header, pieces)) = error_response {
            let body = Bytes::from(pieces.concat());
            messages.push(response_event(&header, &body, self.message.lane.as_deref()));
        }
        let receipt =
            if self.context.is_record_ready_to_submit() { self.context.submit_record() } else { None };
        if messages.is_empty() {
            return Ok(false);
        }
        flush_and_wait_for_record(&self.context, receipt).await;
        self.send_to_client(&messages).await?;
        Ok(is_error || self.context.ending.is_record_submitted)
    }

    fn next_deadline(&self) -> Option<AttemptDeadline> {
        let action = DeadlineAction::GiveUp(UpstreamError::IdleTimeout);
        let of_sending = self.send_deadline.map(|at| AttemptDeadline { at, action });
        let of_response = self.context.attempt_deadline;
        let all = of_response.into_iter().chain(of_sending).chain(self.silence.deadline());
        all.min_by_key(|deadline| deadline.at)
    }

    /// Acts on the deadline that has passed.
    ///
    /// # Errors
    /// If the attempt ends with it.
    async fn on_deadline(&mut self, deadline: Option<AttemptDeadline>) -> Result<()> {
        if let Some(AttemptDeadline { action, .. }) = deadline {
            let tasks = self.context.on_deadline_passed(action, &mut self.silence)?;
            self.write(tasks).await?;
        }
        Ok(())
    }

    /// Records the id of the response if this event begins one.
    fn note_response_id(&self, socket: &mut UpstreamSocket, event: &[u8]) {
        if self.response_id.load().is_some() {
            return;
        }
        let Some(id) = made_response_id(event) else { return };
        socket.note_response(&id, self.message.is_unstored);
        if self.message.is_unstored {
            self.shared.note_unstored_response(&id);
        }
        self.response_id.store(Some(Arc::new(id.into_owned())));
    }

    fn is_refusal_of_lane(&self, event: &[u8]) -> bool {
        self.message.lane.is_some()
            && matches!(self.context.response_state, ResponseState::Awaited)
            && error_event_status(event) == Some(400)
            && mentions_lane(event)
    }

    /// Records that the backend rejects `stream_id`, for this socket and all that are opened later.
    fn note_lanes_refused(&self, socket: &mut UpstreamSocket) {
        socket.refuses_lanes = true;
        let target = self.context.retry_state.as_ref().and_then(|retry| retry.current_or_last_target());
        if let Some(backend) =
            target.and_then(|target| self.context.gateway().backends.get(target.backend_index))
        {
            backend.health.rejects_socket_lanes.store(true, Ordering::Relaxed);
        }
    }
}

/// Takes a message of the backend and those that have arrived with it. Returns the events, and whether a pong was
/// queued.
///
/// # Errors
/// If the backend closes the socket, or breaks the protocol.
fn take_events(
    socket: &mut UpstreamSocket,
    message: std::result::Result<Message, ReadError>,
) -> Result<(Vec<Bytes>, bool)> {
    let (mut events, mut bytes, mut has_ping) = (Vec::new(), 0, false);
    let mut next = message;
    loop {
        match next {
            Ok(Message::Text(event)) => {
                bytes += event.len();
                events.push(event);
            }
            Ok(Message::Ping(payload)) => {
                socket.writer.push_pong(&payload);
                has_ping = true;
            }
            Ok(Message::Pong) => {}
            end => {
                let error = socket_end(end);
                if events.is_empty() {
                    return Err(error);
                }
                // The events before it are relayed first.
                socket.end = Some(error);
                break;
            }
        }
        if events.len() >= MAX_COALESCED_EVENTS || bytes >= MAX_COALESCED_BYTES {
            break;
        }
        match socket.reader.next().now_or_never() {
            Some(message) => next = message,
            None => break,
        }
    }
    Ok((events, has_ping))
}

/// The error for the end of a socket.
fn socket_end(end: std::result::Result<Message, ReadError>) -> Box<Error> {
    match end {
        Ok(Message::Close(_)) => socket_lost("the backend closed its WebSocket"),
        Err(ReadError::Lost(error)) => socket_failed(error),
        Ok(_) | Err(_) => {
            let context = "a message on a backend's Responses socket is malformed, binary or too large";
            Error::explain(ErrorType::InvalidHTTPHeader, context).into_up()
        }
    }
}

/// The response head that stands for the events of a turn.
fn stream_head(socket: &UpstreamSocket) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(200, Some(4))?;
    head.insert_header("content-type", "text/event-stream")?;
    copy_service_fields(socket, &mut head)?;
    Ok(head)
}

/// The response head that stands for an error event.
fn error_head(socket: &UpstreamSocket, status: u16, event: &[u8]) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(status, Some(8))?;
    head.insert_header("content-type", "application/json")?;
    copy_service_fields(socket, &mut head)?;
    for (name, value) in crate::azure::response::socket_event::error_event_headers(event) {
        // Ignored if it is no valid header field.
        let _ = head.insert_header(name, value);
    }
    Ok(head)
}

/// Copies the fields of the handshake's response that the record needs.
fn copy_service_fields(socket: &UpstreamSocket, head: &mut ResponseHeader) -> Result<()> {
    for name in ["x-ms-region", "apim-request-id"] {
        if let Some(value) = socket.handshake_head.headers.get(name) {
            head.insert_header(name, value.clone())?;
        }
    }
    Ok(())
}

fn socket_failed(cause: io::Error) -> Box<Error> {
    Error::because(ErrorType::ConnectionClosed, "on a backend's WebSocket", cause).into_up()
}

fn socket_lost(context: &'static str) -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, context).into_up()
}
