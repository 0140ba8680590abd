//! The context of one request, which is passed from phase to phase, and its record at the end. How a
//! response is handled is in `attempt/response_handler.rs`.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::Method;

use super::active_config::ActiveConfig;
use super::attempt::deadline::{AttemptDeadline, DeadlineAction};
use super::attempt::relayed_response::{ResponseDetails, ResponseEnd};
use super::attempt::response_state::ResponseState;
use super::attempt::retry_state::RetryState;
use super::attempt::upstream_error::UpstreamError;
use super::client::body_memory::{BodyMemory, MemoryReservation};
use super::client::client_request::ClientRequest;
use super::client::request_body::RequestBody;
use super::ending::RequestEnding;
use super::overhead::OverheadClock;
use super::upstream::peer::ConnectTurn;
use crate::admission::limits::Reservation;
use crate::config::ListenerConfig;
use crate::credentials::SecretValue;
use crate::gateway::{AdmittedRequest, Gateway};
use crate::names::Caller;
use crate::record::delivery::WriteReceipt;
use crate::record::exchange::{
    CapturePolicy, CapturedRequest, ExchangeOutcome, FinishedExchange, WEBSOCKET_METHOD,
};
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::health::stall::WatchedAttempt;
use crate::routing::spill::SpillReason;

/// The context that Pingora's `ProxyHttp` passes to each phase.
#[derive(Default)]
pub struct PingoraContext {
    /// The listener that the request came through; `None` for HTTP/2, where the TLS handshake stores it.
    pub(super) http1_listener: Option<Arc<ListenerConfig>>,
    /// Held from the choice of the peer until a connection to it is found or made.
    pub(super) connect_turn: Option<ConnectTurn>,
    /// `None` for health checks.
    pub(super) request_context: Option<Box<RequestContext>>,
}

impl PingoraContext {
    /// Whether the request opens a Responses socket.
    pub(super) fn opens_responses_socket(&self) -> bool {
        self.request_context.as_ref().is_some_and(|context| context.request.is_responses_socket)
    }

    /// Whether the request became a tunnel, whose client's session is empty then.
    pub(super) fn is_tunnel(&self) -> bool {
        self.request_context.as_ref().is_some_and(|context| context.ending.client_status == Some(101))
    }
}

/// Everything about one request. The request counts as in flight until this is finished or dropped.
pub(super) struct RequestContext {
    /// The configuration that was active when the request arrived; it stays the same to the end.
    pub(super) config: Arc<ActiveConfig>,
    pub(super) request: ClientRequest,
    pub(super) body: RequestBody,
    /// Memory for held bodies and held streams, shared by all requests.
    pub(super) body_memory: Arc<BodyMemory>,
    /// What it may use of its client's limits; `None` until it is admitted, and for a client without limits.
    pub(super) reservation: Option<Box<Reservation>>,
    /// `None` until the request is admitted.
    pub(super) retry_state: Option<RetryState>,
    /// The state of the current attempt's response.
    pub(super) response_state: ResponseState,
    /// The secret that the current attempt was sent with.
    pub(super) attempt_secret: Option<Arc<SecretValue>>,
    /// What happens if the backend sends nothing for too long. It applies once the request is sent.
    pub(super) attempt_deadline: Option<AttemptDeadline>,
    /// The client has sent bytes after its request, so its connection is no longer polled.
    pub(super) has_pipelined_bytes: bool,
    pub(super) overhead_clock: OverheadClock,
    pub(super) ending: RequestEnding,
}

impl RequestContext {
    /// The context of a request whose head is complete. Counts the request as in flight.
    pub(super) fn new(config: Arc<ActiveConfig>, body_memory: Arc<BodyMemory>, method: Method) -> Self {
        config.gateway.process_state.requests_in_flight.fetch_add(1, Ordering::AcqRel);
        Self {
            config,
            request: ClientRequest::new(method),
            body: RequestBody::default(),
            body_memory,
            reservation: None,
            retry_state: None,
            response_state: ResponseState::Awaited,
            attempt_secret: None,
            attempt_deadline: None,
            has_pipelined_bytes: false,
            overhead_clock: OverheadClock::start_at(Instant::now()),
            ending: RequestEnding::default(),
        }
    }

    /// Reserves what the admitted request may use of its client's limits. Its body is held.
    ///
    /// # Errors
    /// `rate_limit_exceeded`, `insufficient_quota`.
    pub(super) async fn reserve_limits(
        &mut self,
        admitted: &AdmittedRequest,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Some(client) = &self.request.client else { return Ok(()) };
        let (method, body) = (&self.request.method, &self.body.held_bytes);
        let reserved = self.config.gateway.reserve_limits(client, admitted, method, body, now).await;
        self.reservation = reserved.map_err(|reached| {
            self.ending.limited_by = Some(reached.limit);
            reached.refusal
        })?;
        Ok(())
    }

    pub(super) fn gateway(&self) -> &Gateway {
        &self.config.gateway
    }

    /// A reservation of memory for what is held of this request's response.
    pub(super) fn empty_memory_reservation(&self) -> MemoryReservation {
        let max_total_bytes = self.gateway().request_config.max_total_buffered_bytes;
        let holder = Caller::of(
            self.request.client.as_ref().and_then(|client| client.name.as_ref()),
            self.request.client_ip,
        );
        BodyMemory::empty_reservation(&self.body_memory, holder, max_total_bytes)
    }

    /// The memory of a response that waits for its client; `None` if there is none left for this client.
    pub(super) fn hold_unread_response(&self) -> Option<MemoryReservation> {
        self.empty_memory_reservation().grow_for_unread_response()
    }

    /// Records that the response to the client is a refusal by the balancer.
    pub(super) fn note_refusal(&mut self, refusal: &Refusal) {
        self.overhead_clock.pause(Instant::now());
        self.ending.client_status = Some(refusal.reason.status());
        self.ending.refusal_reason = Some(refusal.reason);
    }

    /// Records that the current attempt's request has been sent completely, and starts the timeout for
    /// the response head: `timeouts.first_byte` or, if the client asked for a stream,
    /// `timeouts.first_byte_stream`.
    pub(super) fn on_request_sent(&mut self, now: Instant) {
        // A backend may respond before it has read the whole request; then no head is awaited.
        if let (ResponseState::Awaited, None, Some(retry)) =
            (&self.response_state, &self.attempt_deadline, &self.retry_state)
            && retry.has_current_attempt()
        {
            retry.on_request_sent(now);
            let timeouts = &self.config.gateway.timeouts;
            let is_stream = retry.admitted.wants_stream == Some(true);
            let timeout = if is_stream { timeouts.first_byte_of_stream } else { timeouts.first_byte };
            let action = DeadlineAction::GiveUp(UpstreamError::FirstByteTimeout);
            self.attempt_deadline = Some(AttemptDeadline { at: now + timeout, action });
        }
    }

    /// Watches the current attempt, which was sent then and has no response yet.
    pub(super) fn watch_current_attempt(&self, sent_at: Instant) -> Option<WatchedAttempt> {
        self.retry_state.as_ref().and_then(|retry| retry.watch_current_attempt(sent_at))
    }

    /// Whether the request leaves its stalled backend now. If so, the caller ends the attempt.
    pub(super) fn try_leave_stalled_backend(&mut self, now: Instant) -> bool {
        let can_replay = !self.body.is_no_longer_replayable && !self.is_response_committed();
        can_replay && self.retry_state.as_mut().is_some_and(|retry| retry.try_leave_stalled_backend(now))
    }

    /// Gives the backend `timeouts.idle` from now on to send the next part of its response.
    pub(super) fn restart_idle_deadline(&mut self, now: Instant) {
        let at = now + self.gateway().timeouts.response_idle;
        self.attempt_deadline =
            Some(AttemptDeadline { at, action: DeadlineAction::GiveUp(UpstreamError::IdleTimeout) });
    }

    /// Records that the current attempt failed without a complete response; returns whether another
    /// attempt follows. `is_stale` says that its pooled connection had ended before the request arrived.
    pub(super) fn on_attempt_failed(&mut self, error: UpstreamError, is_stale: bool, now: Instant) -> bool {
        let can_replay = !self.body.is_no_longer_replayable && !self.is_response_committed();
        self.retry_state
            .as_mut()
            .is_some_and(|retry| retry.on_attempt_failed(error, is_stale, can_replay, now))
    }

    /// Whether a final response head is on its way to the client, so that no other attempt can follow.
    pub(super) fn is_response_committed(&self) -> bool {
        self.ending.client_status.is_some()
    }

    /// Whether the record is not yet submitted and nothing that still happens can change it. A tunnel's
    /// record is never final before the tunnel ends.
    pub(super) fn is_record_ready_to_submit(&self) -> bool {
        let is_complete = matches!(&self.response_state, ResponseState::Relayed(relayed) if relayed.is_complete_for_record());
        !self.ending.is_record_submitted
            && self.ending.client_status != Some(101)
            && (is_complete || self.ending.refusal_reason.is_some())
    }

    /// Submits the record for writing; later calls do nothing. The receipt tells when it is written.
    pub(super) fn submit_record(&mut self) -> Option<WriteReceipt> {
        if std::mem::replace(&mut self.ending.is_record_submitted, true) {
            return None;
        }
        let now = Instant::now();
        // Before the outcome, which the end of the response changes.
        let details = self.conclude_response(now);
        let outcome = self.ending.outcome();
        if let Some(retry) = &mut self.retry_state {
            retry.finish_attempt_at_request_end(self.ending.is_client_gone, now);
        }
        let gateway = Arc::clone(&self.config.gateway);
        let policy = gateway.capture_policy(self.request.client.as_deref());
        let exchange = self.build_finished_exchange(&gateway, policy, details, outcome, now);
        gateway.count_and_record(Box::new(exchange), policy)
    }

    /// Ends the request's count as in flight before its record is written: a Responses socket counts during its
    /// turns only.
    pub(super) fn leave_in_flight(&mut self) {
        if !std::mem::replace(&mut self.ending.has_left_in_flight, true) {
            self.config.gateway.on_request_finished();
        }
    }

    /// Submits the record if that has not been done, and ends the request's count as in flight. Later
    /// calls do nothing.
    pub(super) fn finish(&mut self) {
        if !std::mem::replace(&mut self.ending.is_finished, true) {
            drop(self.submit_record());
            self.leave_in_flight();
            self.config.gateway.wake_queue();
        }
    }

    /// Takes what the record needs from the response, and updates how the request ended.
    fn conclude_response(&mut self, now: Instant) -> ResponseDetails {
        let ResponseState::Relayed(relayed) = &mut self.response_state else {
            return ResponseDetails::default();
        };
        let (details, end) = relayed.take_details_and_end(now);
        // SDKs disconnect at the terminal event and do not wait for the end of the body. The response was
        // complete for them.
        self.ending.is_client_gone &= end != ResponseEnd::TerminalEvent;
        self.ending.has_response_failed |= end == ResponseEnd::Broken;
        details
    }

    /// Takes everything that the record needs out of the context.
    fn build_finished_exchange(
        &mut self,
        gateway: &Gateway,
        policy: CapturePolicy,
        details: ResponseDetails,
        outcome: ExchangeOutcome,
        now: Instant,
    ) -> FinishedExchange {
        let was_relayed = self.ending.client_status.is_some() && self.ending.refusal_reason.is_none();
        let answered_by = self
            .retry_state
            .as_ref()
            .filter(|_| was_relayed)
            .and_then(|retry| retry.current_or_last_target())
            .cloned();
        let backend = answered_by.as_ref().and_then(|target| gateway.backends.get(target.backend_index));
        let own_version = backend.and_then(|backend| backend.config.api_version_override.as_deref());
        let api_version = self.request.target.as_ref().and_then(|target| {
            let version = target
                .upstream_api_version(own_version, gateway.request_config.default_api_version.as_deref());
            version.map(Cow::into_owned)
        });
        let deployment = self.request.take_deployment();
        let spilled = answered_by.as_ref().and_then(|target| target.spilled);
        let was_spilled_by_azure = details.spilled_to.is_some();
        let affinity = self.retry_state.as_mut().and_then(RetryState::take_affinity_record);
        let attempts = self.retry_state.as_mut().map(RetryState::take_attempt_records);
        let mut reservation = self.reservation.take();
        if let Some(reservation) = &mut reservation {
            reservation.leave_in_flight(now);
        }
        let exceeded = reservation.as_ref().and_then(|reservation| reservation.exceeded());
        let limited_by =
            self.ending.limited_by.take().or_else(|| exceeded.map(|reached| reached.key.clone()));
        let mut exchange = FinishedExchange {
            received_at: self.request.received_at,
            request_id: Arc::clone(&self.request.id),
            socket_id: self.request.socket_id.clone(),
            client_headers: std::mem::take(&mut self.request.headers_for_record),
            own_trace_id: None,
            client: self.request.client.clone(),
            class: self.request.class,
            limited_by,
            reserved_tokens: reservation.as_ref().map(|reservation| reservation.tokens()),
            reservation,
            client_ip: self.request.client_ip,
            peer_ip: self.request.peer_ip,
            method: if self.request.socket_id.is_some() {
                WEBSOCKET_METHOD.to_owned()
            } else {
                self.request.method.to_string()
            },
            target: self.request.target.clone(),
            unparsed_path: self.request.unparsable_path.take(),
            api_version,
            is_deployment_known: deployment
                .as_ref()
                .is_some_and(|deployment| gateway.is_listed_or_learned_deployment(deployment)),
            balancer_overhead: self.overhead_clock.total_until_last_pause(),
            upstream_deployment: details.spilled_to.or_else(|| {
                answered_by.and_then(|target| target.upstream_deployment.or_else(|| deployment.clone()))
            }),
            // Calls without a deployment have a backend of their own, in whatever tier.
            spilled: spilled
                .filter(|_| deployment.is_some())
                .or(was_spilled_by_azure.then_some(SpillReason::Throttled)),
            was_spilled_by_azure,
            requested_deployment: deployment,
            is_stream_requested: self.request.wants_stream,
            client_status: self.ending.client_status,
            outcome,
            refusal_code: self.ending.refusal_reason.map(RefusalReason::code),
            answering_backend: backend.map(|backend| backend.config.name.clone()),
            region: details.region,
            apim_request_id: details.apim_request_id,
            affinity,
            cache: self.retry_state.as_ref().and_then(RetryState::cache_record),
            attempts: attempts.unwrap_or_default(),
            duration: now.saturating_duration_since(self.request.received_instant),
            queued: self.retry_state.as_ref().map_or(Duration::ZERO, |retry| retry.queued(now)),
            queue_charge: self.retry_state.as_mut().and_then(RetryState::take_queue_charge),
            waited: self.retry_state.as_ref().map_or(Duration::ZERO, |retry| retry.total_wait(now)),
            time_to_first_body_byte: self.ending.time_to_first_body_byte,
            request_bytes: self.body.is_fully_read().then_some(self.body.bytes_read),
            response_bytes: self.ending.response_bytes,
            captured_request: None,
            extracted_prompt: None,
            prompt_sample: None,
            usage_missing: None,
            shown_end: None,
            captured_response: details.captured_response,
            is_content_dropped: false,
        };
        let is_prompt_needed = policy.captures_prompt || exchange.needs_token_estimate(policy);
        exchange.captured_request = self.take_request(is_prompt_needed);
        exchange
    }

    /// Takes the request's body, and returns it if it is needed.
    fn take_request(&mut self, is_needed: bool) -> Option<CapturedRequest> {
        // This releases the body's memory. It happens before the end of the response is sent, because the
        // client may then send its next request, which needs the memory.
        let body = self.body.take_and_unreserve_held_bytes();
        let content_type = std::mem::take(&mut self.request.content_type);
        let prompt = || self.retry_state.as_ref().and_then(|retry| retry.admitted.prompt_parts()).cloned();
        (is_needed && !body.is_empty()).then(|| CapturedRequest {
            body,
            content_type,
            prompt_parts: prompt(),
        })
    }
}

impl Drop for RequestContext {
    /// A request whose task is cancelled still gets its record and no longer counts as in flight.
    fn drop(&mut self) {
        if !self.ending.is_record_submitted {
            self.ending.is_client_gone = self.ending.client_status.is_none();
        }
        self.finish();
    }
}
