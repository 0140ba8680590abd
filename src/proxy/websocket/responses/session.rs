//! The session of a Responses socket: reads the client's messages, starts turns, and closes the socket between two
//! turns.
//!
//! Each turn runs in its own task and writes its events to the client directly. If the client does not read, the
//! session may wait to write, but turns never wait for the session.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use pingora::protocols::Stream;
use tokio::io::ReadHalf;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;

use super::closing::{
    CLOSE_GOING_AWAY, CLOSE_NORMAL, CLOSE_POLICY_VIOLATION, CLOSE_UNSUPPORTED_DATA, Closing,
};
use super::error_event::{connection_limit_refusal, refusal_event};
use super::idle_upstreams;
use super::shared::{HeldMessage, SocketShared};
use super::turn::{Turn, TurnEnd, TurnOutcome, TurnStart};
use super::upstream_socket::UpstreamSocket;
use crate::azure::request::socket_message::SocketMessage;
use crate::azure::response::socket_event::is_socket_limit;
use crate::gateway::OpenSocket;
use crate::proxy::context::RequestContext;
use crate::proxy::long_work::work_over;
use crate::proxy::timer::Timer;
use crate::proxy::websocket::frames::{Message, MessageReader, ReadError};
use crate::refusal::{Refusal, RefusalReason};

/// Maximum number of concurrent turns, each in its own lane.
const MAX_TURNS: usize = 16;
/// Maximum number of turns that wait for their lane or socket. Beyond it the client is not read.
const MAX_WAITING_TURNS: usize = 16;
/// Maximum number of messages about a turn that wait to be sent to its backend.
const MAX_PENDING_MESSAGES: usize = 64;
/// A client that has sent nothing for this long gets a ping.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// Between two turns, a client that has not answered this many pings is considered lost.
const MAX_UNANSWERED_PINGS: u32 = 3;
/// How often idle upstream sockets are checked.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout for writing a control frame or a short message.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client has to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the turns of a lost client have to end.
const TURN_END_TIMEOUT: Duration = Duration::from_secs(2);

/// A Responses socket.
pub(super) struct SocketSession {
    shared: Arc<SocketShared>,
    reader: MessageReader<ReadHalf<Stream>>,
    turns: JoinSet<TurnOutcome>,
    active_turns: Vec<ActiveTurn>,
    waiting: VecDeque<(SocketMessage, HeldMessage)>,
    /// Messages about a turn that has ended but whose task has not been joined.
    late_messages: Vec<HeldMessage>,
    has_begun: bool,
    opened_at: Instant,
    last_heard_at: Instant,
    unanswered_pings: u32,
    received_bytes: u64,
    idle_check_at: Instant,
    /// No further turn begins; the socket is closed after those that run.
    is_closing: bool,
    has_client_closed: bool,
}

/// A turn that runs.
struct ActiveTurn {
    id: Id,
    lane: Option<String>,
    response_id: Arc<ArcSwapOption<String>>,
    messages: Sender<HeldMessage>,
}

/// What a socket reacts to.
enum SessionEvent {
    Client(Result<Message, ReadError>),
    TurnEnded(Result<(Id, TurnOutcome), JoinError>),
    IdleUpstream(Box<UpstreamSocket>, Result<Message, ReadError>),
    /// The process is stopping or has been replaced.
    ProcessCloses,
    ClientLost,
    Deadline,
}

/// Whether a socket goes on.
enum Flow {
    Continue,
    Close(Closing),
    /// The client is gone.
    End,
}

impl SocketSession {
    pub(super) fn new(shared: Arc<SocketShared>, reader: MessageReader<ReadHalf<Stream>>) -> Self {
        let now = Instant::now();
        Self {
            shared,
            reader,
            turns: JoinSet::new(),
            active_turns: Vec::new(),
            waiting: VecDeque::new(),
            late_messages: Vec::new(),
            has_begun: false,
            opened_at: now,
            last_heard_at: now,
            unanswered_pings: 0,
            received_bytes: 0,
            idle_check_at: now + IDLE_CHECK_INTERVAL,
            is_closing: false,
            has_client_closed: false,
        }
    }

    /// Runs the session to its end, and records how it ended in `context`.
    pub(super) async fn run(mut self, context: &mut RequestContext, timer: &mut Timer) {
        let open_sockets = &self.shared.opener.config.gateway.process_state.open_sockets;
        let mut open_socket = open_sockets.register();
        let closing = loop {
            match self.step(&mut open_socket, timer).await {
                Flow::Continue => {}
                Flow::Close(closing) => break Some(closing),
                Flow::End => break None,
            }
            if self.is_closing && self.active_turns.is_empty() {
                break Some(Closing::between_turns());
            }
        };
        let had_turns = !self.active_turns.is_empty();
        // Ends the turns that still run.
        self.shared.client.mark_lost();
        self.active_turns.clear();
        let _ = timeout(TURN_END_TIMEOUT, async { while self.turns.join_next().await.is_some() {} }).await;
        self.shared.idle_upstreams.retain(|_| false);
        // A client that disconnects between two turns is no failure.
        let was_lost = closing.is_none() && had_turns;
        if let Some(Closing { event, code, reason, refusal }) = closing {
            context.ending.refusal_reason = refusal;
            self.close(event, code, reason).await;
        }
        context.ending.is_client_gone |= was_lost;
        context.body.bytes_read = self.received_bytes;
        context.ending.response_bytes += self.shared.client.sent_bytes.load(Ordering::Relaxed);
    }

    /// Waits for the next event and handles it.
    async fn step(&mut self, open_socket: &mut OpenSocket, timer: &mut Timer) -> Flow {
        let deadline = self.next_deadline();
        let has_room = self.waiting.len() < MAX_WAITING_TURNS;
        if !has_room {
            self.reader.restart_message_time();
        }
        let (shared, has_turns) = (Arc::clone(&self.shared), !self.turns.is_empty());
        // Closing and deadlines come first: after them no further turn may start.
        let event = tokio::select! {
            biased;
            () = open_socket.closing(), if !self.is_closing => SessionEvent::ProcessCloses,
            () = timer.wait_until(Some(deadline)) => SessionEvent::Deadline,
            Some(ended) = self.turns.join_next_with_id(), if has_turns => SessionEvent::TurnEnded(ended),
            message = self.reader.next(), if has_room => SessionEvent::Client(message),
            (socket, message) = shared.idle_upstreams.next_message() => {
                SessionEvent::IdleUpstream(Box::new(socket), message)
            }
            () = shared.client.lost() => SessionEvent::ClientLost,
        };
        match event {
            SessionEvent::Client(Ok(message)) => self.on_client_message(message).await,
            SessionEvent::Client(Err(ReadError::TooSlow)) => {
                let refusal = Refusal::new(
                    RefusalReason::RequestTimeout,
                    "the rest of a message did not arrive in time",
                );
                Flow::Close(Closing::refused(CLOSE_POLICY_VIOLATION, &refusal))
            }
            SessionEvent::Client(Err(error)) => match error.close_code() {
                Some(code) => Flow::Close(Closing::after_fault(code, &error)),
                None => Flow::End,
            },
            SessionEvent::TurnEnded(ended) => self.on_turn_ended(ended).await,
            SessionEvent::IdleUpstream(socket, message) => self.on_idle_upstream(*socket, message).await,
            SessionEvent::ClientLost => Flow::End,
            SessionEvent::ProcessCloses => {
                self.is_closing = true;
                Flow::Continue
            }
            SessionEvent::Deadline => self.on_deadline(Instant::now()).await,
        }
    }

    async fn on_client_message(&mut self, message: Message) -> Flow {
        self.last_heard_at = Instant::now();
        self.unanswered_pings = 0;
        match message {
            Message::Text(text) => self.on_client_text(text).await,
            Message::Binary(_) => {
                let refusal = Refusal::bad_request("a Responses socket takes text messages only");
                Flow::Close(Closing::refused(CLOSE_UNSUPPORTED_DATA, &refusal))
            }
            Message::Ping(payload) => {
                let sent =
                    self.shared.client.send_control(CONTROL_TIMEOUT, |writer| writer.push_pong(&payload));
                if sent.await.is_ok() { Flow::Continue } else { Flow::End }
            }
            Message::Pong => Flow::Continue,
            Message::Close(code) => {
                self.has_client_closed = true;
                Flow::Close(Closing::with_code(code.map_or(CLOSE_NORMAL, |(code, _)| code), ""))
            }
        }
    }

    async fn on_client_text(&mut self, text: Bytes) -> Flow {
        self.received_bytes += text.len() as u64;
        let parsed = work_over(text.len(), || SocketMessage::parse(&text)).map_err(|error| error.to_string());
        let message = match parsed {
            Ok(message) if message.is_create || self.has_begun => message,
            Ok(_) => {
                let refusal = Refusal::bad_request("the first message must be a `response.create`");
                return Flow::Close(Closing::refused(CLOSE_POLICY_VIOLATION, &refusal));
            }
            Err(problem) => {
                let refusal = Refusal::bad_request(problem);
                if !self.has_begun {
                    return Flow::Close(Closing::refused(CLOSE_POLICY_VIOLATION, &refusal));
                }
                return self.tell_client(&refusal, None).await;
            }
        };
        if !self.has_begun {
            if !message.tells_model {
                let refusal = Refusal::bad_request("`model` is missing: it names the deployment");
                return Flow::Close(Closing::refused(CLOSE_POLICY_VIOLATION, &refusal));
            }
            self.has_begun = true;
            self.reader.set_max_message_bytes(self.shared.opener.config.gateway.websocket.max_frame_bytes);
        }
        if message.is_create {
            return match HeldMessage::new(text, self.reader.take_memory()) {
                Ok(create) => {
                    self.waiting.push_back((message, create));
                    self.begin_turns();
                    Flow::Continue
                }
                Err(refusal) => self.tell_client(&refusal, message.lane.as_deref()).await,
            };
        }
        self.pass_on(&message, text).await
    }

    /// Starts the turns that do not have to wait.
    fn begin_turns(&mut self) {
        let mut index = 0;
        while !self.is_closing
            && self.active_turns.len() < MAX_TURNS
            && let Some((message, _)) = self.waiting.get(index)
        {
            let has_lane = |other: &Option<String>| *other == message.lane;
            let must_wait = self.active_turns.iter().any(|turn| has_lane(&turn.lane))
                || self.waiting.iter().take(index).any(|(other, _)| has_lane(&other.lane));
            let start = if must_wait { None } else { self.find_start(message) };
            if let Some(start) = start
                && let Some((message, create)) = self.waiting.remove(index)
            {
                self.begin_turn(message, create, start);
            } else {
                index += 1;
            }
        }
    }

    /// Where a turn runs; `None` if it needs an upstream socket that serves another turn.
    fn find_start(&self, message: &SocketMessage) -> Option<TurnStart> {
        let Some(previous) = message.previous_response_id.as_deref() else {
            return Some(TurnStart::Anywhere);
        };
        if !self.shared.is_unstored_response(previous) {
            return Some(TurnStart::Anywhere);
        }
        if let Some(socket) = self.shared.idle_upstreams.take_owner_of(previous) {
            return Some(TurnStart::On(Box::new(socket)));
        }
        // One of the active turns may be using the socket.
        let may_come_back = !self.active_turns.is_empty();
        (!may_come_back).then(|| TurnStart::Refused(connection_limit_refusal()))
    }

    fn begin_turn(&mut self, message: SocketMessage, create: HeldMessage, start: TurnStart) {
        let (sender, receiver) = channel(MAX_PENDING_MESSAGES);
        let response_id = Arc::default();
        let lane = message.lane.clone();
        let turn = Turn::new(Arc::clone(&self.shared), message, receiver, Arc::clone(&response_id));
        let id = self.turns.spawn(turn.run(create, start)).id();
        self.active_turns.push(ActiveTurn { id, lane, response_id, messages: sender });
    }

    /// Forwards a message about a turn to the upstream socket of that turn or, between two turns, of the last one.
    async fn pass_on(&mut self, message: &SocketMessage, text: Bytes) -> Flow {
        let (response_id, message_lane) = (message.response_id.as_deref(), message.lane.as_deref());
        let is_meant = |turn: &&ActiveTurn| match (&message.lane, response_id) {
            (Some(lane), _) => turn.lane.as_ref() == Some(lane),
            (None, Some(id)) => turn.response_id.load().as_ref().is_some_and(|own| **own == id),
            (None, None) => turn.lane.is_none(),
        };
        let only_turn = if let [only] = self.active_turns.as_slice() { Some(only) } else { None };
        if let Some(turn) = self.active_turns.iter().find(is_meant).or(only_turn) {
            let sent =
                HeldMessage::new(text, self.reader.take_memory()).map(|held| turn.messages.try_send(held));
            return match sent {
                Ok(Ok(())) => Flow::Continue,
                Ok(Err(TrySendError::Closed(held))) => {
                    self.late_messages.push(held);
                    Flow::Continue
                }
                Ok(Err(TrySendError::Full(_))) => {
                    let message = "too many messages wait for the backend; try again shortly";
                    let refusal = Refusal::new(RefusalReason::Overloaded, message);
                    self.tell_client(&refusal, message_lane).await
                }
                Err(refusal) => self.tell_client(&refusal, message_lane).await,
            };
        }
        let Some(mut socket) = self.shared.idle_upstreams.take_for_message(response_id) else {
            let refusal = Refusal::bad_request("there is no response that this message could be about");
            return self.tell_client(&refusal, message_lane).await;
        };
        if socket.send(&text, message_lane.is_some(), CONTROL_TIMEOUT).await.is_err() {
            let message = "the backend's connection ended before it had the message";
            return self
                .tell_client(&Refusal::new(RefusalReason::UpstreamFailed, message), message_lane)
                .await;
        }
        self.shared.idle_upstreams.put(socket);
        Flow::Continue
    }

    async fn tell_client(&self, refusal: &Refusal, lane: Option<&str>) -> Flow {
        let limit = self.shared.opener.config.gateway.timeouts.response_idle;
        let event = refusal_event(refusal, lane);
        let sent = self.shared.client.send_control(limit, |writer| writer.push_text(&event));
        if sent.await.is_ok() { Flow::Continue } else { Flow::End }
    }

    async fn on_turn_ended(&mut self, ended: Result<(Id, TurnOutcome), JoinError>) -> Flow {
        let id = ended.as_ref().map_or_else(|error| error.id(), |(id, _)| *id);
        self.active_turns.retain(|turn| turn.id != id);
        let mut unsent_messages = match ended {
            Ok((_, TurnOutcome { end: TurnEnd::Over, unsent_messages })) => unsent_messages,
            Ok((_, TurnOutcome { end: TurnEnd::ClosesSocket, .. })) => {
                return Flow::Close(Closing { event: None, ..Closing::between_turns() });
            }
            Ok((_, TurnOutcome { end: TurnEnd::Unauthorized, .. })) => {
                return Flow::Close(Closing::with_code(CLOSE_POLICY_VIOLATION, "invalid_api_key"));
            }
            // The task panicked. Its record is written, but it is unknown how much the client got.
            Err(_) => return Flow::Close(Closing::with_code(CLOSE_GOING_AWAY, "")),
        };
        unsent_messages.append(&mut self.late_messages);
        for HeldMessage { bytes, memory: _memory } in unsent_messages {
            let Ok(message) = work_over(bytes.len(), || SocketMessage::parse(&bytes)) else { continue };
            if let Flow::End = self.pass_on(&message, bytes).await {
                return Flow::End;
            }
        }
        self.begin_turns();
        Flow::Continue
    }

    /// Handles a message that a backend sends between two turns.
    async fn on_idle_upstream(
        &mut self,
        mut socket: UpstreamSocket,
        message: Result<Message, ReadError>,
    ) -> Flow {
        match message {
            Ok(Message::Ping(payload)) => {
                socket.writer.push_pong(&payload);
                if socket.flush(CONTROL_TIMEOUT).await.is_err() {
                    return Flow::Continue;
                }
            }
            Ok(Message::Pong) => {}
            // The next turn opens another socket.
            Ok(Message::Text(event)) if is_socket_limit(&event) => {
                idle_upstreams::close(socket);
                return Flow::Continue;
            }
            Ok(Message::Text(event)) => {
                let event = socket.event_for_client(event, socket.latest_lane.as_deref());
                let limit = self.shared.opener.config.gateway.timeouts.response_idle;
                let sent = self.shared.client.send_control(limit, |writer| writer.push_text(&event));
                if sent.await.is_err() {
                    return Flow::End;
                }
            }
            Ok(Message::Binary(_) | Message::Close(_)) | Err(_) => return Flow::Continue,
        }
        self.shared.idle_upstreams.put(socket);
        // A turn may be waiting for this socket.
        self.begin_turns();
        Flow::Continue
    }

    fn next_deadline(&self) -> Instant {
        let websocket = &self.shared.opener.config.gateway.websocket;
        let mut deadline = self.last_heard_at + PING_INTERVAL * (self.unanswered_pings + 1);
        if !self.has_begun {
            deadline = deadline.min(self.opened_at + websocket.first_frame_timeout);
        }
        if !self.is_closing {
            deadline = deadline.min(self.opened_at + websocket.rotate_after);
        }
        if !self.shared.idle_upstreams.is_empty() {
            deadline = deadline.min(self.idle_check_at);
        }
        deadline
    }

    async fn on_deadline(&mut self, now: Instant) -> Flow {
        let websocket = self.shared.opener.config.gateway.websocket;
        if !self.has_begun && now >= self.opened_at + websocket.first_frame_timeout {
            let message = "the first message did not arrive in time";
            let refusal = Refusal::new(RefusalReason::RequestTimeout, message);
            return Flow::Close(Closing::refused(CLOSE_POLICY_VIOLATION, &refusal));
        }
        if now >= self.opened_at + websocket.rotate_after {
            self.is_closing = true;
        }
        if now >= self.idle_check_at {
            self.idle_check_at = now + IDLE_CHECK_INTERVAL;
            self.close_unneeded_upstreams(now);
        }
        if now >= self.last_heard_at + PING_INTERVAL * (self.unanswered_pings + 1) {
            if self.unanswered_pings == MAX_UNANSWERED_PINGS {
                return Flow::End;
            }
            if self.active_turns.is_empty() {
                self.unanswered_pings += 1;
            } else {
                // During a turn the client is known to be alive if it reads the events.
                (self.last_heard_at, self.unanswered_pings) = (now, 0);
            }
            let sent = self.shared.client.send_control(CONTROL_TIMEOUT, |writer| writer.push_ping(b""));
            if sent.await.is_err() {
                return Flow::End;
            }
        }
        Flow::Continue
    }

    /// Closes upstream sockets that have been idle or open for too long, or whose backend is drained or removed.
    fn close_unneeded_upstreams(&self, now: Instant) {
        let config = self.shared.services.active_config.load();
        let gateway = &config.gateway;
        self.shared.idle_upstreams.retain(|socket| {
            let mut backends = gateway.backends.iter();
            let backend = backends.find(|backend| backend.config.name == socket.route.backend);
            now < socket.idle_since + gateway.timeouts.pooled_connection_idle
                && now < socket.opened_at + gateway.websocket.rotate_after
                && backend.is_some_and(|backend| !backend.health.is_drained(now))
        });
    }

    /// Sends the close frame and waits briefly for the client's.
    async fn close(&mut self, event: Option<Bytes>, code: u16, reason: &str) {
        let closed = self.shared.client.send_last(CONTROL_TIMEOUT, |writer| {
            if let Some(event) = &event {
                writer.push_text(event);
            }
            writer.push_close(code, reason);
        });
        // After the client's close frame it waits for the server to close the connection (RFC 6455, section 7.1.1).
        if closed.await.is_ok() && !self.has_client_closed {
            // If the connection were closed while the client sends, a reset could discard the last bytes.
            let drained = async {
                while matches!(self.reader.next().await, Ok(message) if !matches!(message, Message::Close(_)))
                {
                }
            };
            let _ = timeout(CLOSE_TIMEOUT, drained).await;
        }
        self.shared.client.shut_down(CONTROL_TIMEOUT).await;
    }
}
