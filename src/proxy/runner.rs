//! Calls the phases of the balancer for each request. Sessions, connectors, TLS and HTTP are Pingora's.
//!
//! Pingora has a runner of its own, `HttpProxy`. It copies the request head for each attempt, passes every
//! part of both bodies through a channel, and can send a request body again only up to 64 KiB. With this
//! runner a short request takes a fifth to a quarter less CPU time and an idle stream a fifth less memory
//! (`make bench`), and requests of any size can fail over.
//!
//! This runner has to do for HTTP whatever `HttpProxy` does. The list was checked against pingora-proxy
//! 0.9.1 (`lib.rs`, `proxy_h1.rs`, `proxy_h2.rs`); the tests are in `tests/integration/`:
//!
//! | obligation | implemented in | tested by |
//! | --- | --- | --- |
//! | a malformed head gets 400, CONNECT 405, and the connection closes | `client/connection.rs`, `gateway` | `admission`: `ambiguous_http_requests_are_rejected`, `refusals_are_checked_in_order_…` |
//! | interim responses (1xx) are not final; none is relayed, because the client has already sent its body | `attempt/response_handler.rs` | `http1_semantics`: `interim_responses_…` |
//! | a 101 is accepted only for an upgrade request; then bytes are relayed both ways until both sides have closed | `attempt/response_handler.rs`, `attempt/tunnel.rs` | `http1_semantics`: `a_101_that_nobody_asked_for_…`, `an_upgrade_to_another_protocol_…`; `rewriting`: `websockets_are_tunnelled_…` |
//! | HEAD, 204 and 304 have no body and no chunked framing | `attempt/exchange.rs` | `rewriting`: `…bodyless_responses_stay_bodyless`; `http1_semantics`: `a_304_…` |
//! | a body without a length is chunked for the client; an incomplete body does not look complete | `attempt/exchange.rs` | `http1_semantics`: `a_response_that_ends_with_its_connection_…`; `streaming`: `a_broken_stream_is_visibly_broken_…`; `http2`: `a_broken_response_resets_its_stream` |
//! | a chunked body or a response head that two parsers could understand differently is malformed | `framing/` | `framing` |
//! | trailers end a body | `attempt/exchange.rs` | `http1_semantics`: `a_body_with_trailers_…` |
//! | `Expect: 100-continue` is answered before the body is read | `client/request_body.rs` | `request_bodies`: `chunked_bodies_and_expect_100_continue_fail_over` |
//! | a response that begins before the upload has ended reaches the client | `attempt/exchange.rs`, `client/response_writer.rs` | `http1_semantics`: `a_response_before_the_end_of_an_upload_…` |
//! | a backend's connection is reused only if request and response are complete | `upstream/connection.rs` | `connections`; `http1_semantics`: `a_connection_whose_request_was_not_sent_whole_…` |
//! | a client's connection is reused after a complete response and closed after a failure | here, `mod.rs` | `http1_semantics`: `a_connection_survives_relayed_errors_…` |
//! | bytes that the client sends after its request do not end the response | `client/presence.rs` | `hardening`: `pipelined_bytes_…` |
//! | a client's disconnect cancels its request, also between attempts | `client/presence.rs` | `streaming`: `a_client_disconnect_…`; `http2`: `a_stream_reset_by_the_client_…` |
//! | at shutdown idle connections are closed and requests are finished | `client/connection.rs` | `cli`: `sigterm_fails_readiness_…`; `upgrade`; `http2`: `a_shutdown_finishes_…` |
//! | errors are attributed to the side that failed; only the backend's lead to another attempt | `mod.rs` | `retry`, `failover`, `streaming` |
//! | a backend that negotiates HTTP/2 but does not speak it correctly gets HTTP/1.1 from then on | `upstream/connection.rs` | `http2`: `an_http_2_backend_behaves_like_an_http_1_backend` |
//!
//! `HttpProxy` also has caching, compression, modules and subrequests; none of them is used here.

use std::io::Cursor;
use std::sync::Arc;

use async_trait::async_trait;
use http::Version;
use log::debug;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::time::timeout;

use super::attempt::exchange::AttemptExchange;
use super::client::body_memory::{BodyMemory, MemoryReservation};
use super::client::response_writer::drain_upload;
use super::client::stream::http2_unread::MAX_HTTP2_SEND_BUFFER_BYTES;
use super::client::timeouts::{CLIENT_IDLE_TIMEOUT, LAST_BYTES_TIMEOUT};
use super::context::PingoraContext;
use super::timer::Timer;
use super::upstream::connection::{
    RequestBodyAvailability, UpstreamConnection, UpstreamConnector, move_host_to_http2_authority,
};
use super::upstream::headers;
use super::websocket::responses::{IdleSocketLimit, SocketServices, open_responses_socket};
use super::{Balancer, require_request_context};
use crate::config::ListenerConfig;
use crate::names::Caller;

/// The largest head of an HTTP/2 request that h2 decodes (RFC 9113, section 6.5.2). Those that are too large for
/// `client/head.rs` are refused there, with a message; of larger ones h2 says only 431.
const MAX_DECODED_HTTP2_HEAD_BYTES: u32 = 256 * 1024;

/// Runs requests through the phases of the balancer. All listeners share one runner, and with it the
/// connections to backends.
pub struct Runner {
    balancer: Balancer,
    connector: Arc<UpstreamConnector>,
    idle_socket_limit: Arc<IdleSocketLimit>,
    /// Read by Pingora for HTTP/2 connections.
    http2_options: HttpServerOptions,
}

impl Runner {
    /// A runner for this balancer. `server` has the settings of the pool of backend connections; so many WebSockets to
    /// backends are kept while they serve no turn.
    pub fn new(balancer: Balancer, server: &ServerConf, max_idle_sockets: usize) -> Self {
        let mut http2_options = HttpServerOptions::default();
        http2_options.h2_idle_timeout = Some(CLIENT_IDLE_TIMEOUT);
        let idle_socket_limit = Arc::new(IdleSocketLimit::new(max_idle_sockets));
        let connector = Arc::new(UpstreamConnector::new(server));
        Self { balancer, connector, idle_socket_limit, http2_options }
    }

    /// A reservation of the memory that all requests share.
    pub(super) fn empty_memory_reservation(&self, holder: Caller) -> MemoryReservation {
        let config = self.balancer.active_config.load();
        let max_total_bytes = config.gateway.request_config.max_total_buffered_bytes;
        BodyMemory::empty_reservation(&self.balancer.body_memory, holder, max_total_bytes)
    }

    /// Serves one request; returns its connection if it is HTTP/1.1 and another request can follow.
    pub(super) async fn serve_request(
        &self,
        mut session: Session,
        listener: Option<Arc<ListenerConfig>>,
        timer: &mut Timer,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                debug!("cannot read a request: {error}");
                if *error.etype() == ErrorType::InvalidHTTPHeader {
                    let _ = timeout(LAST_BYTES_TIMEOUT, session.respond_error(400)).await;
                }
                let _ = timeout(LAST_BYTES_TIMEOUT, session.shutdown()).await;
                return None;
            }
        }
        // After `read_request`, which sets keep-alive by the request's `connection` field.
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let mut ctx = self.balancer.new_ctx();
        ctx.http1_listener = listener;
        let served = self.run_phases(&mut session, &mut ctx, timer).await;
        // First, so that the request no longer counts as in flight when the client sends the next one.
        self.balancer.logging(&mut session, served.as_ref().err().map(|error| &**error), &mut ctx).await;
        served.ok()?;
        if ctx.is_tunnel() {
            return None;
        }
        let finished = timeout(LAST_BYTES_TIMEOUT, session.downstream_session.finish()).await.ok()?;
        let (stream, _) = finished.ok()??.into_parts();
        Some(stream)
    }

    /// Runs the phases of a request, from its head to the end of its response.
    ///
    /// # Errors
    /// If the client's connection has to be closed.
    async fn run_phases(
        &self,
        session: &mut Session,
        ctx: &mut PingoraContext,
        timer: &mut Timer,
    ) -> Result<()> {
        let error = match self.balancer.request_filter(session, ctx).await {
            Ok(true) => return Ok(()),
            Ok(false) if ctx.opens_responses_socket() => {
                return self.run_responses_socket(session, ctx, timer).await;
            }
            Ok(false) => loop {
                match self.run_attempt(session, ctx, timer).await {
                    Ok(()) if ctx.is_tunnel() => return Ok(()),
                    Ok(()) => {
                        drain_upload(session).await;
                        return Ok(());
                    }
                    Err(error) if error.retry() => {}
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        match self.balancer.fail_to_proxy(session, &error, ctx).await {
            FailToProxy { can_reuse_downstream: true, .. } => Ok(()),
            _ => Err(error),
        }
    }

    /// Runs a Responses socket to its end.
    ///
    /// # Errors
    /// If the client is lost before it has the answer to its handshake.
    async fn run_responses_socket(
        &self,
        session: &mut Session,
        ctx: &mut PingoraContext,
        timer: &mut Timer,
    ) -> Result<()> {
        let services = SocketServices {
            connector: Arc::clone(&self.connector),
            active_config: Arc::clone(&self.balancer.active_config),
            body_memory: Arc::clone(&self.balancer.body_memory),
            idle_socket_limit: Arc::clone(&self.idle_socket_limit),
        };
        let context = require_request_context(ctx)?;
        // Boxed, so that the future of an ordinary request does not have room for it.
        Box::pin(open_responses_socket(services, session.as_downstream_mut(), context, timer)).await
    }

    /// Makes one attempt: chooses a backend, connects to it and exchanges request and response.
    ///
    /// # Errors
    /// If the client got no complete response; `error.retry()` says whether another attempt follows.
    async fn run_attempt(
        &self,
        session: &mut Session,
        ctx: &mut PingoraContext,
        timer: &mut Timer,
    ) -> Result<()> {
        // An error of this phase is final: it has considered every backend, or the client has disconnected.
        let peer = self.balancer.upstream_peer(session, ctx).await.map_err(|mut error| {
            error.set_retry(false);
            error
        })?;
        // Pingora's timeouts are for TCP and TLS; this is for opening a stream of an HTTP/2 connection as well.
        let limit = peer.options.total_connection_timeout.unwrap_or(LAST_BYTES_TIMEOUT);
        let connected = timeout(limit, self.connector.reuse_or_connect(&peer)).await;
        let mut upstream = connected
            .unwrap_or_else(|_| Error::e_explain(ErrorType::ConnectTimedout, "no connection in time"))
            .map_err(|error| self.balancer.fail_to_connect(session, &peer, ctx, error.into_up()))?;
        let is_reused = upstream.is_reused;
        let exchanged = self.run_exchange(session, ctx, &peer, &mut upstream, timer).await;
        // After an error as well: the connection is kept if the response was complete, such as a 429 that
        // leads to another attempt, or if it is an HTTP/2 connection, which other requests share.
        self.connector.release(upstream, &peer).await;
        exchanged.map_err(|error| {
            self.connector.downgrade_if_http2_error(&error, &peer);
            self.balancer.error_while_proxy(&peer, session, error, ctx, is_reused)
        })
    }

    /// Sends the request on this connection and relays the response to the client.
    async fn run_exchange(
        &self,
        session: &mut Session,
        ctx: &mut PingoraContext,
        peer: &HttpPeer,
        upstream: &mut UpstreamConnection,
        timer: &mut Timer,
    ) -> Result<()> {
        let (is_reused, version) = (upstream.is_reused, upstream.version());
        self.balancer.connected_to_upstream(session, is_reused, peer, upstream.fd(), None, ctx).await?;
        let mut head = Box::new(headers::forwardable_head(
            session.req_header(),
            require_request_context(ctx)?.request.is_websocket_upgrade,
        )?);
        // Before the filter, which frames the body and records the backend's protocol by this version.
        head.set_version(version);
        self.balancer.upstream_request_filter(session, &mut head, ctx).await?;
        // After the filter, which sets `host` and the path.
        if version == Version::HTTP_2 {
            move_host_to_http2_authority(&mut head, peer.is_tls())?;
        }
        let context = require_request_context(ctx)?;
        let body = match (context.body.unsent_pieces.is_empty(), context.body.max_streamed_upload_bytes) {
            (false, _) => RequestBodyAvailability::Ready,
            (true, Some(_)) => RequestBodyAvailability::Later,
            (true, None) => RequestBodyAvailability::None,
        };
        upstream.send_head(head, body).await.map_err(Error::into_up)?;
        AttemptExchange::new(session.as_downstream_mut(), context, upstream).run(timer).await
    }
}

/// Pingora calls this for each stream of an HTTP/2 connection. HTTP/1.1 connections are handled by
/// `client/connection.rs`.
#[async_trait]
impl HttpServerApp for Runner {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        // The phases take pingora-proxy's `Session`, whose public constructors only wrap an HTTP/1.1
        // connection. So this one is made from an empty connection, then its inner session is replaced.
        let mut proxy_session = Session::new_h1(Box::new(Cursor::new(Vec::new())));
        *proxy_session.downstream_session = session;
        let mut timer = Timer::default();
        let stream = self.serve_request(proxy_session, None, &mut timer, shutdown).await;
        stream.map(|stream| ReusedHttpStream::new(stream, None))
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = default_h2_options();
        options.max_send_buffer_size(MAX_HTTP2_SEND_BUFFER_BYTES);
        options.max_header_list_size(MAX_DECODED_HTTP2_HEAD_BYTES);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.http2_options)
    }
}
