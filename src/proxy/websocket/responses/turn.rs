//! A turn of a Responses socket: from a `response.create` to the end of its response. It is admitted, routed, repeated
//! and recorded like a POST of the same content; only its bytes go another way (`exchange.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::FutureExt;
use http::Method;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::error_event::{connection_limit_refusal, refusal_event};
use super::shared::{HeldMessage, SocketShared};
use super::upstream_socket::{
    Handshake, HandshakeKey, UpstreamRoute, UpstreamSocket, finish_handshake, set_handshake_fields,
};
use crate::azure::request::socket_message::SocketMessage;
use crate::gateway::{BodyView, Moment};
use crate::proxy::attempt::final_response::{prepare_best_response_or_refusal, prepare_refusal};
use crate::proxy::attempt::next_backend::BackendStep;
use crate::proxy::attempt::retry_state::RetryState;
use crate::proxy::attempt::silence::Silence;
use crate::proxy::client::request_body::RequestBody;
use crate::proxy::client::response_writer::flush_and_wait_for_record;
use crate::proxy::client::timeouts::LAST_BYTES_TIMEOUT;
use crate::proxy::context::RequestContext;
use crate::proxy::error_types::{ATTEMPTS_EXHAUSTED, CLIENT_GONE, RETRY_ELSEWHERE};
use crate::proxy::long_work::work_over;
use crate::proxy::timer::Timer;
use crate::proxy::upstream::connection::RequestBodyAvailability;
use crate::proxy::upstream::headers::{self, BodyFraming};
use crate::proxy::upstream::trace_headers;
use crate::refusal::{Refusal, RefusalReason};

/// Which upstream socket a turn runs on.
pub(super) enum TurnStart {
    /// Any.
    Anywhere,
    /// This one, which keeps the unstored response that the turn continues.
    On(Box<UpstreamSocket>),
    /// None: the turn is refused.
    Refused(Refusal),
}

/// What the end of a turn means for the client's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnEnd {
    /// Another turn can follow.
    Over,
    /// The client has been told that the socket is closed.
    ClosesSocket,
    /// The client's credentials are no longer valid.
    Unauthorized,
}

/// What a turn leaves behind.
pub(super) struct TurnOutcome {
    pub(super) end: TurnEnd,
    /// Messages about the turn that were not sent to its backend.
    pub(super) unsent_messages: Vec<HeldMessage>,
}

/// A turn.
pub(super) struct Turn {
    pub(super) shared: Arc<SocketShared>,
    pub(super) context: Box<RequestContext>,
    pub(super) message: SocketMessage,
    /// The client's messages about this turn; closed when the client is lost.
    pub(super) client_messages: Receiver<HeldMessage>,
    /// Messages that the current attempt has sent, kept as long as another attempt may follow.
    pub(super) passed_messages: Vec<HeldMessage>,
    /// The id of the response, once known from the current attempt.
    pub(super) response_id: Arc<ArcSwapOption<String>>,
    /// The socket of [`TurnStart::On`], until it is used.
    pinned_socket: Option<Box<UpstreamSocket>>,
    /// No other socket will do.
    is_pinned: bool,
    pub(super) timer: Timer,
    pub(super) silence: Silence,
    /// When the backend has to have read what is being sent to it.
    pub(super) send_deadline: Option<Instant>,
}

impl Turn {
    pub(super) fn new(
        shared: Arc<SocketShared>,
        message: SocketMessage,
        client_messages: Receiver<HeldMessage>,
        response_id: Arc<ArcSwapOption<String>>,
    ) -> Self {
        let context = shared.new_turn_context();
        Self {
            shared,
            context,
            message,
            client_messages,
            passed_messages: Vec::new(),
            response_id,
            pinned_socket: None,
            is_pinned: false,
            timer: Timer::default(),
            silence: Silence::default(),
            send_deadline: None,
        }
    }

    /// Runs the turn of this `response.create`.
    pub(super) async fn run(mut self, create: HeldMessage, start: TurnStart) -> TurnOutcome {
        let admitted = match (self.admit(create).await, start) {
            (Ok(()), TurnStart::Anywhere) => Ok(()),
            (Ok(()), TurnStart::On(socket)) => self.pin_to(socket),
            (Ok(()), TurnStart::Refused(refusal)) => Err(refusal),
            // After it has reconnected, the client sends its whole input, which one resource can answer.
            (Err(refusal), TurnStart::On(_)) if refusal.reason == RefusalReason::MixedResources => {
                Err(connection_limit_refusal())
            }
            (Err(refusal), start) => {
                if let TurnStart::On(socket) = start {
                    self.shared.idle_upstreams.put(*socket);
                }
                Err(refusal)
            }
        };
        let end = match admitted {
            Ok(()) => self.run_attempts().await,
            Err(refusal) => self.refuse(&refusal).await,
        };
        if self.shared.client.is_lost() {
            self.context.ending.is_client_gone |= !self.context.ending.is_record_submitted;
        }
        self.context.finish();
        self.client_messages.close();
        let mut unsent_messages = Vec::new();
        while let Ok(message) = self.client_messages.try_recv() {
            unsent_messages.push(message);
        }
        TurnOutcome { end, unsent_messages }
    }

    /// Admits the turn, as a POST of the same content.
    async fn admit(&mut self, create: HeldMessage) -> std::result::Result<(), Refusal> {
        let context = &mut *self.context;
        let config = Arc::clone(&context.config);
        let gateway = &config.gateway;
        // Set before a possible refusal, because the record needs it.
        context.body = RequestBody::held(create.bytes, create.memory);
        let client = self.shared.authenticate(&config)?;
        context.request.client = Some(Arc::clone(&client));
        if !self.message.tells_model {
            let message = "`model` is missing: it names the deployment";
            return Err(Refusal::bad_request(message));
        }
        let target = Arc::clone(&self.shared.opener.turn_target);
        let body = BodyView {
            bytes: &context.body.held_bytes,
            content_type: &context.request.content_type,
            is_compressed: false,
        };
        let parse = || gateway.parse_requested_call(&Method::POST, &target, &body);
        let mut call = work_over(body.bytes.len(), parse)?;
        // A turn is a stream, though its message does not say so.
        call.wants_stream = Some(true);
        context.request.deployment.clone_from(&call.deployment);
        context.request.wants_stream = call.wants_stream;
        let received =
            Moment { instant: context.request.received_instant, time: context.request.received_at };
        let body = &context.body.held_bytes;
        gateway.learn_from_other_instances(&target, &call, body, received).await;
        let admitted = gateway.admit(&Method::POST, target, &client, call, body, received)?;
        let now = Instant::now();
        context.reserve_limits(&admitted, now).await?;
        let gateway = &config.gateway;
        let shed_rule = context.request.class.and_then(|class| gateway.shed_rule(class));
        let (headers, body) = (&self.shared.handshake_head.headers, &context.body.held_bytes);
        let prompt_route = gateway.prompt_route(&admitted, headers, body, now);
        let admitted = admitted.with_shed_rule(shed_rule).with_prompt_route(prompt_route);
        let limits = gateway.retry_limits_for_request(&admitted, now, received.instant, None);
        let gateway = Arc::clone(gateway);
        context.retry_state =
            Some(RetryState::new(gateway, admitted, limits, received, context.request.client_ip));
        Ok(())
    }

    /// Restricts the turn to this socket.
    fn pin_to(&mut self, socket: Box<UpstreamSocket>) -> std::result::Result<(), Refusal> {
        let backends = &self.context.config.gateway.backends;
        let index = backends.iter().position(|backend| backend.config.name == socket.route.backend);
        let is_in_pool = index
            .zip(self.context.retry_state.as_mut())
            .is_some_and(|(index, retry)| retry.pin_to_backend(index));
        // A reload has removed the backend, or it does not serve the turn's model.
        if !is_in_pool {
            return Err(connection_limit_refusal());
        }
        self.pinned_socket = Some(socket);
        self.is_pinned = true;
        // No other socket has the response that the turn continues, so it is not retried.
        self.context.body.is_no_longer_replayable = true;
        Ok(())
    }

    async fn run_attempts(&mut self) -> TurnEnd {
        loop {
            match self.run_attempt().await {
                Ok(()) => return TurnEnd::Over,
                Err(error) if error.retry() => {}
                Err(error) => return self.fail(&error).await,
            }
        }
    }

    /// Makes one attempt.
    ///
    /// # Errors
    /// If the client got no complete response; `error.retry()` says whether another attempt follows.
    async fn run_attempt(&mut self) -> Result<()> {
        let (backend_index, peer) = self.next_backend().await.map_err(|mut error| {
            error.set_retry(false);
            error
        })?;
        let is_reused;
        let exchanged = match self.find_or_open_socket(backend_index, &peer).await {
            Ok(Some(mut socket)) => {
                is_reused = socket.is_reused;
                let exchanged = self.exchange(&mut socket).await;
                let has_ended = match &exchanged {
                    Ok(()) => true,
                    Err(error) => *error.etype() == RETRY_ELSEWHERE,
                };
                // A pong may still be queued if a ping came with the last event.
                if has_ended && socket.has_unsent {
                    socket.has_unsent = !matches!(socket.writer.flush().now_or_never(), Some(Ok(())));
                }
                if has_ended && !socket.has_unsent && socket.end.is_none() {
                    socket.is_reused = true;
                    socket.latest_lane.clone_from(&self.message.lane);
                    socket.idle_since = Instant::now();
                    self.shared.idle_upstreams.put(*socket);
                }
                exchanged
            }
            // The backend refused the handshake, and the client got its response.
            Ok(None) => return Ok(()),
            Err(OpenError::NotConnected(error)) => return Err(error),
            Err(OpenError::Failed { error, is_reused: reused }) => {
                is_reused = reused;
                Err(error)
            }
        };
        self.silence.end();
        self.send_deadline = None;
        exchanged.map_err(|mut error| {
            let retries = self.context.on_exchange_failed(&mut error, is_reused, Instant::now());
            error.set_retry(retries);
            error
        })
    }

    /// The backend of the next attempt, after a wait if that is the next step.
    ///
    /// # Errors
    /// If no further attempt is made, or the client is lost.
    async fn next_backend(&mut self) -> Result<(usize, Box<HttpPeer>)> {
        loop {
            match self.context.next_backend(true, Instant::now())? {
                BackendStep::Connect(backend_index, peer) => return Ok((backend_index, peer)),
                BackendStep::Wait(mut wait) => {
                    tokio::select! {
                        () = wait.wait() => {}
                        () = self.shared.client.lost() => return Err(Error::new(CLIENT_GONE).into_down()),
                    }
                    self.context.on_backend_wait_over(wait, Instant::now());
                }
            }
        }
    }

    /// The socket of the current attempt: one that is idle, or a new one. `None` if the client has got the backend's
    /// response to the handshake.
    async fn find_or_open_socket(
        &mut self,
        backend_index: usize,
        peer: &HttpPeer,
    ) -> std::result::Result<Option<Box<UpstreamSocket>>, OpenError> {
        let failed = |error| OpenError::Failed { error, is_reused: false };
        let target = self.context.begin_upstream_request().map_err(failed)?;
        let config = Arc::clone(&self.context.config);
        let Some(backend) = config.gateway.backends.get(backend_index) else {
            return Err(failed(Error::new(ATTEMPTS_EXHAUSTED)));
        };
        let (name, secret) = target.secret;
        self.context.attempt_secret = Some(Arc::clone(&secret));
        if let Some(socket) = self.pinned_socket.take() {
            return Ok(Some(socket));
        }
        let route = UpstreamRoute {
            backend: backend.config.name.clone(),
            group_key: peer.group_key,
            secret_id: secret.id,
            path_and_query: Arc::from(target.path_and_query.as_str()),
        };
        let previous_response = self.message.previous_response_id.as_deref();
        if let Some(socket) =
            self.shared.idle_upstreams.take_for(&route, self.message.lane.as_deref(), previous_response)
        {
            return Ok(Some(Box::new(socket)));
        }
        let limit = peer.options.total_connection_timeout.unwrap_or(LAST_BYTES_TIMEOUT);
        let connector = Arc::clone(&self.shared.services.connector);
        let connected = timeout(limit, connector.reuse_or_connect(peer)).await;
        let mut upstream = connected
            .unwrap_or_else(|_| {
                Error::e_explain(pingora::ErrorType::ConnectTimedout, "no connection in time")
            })
            .map_err(|error| {
                let mut error = error.into_up();
                let retries = self.context.on_connect_failed(&error, Instant::now());
                error.set_retry(retries);
                OpenError::NotConnected(error)
            })?;
        let is_reused = upstream.is_reused;
        let failed = |error| OpenError::Failed { error, is_reused };
        let key = HandshakeKey::new();
        let head = || {
            let mut head = Box::new(headers::forwardable_head(&self.shared.handshake_head, true)?);
            set_handshake_fields(&mut head, &key, self.shared.subprotocol.as_deref())?;
            let requests = &config.gateway.request_config;
            headers::rewrite_for_backend(
                &mut head,
                backend,
                requests,
                target.path_and_query,
                &BodyFraming::None,
            )?;
            head.insert_header(name, secret.header_value.clone())?;
            let client_headers = &self.shared.handshake_head.headers;
            trace_headers::set_trace_headers(&mut head, client_headers, &mut self.context)?;
            Ok(head)
        };
        let head = head().map_err(failed)?;
        upstream
            .send_head(head, RequestBodyAvailability::None)
            .await
            .map_err(|error| failed(error.into_up()))?;
        self.begin_waiting(Instant::now());
        let memory = self.context.empty_memory_reservation();
        let max_message_bytes = config.gateway.websocket.max_frame_bytes;
        let handshake = finish_handshake(&mut upstream, &key, route, max_message_bytes, memory);
        match self.wait_for_backend(handshake).await.and_then(|handshake| handshake).map_err(failed)? {
            Handshake::Opened(mut socket) => {
                socket.refuses_lanes = backend.health.rejects_socket_lanes.load(Ordering::Relaxed);
                Ok(Some(socket))
            }
            Handshake::Refused(first) => {
                if let Some(retry) = &mut self.context.retry_state {
                    retry.note_refused_handshake();
                }
                let relayed = self.relay_http_response(first, &mut upstream).await;
                connector.release(upstream, peer).await;
                relayed.map(|()| None).map_err(failed)
            }
        }
    }

    /// Ends the turn with a refusal by the balancer.
    async fn refuse(&mut self, refusal: &Refusal) -> TurnEnd {
        if let Ok(tasks) = prepare_refusal(&mut self.context, refusal) {
            let _ = self.write(tasks).await;
        }
        match refusal.reason {
            RefusalReason::SocketLimitReached => TurnEnd::ClosesSocket,
            RefusalReason::InvalidApiKey => TurnEnd::Unauthorized,
            _ => TurnEnd::Over,
        }
    }

    /// Ends the turn after its last attempt, which failed with this error.
    async fn fail(&mut self, error: &Error) -> TurnEnd {
        if self.context.ending.is_client_gone || self.shared.client.is_lost() {
            return TurnEnd::Over;
        }
        if self.context.is_response_committed() {
            self.context.ending.has_response_failed = true;
            let message = "the backend's connection ended before the response was complete";
            self.send_last_event(&Refusal::new(RefusalReason::UpstreamFailed, message)).await;
            return TurnEnd::Over;
        }
        // If the backend sent no response, the response that the turn continues is lost with the socket.
        let is_state_lost =
            self.is_pinned && *error.etype() != RETRY_ELSEWHERE && *error.etype() != ATTEMPTS_EXHAUSTED;
        if is_state_lost {
            return self.refuse(&connection_limit_refusal()).await;
        }
        if let Ok(tasks) = prepare_best_response_or_refusal(&mut self.context, Instant::now()) {
            let _ = self.write(tasks).await;
        }
        TurnEnd::Over
    }

    /// Ends an incomplete response with an error event.
    async fn send_last_event(&mut self, refusal: &Refusal) {
        let receipt = self.context.submit_record();
        flush_and_wait_for_record(&self.context, receipt).await;
        let event = refusal_event(refusal, self.message.lane.as_deref());
        let _ = self.send_to_client(&[event]).await;
    }

    /// Sends messages to the client.
    ///
    /// # Errors
    /// [`CLIENT_GONE`].
    pub(super) async fn send_to_client(&self, messages: &[Bytes]) -> Result<()> {
        let limit: Duration = self.context.gateway().timeouts.response_idle;
        let sent = self.shared.client.send(messages, limit, || self.context.hold_unread_response()).await;
        sent.map_err(|_| Error::new(CLIENT_GONE).into_down())
    }
}

/// Why there is no socket for an attempt.
enum OpenError {
    /// No connection was made, which has been recorded.
    NotConnected(Box<Error>),
    /// The handshake failed. `is_reused` says that the connection came from a pool.
    Failed { error: Box<Error>, is_reused: bool },
}
