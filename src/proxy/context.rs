//! What one request carries from phase to phase: its parts, each with methods of its own, and how it
//! is settled at the end. What happens to a response is `attempt/response_handler.rs`'s business.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::Method;

use super::active_config::ActiveConfig;
use super::attempt::deadline::{AttemptDeadline, DeadlineAction};
use super::attempt::relayed_response::{ResponseDetails, ResponseEnd};
use super::attempt::response_state::ResponseState;
use super::attempt::retry_state::RetryState;
use super::attempt::upstream_error::UpstreamError;
use super::client::body_memory::BodyMemory;
use super::client::client_request::ClientRequest;
use super::client::request_body::RequestBody;
use super::ending::RequestEnding;
use super::overhead::OverheadClock;
use super::upstream::peer::ConnectTurn;
use crate::config::ListenerConfig;
use crate::gateway::Gateway;
use crate::record::exchange::{CapturePolicy, CapturedRequest, ExchangeOutcome, FinishedExchange};
use crate::record::writer::WriteReceipt;
use crate::refusal::{Refusal, RefusalReason};

/// Pingora's context of one request.
#[derive(Default)]
pub struct PingoraContext {
    /// The listener that the request came through, where no TLS connection knows it.
    pub(super) listener: Option<Arc<ListenerConfig>>,
    /// Held while a connection is looked for.
    pub(super) connect_turn: Option<ConnectTurn>,
    /// `None` for health checks.
    pub(super) request: Option<Box<RequestContext>>,
}

/// Everything about one request. It is counted as in flight for as long as this lives.
pub(super) struct RequestContext {
    pub(super) config: Arc<ActiveConfig>,
    /// Who asks, and what for.
    pub(super) request: ClientRequest,
    pub(super) body: RequestBody,
    /// Memory for held bodies and streams.
    pub(super) memory: Arc<BodyMemory>,
    /// The attempts, once the request is admitted.
    pub(super) retry: Option<RetryState>,
    /// The response of the current attempt.
    pub(super) response: ResponseState,
    /// Until when the current attempt may be silent.
    pub(super) deadline: Option<AttemptDeadline>,
    /// The client has sent something after its request; its connection is not polled any more.
    pub(super) has_pipelined: bool,
    pub(super) overhead: OverheadClock,
    pub(super) ending: RequestEnding,
}

impl RequestContext {
    /// The context of a request whose head is complete.
    pub(super) fn new(config: Arc<ActiveConfig>, memory: Arc<BodyMemory>, method: Method) -> Self {
        config.gateway.process.requests_in_flight.fetch_add(1, Ordering::AcqRel);
        Self {
            config,
            request: ClientRequest::new(method),
            body: RequestBody::default(),
            memory,
            retry: None,
            response: ResponseState::Awaited,
            deadline: None,
            has_pipelined: false,
            overhead: OverheadClock::started(Instant::now()),
            ending: RequestEnding::default(),
        }
    }

    pub(super) fn gateway(&self) -> &Gateway {
        &self.config.gateway
    }

    /// Records that the client gets a refusal of the balancer.
    pub(super) fn note_refusal(&mut self, refusal: &Refusal) {
        self.overhead.pause(Instant::now());
        self.ending.status = Some(refusal.reason.status());
        self.ending.refusal = Some(refusal.reason);
    }

    /// Records that the current attempt has been sent whole: from here on the backend has
    /// `timeouts.first_byte` for its response head.
    pub(super) fn on_request_sent(&mut self, now: Instant) {
        if let (ResponseState::Awaited, None, Some(retry)) = (&self.response, &self.deadline, &self.retry)
            && retry.has_current_attempt()
        {
            retry.on_request_sent(now);
            let timeouts = &self.config.gateway.timeouts;
            let is_stream = retry.admitted.wants_stream == Some(true);
            let timeout = if is_stream { timeouts.first_byte_of_stream } else { timeouts.first_byte };
            let action = DeadlineAction::GiveUp(UpstreamError::FirstByteTimeout);
            self.deadline = Some(AttemptDeadline { at: now + timeout, action });
        }
    }

    /// From here on the backend may be silent for `timeouts.idle`.
    pub(super) fn restart_idle_deadline(&mut self, now: Instant) {
        let at = now + self.gateway().timeouts.response_idle;
        self.deadline =
            Some(AttemptDeadline { at, action: DeadlineAction::GiveUp(UpstreamError::IdleTimeout) });
    }

    /// Records that the current attempt ended without a response; returns whether another follows.
    /// `is_stale` says that its pooled connection had ended before the request arrived.
    pub(super) fn on_attempt_failed(&mut self, error: UpstreamError, is_stale: bool, now: Instant) -> bool {
        let can_replay = !self.body.is_consumed && !self.is_committed();
        self.retry.as_mut().is_some_and(|retry| retry.on_attempt_failed(error, is_stale, can_replay, now))
    }

    /// Whether the client has been shown a final response head, so that no other attempt can follow.
    pub(super) fn is_committed(&self) -> bool {
        self.ending.status.is_some()
    }

    /// Whether nothing that still comes can change the record.
    pub(super) fn is_ready_to_settle(&self) -> bool {
        let is_complete = matches!(&self.response, ResponseState::Relayed(relayed) if relayed.is_complete());
        !self.ending.is_settled
            && self.ending.status != Some(101)
            && (is_complete || self.ending.refusal.is_some())
    }

    /// Hands the record over, once; the receipt tells when it is written. Later calls do nothing.
    pub(super) fn settle(&mut self) -> Option<WriteReceipt> {
        if std::mem::replace(&mut self.ending.is_settled, true) {
            return None;
        }
        let now = Instant::now();
        let details = self.take_response_details();
        let outcome = self.ending.outcome();
        if let Some(retry) = &mut self.retry {
            retry.close(self.ending.client_gone, now);
        }
        let gateway = Arc::clone(&self.config.gateway);
        let policy = gateway.capture_policy(self.request.client.as_deref());
        let exchange = self.finished_exchange(&gateway, policy, details, outcome, now);
        gateway.record_exchange(Box::new(exchange), policy)
    }

    /// The request is no longer in flight: the client has all that it gets.
    pub(super) fn leave(&mut self) {
        if !std::mem::replace(&mut self.ending.has_left, true) {
            drop(self.settle());
            self.config.gateway.on_request_finished();
        }
    }

    /// What the record needs of the response; its end decides about the request's.
    fn take_response_details(&mut self) -> ResponseDetails {
        let ResponseState::Relayed(relayed) = &mut self.response else { return ResponseDetails::default() };
        let (details, end) = relayed.take_details();
        // SDKs disconnect on the terminal event, before the end of the body: that is a whole answer.
        self.ending.client_gone &= end != ResponseEnd::TerminalEvent;
        self.ending.failed |= end == ResponseEnd::Broken;
        details
    }

    /// Takes everything that the record needs out of the context.
    fn finished_exchange(
        &mut self,
        gateway: &Gateway,
        policy: CapturePolicy,
        details: ResponseDetails,
        outcome: ExchangeOutcome,
        now: Instant,
    ) -> FinishedExchange {
        let was_relayed = self.ending.status.is_some() && self.ending.refusal.is_none();
        let answered_by =
            self.retry.as_ref().filter(|_| was_relayed).and_then(|retry| retry.last_target()).cloned();
        let backend = answered_by.as_ref().and_then(|target| gateway.backends.get(target.backend));
        let own_version = backend.and_then(|backend| backend.config.api_version_override.as_deref());
        let api_version = self.request.target.as_ref().and_then(|target| {
            let version = target
                .upstream_api_version(own_version, gateway.request_config.default_api_version.as_deref());
            version.map(Cow::into_owned)
        });
        let deployment = self.request.take_deployment();
        let attempts = self.retry.as_mut().map(RetryState::take_attempts);
        FinishedExchange {
            received_at: self.request.time,
            request_id: Arc::clone(&self.request.id),
            client: self.request.client.clone(),
            client_ip: self.request.client_ip,
            peer_ip: self.request.peer_ip,
            method: self.request.method.to_string(),
            target: self.request.target.clone(),
            raw_path: self.request.unparsed_path.take(),
            api_version,
            is_known_deployment: deployment
                .as_ref()
                .is_some_and(|deployment| gateway.knows_deployment(deployment)),
            balancer_overhead: self.overhead.total(),
            upstream_deployment: details.spilled_to.or_else(|| {
                answered_by.and_then(|target| target.upstream_deployment.or_else(|| deployment.clone()))
            }),
            deployment,
            is_stream_requested: self.request.stream,
            client_status: self.ending.status,
            outcome,
            refusal_code: self.ending.refusal.map(RefusalReason::code),
            backend: backend.map(|backend| backend.config.name.clone()),
            region: details.region,
            apim_request_id: details.apim_request_id,
            attempts: attempts.unwrap_or_default(),
            duration: now.saturating_duration_since(self.request.arrival),
            time_to_first_byte: self.ending.first_byte,
            request_bytes: self.body.is_complete().then_some(self.body.bytes_read),
            response_bytes: self.ending.response_bytes,
            captured_request: self.capture_request(policy, outcome),
            extracted_prompt: None,
            captured_response: details.captured,
            is_content_dropped: false,
        }
    }

    /// The request's body, if its prompt is recorded or its tokens may have to be estimated.
    fn capture_request(
        &mut self,
        policy: CapturePolicy,
        outcome: ExchangeOutcome,
    ) -> Option<CapturedRequest> {
        // The memory is given back before the client has the end of its answer and may send the
        // next request.
        let body = self.body.take_held();
        let content_type = std::mem::take(&mut self.request.content_type);
        let may_estimate = policy.estimates_tokens
            && matches!(outcome, ExchangeOutcome::ClientGone | ExchangeOutcome::Failed);
        let prompt = || self.retry.as_ref().and_then(|retry| retry.admitted.prompt_parts()).cloned();
        ((policy.captures_prompt || may_estimate) && !body.is_empty()).then(|| CapturedRequest {
            body,
            content_type,
            prompt_parts: prompt(),
        })
    }
}

impl Drop for RequestContext {
    /// A request whose task was cancelled still has its record and leaves the count.
    fn drop(&mut self) {
        if !self.ending.is_settled {
            self.ending.client_gone = self.ending.status.is_none();
        }
        self.leave();
    }
}
