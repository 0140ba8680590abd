//! The Pingora adapter: each phase of a request is a few lines around a call to the gateway, which makes
//! the decisions.
//!
//! `client/` is the downstream side, `attempt/` makes one attempt and handles its response, `upstream/`
//! is the backends' side. `framing/` checks HTTP/1.1 framing on both sides, `websocket/` reads frames.
//! `runner.rs` calls the phases.

mod active_config;
mod attempt;
pub mod client;
mod context;
mod ending;
mod error_types;
mod framing;
mod long_work;
mod overhead;
mod pending_bytes;
pub mod runner;
mod stream_wrapper;
pub(crate) mod timer;
pub mod upstream;
pub mod websocket;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::Method;
use log::debug;
use pingora::http::RequestHeader;
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, Result};

use self::attempt::final_response;
use self::attempt::next_backend::BackendStep;
use self::attempt::retry_state::RetryStep;
use self::attempt::upstream_error::{is_upload_error, upload_error_refusal};
use self::attempt::upstream_target::UpstreamTarget;
use self::client::admit::{self, Admission};
use self::client::body_memory::BodyMemory;
use self::client::client_request::ClientRequest;
use self::client::presence::{ensure_client_connected, wait_while_client_connected};
use self::client::request_body::BodyReadError;
use self::client::response_writer::{
    answer_models_request, drain_upload, record_and_write_response, refuse_request,
};
use self::client::{health, reset, tls};
use self::context::{PingoraContext, RequestContext};
use self::error_types::{
    ATTEMPTS_EXHAUSTED, BACKEND_STALLED, CLIENT_GONE, FIRST_BYTE_TIMEOUT, NO_CREDENTIAL,
    RESPONSE_IDLE_TIMEOUT, RETRY_ELSEWHERE,
};
use self::upstream::headers::{self, BodyFraming};
use self::upstream::trace_headers;
use crate::admission::client_ip::client_ip;
use crate::config::ListenerConfig;
use crate::record::client_headers::ClientHeaders;
use crate::refusal::RefusalReason;

pub use self::active_config::ActiveConfig;

/// The phases of a request. `runner.rs` calls them in the order of Pingora's own `HttpProxy`.
pub struct Balancer {
    /// The active configuration; a reload replaces it.
    active_config: Arc<ArcSwap<ActiveConfig>>,
    /// Shared by all requests, across reloads.
    body_memory: Arc<BodyMemory>,
}

impl Balancer {
    /// A balancer that loads the active configuration anew for each request.
    pub fn new(active_config: Arc<ArcSwap<ActiveConfig>>) -> Self {
        Self { active_config, body_memory: Arc::default() }
    }
}

#[async_trait]
impl ProxyHttp for Balancer {
    type CTX = PingoraContext;

    fn new_ctx(&self) -> PingoraContext {
        PingoraContext::default()
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {
        // Pingora's default adds its compression module. Here responses are relayed unchanged.
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut PingoraContext) -> Result<bool> {
        let config = self.active_config.load_full();
        if let Some(status) = health::health_check_status(session.req_header(), &config) {
            let is_draining = config.gateway.process_state.is_draining_connections.load(Ordering::Acquire);
            return health::respond_to_health_check(session, status, is_draining).await;
        }
        let mut context = Box::new(RequestContext::new(
            Arc::clone(&config),
            Arc::clone(&self.body_memory),
            session.req_header().method.clone(),
        ));
        fill_in_sender_details(session, ctx.http1_listener.take(), &config, &mut context.request);
        // Stored in `ctx` before anything is awaited: if the task is cancelled, it is dropped with it, which
        // still writes the record.
        let context = ctx.request_context.insert(context);
        match admit::admit_request(session, context).await {
            Ok(Admission::ForBackend) => {}
            Ok(Admission::ResponsesSocket) => {
                context.request.is_responses_socket = true;
                return Ok(false);
            }
            Ok(Admission::Answered(answer)) => {
                answer_models_request(session, context, &answer).await?;
                return Ok(true);
            }
            Err(BodyReadError::Refused(refusal)) => {
                refuse_request(session, context, &refusal).await?;
                return Ok(true);
            }
            Err(BodyReadError::RefusedWithClose(refusal)) => {
                if refusal.reason == RefusalReason::BadRequest {
                    context.gateway().count_malformed_request();
                }
                session.set_keepalive(None);
                refuse_request(session, context, &refusal).await?;
                return Ok(true);
            }
            Err(BodyReadError::ClientGone) => {
                context.ending.is_client_gone = true;
                return Err(Error::new(CLIENT_GONE).into_down());
            }
        }
        let now = Instant::now();
        // Answered here and not by `fail_to_proxy`, which closes the client's connection.
        if let Some(RetryStep::Exhausted) = context.retry_state.as_mut().map(|retry| retry.next_step(now)) {
            let tasks = final_response::prepare_best_response_or_refusal(context, now)?;
            record_and_write_response(session, context, tasks).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut PingoraContext) -> Result<Box<HttpPeer>> {
        let PingoraContext { connect_turn, request_context, .. } = ctx;
        let context = request_context.as_deref_mut().ok_or_else(|| Error::new(ATTEMPTS_EXHAUSTED))?;
        if context.retry_state.as_ref().is_some_and(|retry| retry.attempt_count() > 0) {
            ensure_client_connected(session, context).await?;
        }
        let is_upgrade = context.request.is_websocket_upgrade;
        loop {
            match context.next_backend(is_upgrade, Instant::now())? {
                BackendStep::Wait(mut wait) => {
                    wait_while_client_connected(session, context, wait.wait()).await?;
                    context.on_backend_wait_over(wait, Instant::now());
                }
                BackendStep::Connect(backend_index, peer) => {
                    // A connection that becomes a tunnel cannot be shared, so there is no reason to wait for one
                    // that another request is opening.
                    if !is_upgrade {
                        *connect_turn = context.config.peers.acquire_connect_turn(backend_index).await;
                    }
                    return Ok(peer);
                }
            }
        }
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        is_reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut PingoraContext,
    ) -> Result<()> {
        ctx.connect_turn = None;
        // The client is not polled while a connection is made. If it has disconnected meanwhile, the request
        // is not sent: Azure would bill an answer that nobody reads.
        if is_reused { Ok(()) } else { ensure_client_connected(session, require_request_context(ctx)?).await }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        ctx: &mut PingoraContext,
    ) -> Result<()> {
        let context = require_request_context(ctx)?;
        let config = Arc::clone(&context.config);
        let UpstreamTarget { backend_index, path_and_query, secret } = context.begin_upstream_request()?;
        let Some(backend) = config.gateway.backends.get(backend_index) else {
            return Err(Error::new(ATTEMPTS_EXHAUSTED));
        };
        // An upgrade is always sent over HTTP/1.1, so its connection does not show whether the backend
        // chooses HTTP/2.
        if !context.request.is_websocket_upgrade {
            config.peers.note_protocol(backend_index, head.version);
        }
        let framing = upstream_body_framing(context, context.body.unsent_bytes());
        let requests = &config.gateway.request_config;
        headers::rewrite_for_backend(head, backend, requests, path_and_query, &framing)?;
        let (name, secret) = secret;
        head.insert_header(name, secret.header_value.clone())?;
        trace_headers::set_trace_headers(head, &session.req_header().headers, context)?;
        context.attempt_secret = Some(secret);
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut PingoraContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        ctx.connect_turn = None;
        if let Some(context) = &mut ctx.request_context {
            let retries = context.on_connect_failed(&error, Instant::now());
            error.set_retry(retries);
        }
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        _session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut PingoraContext,
        is_reused: bool,
    ) -> Box<Error> {
        if let Some(context) = &mut ctx.request_context {
            let retries = context.on_exchange_failed(&mut error, is_reused, Instant::now());
            error.set_retry(retries);
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut PingoraContext,
    ) -> FailToProxy {
        let no_response = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let Some(context) = &mut ctx.request_context else { return no_response };
        let is_own_error = matches!(
            *error.etype(),
            ATTEMPTS_EXHAUSTED
                | NO_CREDENTIAL
                | FIRST_BYTE_TIMEOUT
                | RESPONSE_IDLE_TIMEOUT
                | BACKEND_STALLED
                | RETRY_ELSEWHERE
        );
        if !is_own_error && *error.esource() == ErrorSource::Downstream && !is_upload_error(error) {
            context.ending.is_client_gone = true;
        }
        let tasks = match () {
            () if context.is_response_committed() => {
                context.ending.has_response_failed |= !context.ending.is_client_gone;
                // An HTTP/1.0 client takes a close for the end of the body, but not a reset. All others see
                // that the last chunk or the end of the HTTP/2 stream is missing.
                if !context.request.accepts_chunked_response
                    && let Some(stream) = session.stream()
                    && let Err(error) = reset::enable_reset_on_close(stream)
                {
                    debug!(
                        "cannot reset the connection of an HTTP/1.0 client, to which the incomplete response \
                         looks complete: {error}"
                    );
                }
                return no_response;
            }
            () if context.ending.is_client_gone => return no_response,
            () if is_upload_error(error) => {
                let refusal = upload_error_refusal(error);
                if refusal.reason == RefusalReason::BadRequest {
                    context.gateway().count_malformed_request();
                }
                final_response::prepare_refusal(context, &refusal)
            }
            () => final_response::prepare_best_response_or_refusal(context, Instant::now()),
        };
        // While it waited in vain, nothing has happened to the client's connection.
        let can_reuse_downstream =
            *error.etype() == ATTEMPTS_EXHAUSTED && session.is_body_done() && !context.has_pipelined_bytes;
        if !can_reuse_downstream {
            // Before the head is written, because this decides about its `connection` field.
            session.set_keepalive(None);
        }
        if let Ok(tasks) = tasks
            && record_and_write_response(session, context, tasks).await.is_err()
        {
            context.ending.is_client_gone = true;
            return no_response;
        }
        drain_upload(session).await;
        FailToProxy { error_code: context.ending.client_status.unwrap_or(0), can_reuse_downstream }
    }

    async fn logging(&self, _session: &mut Session, _error: Option<&Error>, ctx: &mut PingoraContext) {
        if let Some(context) = &mut ctx.request_context {
            context.finish();
        }
    }
}

/// The context of a request that is not a health check.
fn require_request_context(ctx: &mut PingoraContext) -> Result<&mut RequestContext> {
    ctx.request_context.as_deref_mut().ok_or_else(|| Error::new(ATTEMPTS_EXHAUSTED))
}

/// Fills in the addresses and the certificate that a request came with, and what its header fields tell the
/// record.
fn fill_in_sender_details(
    session: &Session,
    listener: Option<Arc<ListenerConfig>>,
    config: &ActiveConfig,
    request: &mut ClientRequest,
) {
    request.peer_ip =
        session.client_addr().and_then(|address| address.as_inet()).map(std::net::SocketAddr::ip);
    // The streams of an HTTP/2 connection come without a listener; the TLS handshake has stored it.
    let tls_info = tls::tls_connection_info(session.digest());
    let listener = listener.or_else(|| tls_info.and_then(|info| info.listener.clone()));
    request.certificate_subject = tls_info.and_then(|info| info.certificate_subject.clone());
    let keeps_record = config.gateway.keeps_records();
    if keeps_record || config.gateway.traces_config().is_some() {
        request.headers_for_record = ClientHeaders::read(&session.req_header().headers, keeps_record);
    }
    request.client_ip = request.peer_ip.map(|peer| {
        let trusted = listener.as_ref().map_or(&[][..], |listener| config.trusted_proxies(listener));
        client_ip(peer, &session.req_header().headers, trusted)
    });
}

/// How the request's body is framed towards the backend. `held_length` is the length in bytes of what is
/// held of it, after edits.
fn upstream_body_framing(context: &RequestContext, held_length: usize) -> BodyFraming {
    match context.body.max_streamed_upload_bytes {
        Some(_) => context.body.declared_length.map_or(BodyFraming::Chunked, BodyFraming::Length),
        None if held_length == 0
            && matches!(context.request.method, Method::GET | Method::HEAD | Method::DELETE) =>
        {
            BodyFraming::None
        }
        None => BodyFraming::Length(held_length as u64),
    }
}
