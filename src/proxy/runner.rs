//! Calls the phases of the balancer for each request. Sessions, connectors, TLS and HTTP are Pingora's.
//!
//! Pingora has a runner of its own, `HttpProxy`. It copies request heads for every phase, passes each part
//! of a body through a channel between its two halves, and can only send a body again that has at most
//! 64 KiB. Without it a short request takes a fifth to a quarter less CPU time and an idle stream a fifth
//! less memory (`make bench`), and bodies of any size can fail over.
//!
//! What `HttpProxy` owes to HTTP, this runner owes as well. Checked against pingora-proxy 0.9.1, `lib.rs`,
//! `proxy_h1.rs` and `proxy_h2.rs`; tests are in `tests/`:
//!
//! | obligation | done by | tested by |
//! | --- | --- | --- |
//! | a malformed head gets 400, CONNECT 405, and the connection closes | `client/connection.rs`, `gateway` | `admission`: `ambiguous_http_requests_are_rejected`, `refusals_are_checked_in_order_…` |
//! | interim responses (1xx) are not final; none is passed on, since the body has been read already | `attempt/response_handler.rs` | `http1_semantics`: `interim_responses_…` |
//! | a 101 needs a request for it; then bytes pass both ways until one side closes | `attempt/response_handler.rs`, `attempt/exchange.rs` | `http1_semantics`: `a_101_that_nobody_asked_for_…`; `rewriting`: `websockets_are_tunnelled_…` |
//! | HEAD, 204 and 304 have no body and no chunked framing | `attempt/exchange.rs` | `rewriting`: `…bodyless_responses_stay_bodyless`; `http1_semantics`: `a_304_…` |
//! | a body without a length is chunked for the client; a break is no end | `attempt/exchange.rs` | `http1_semantics`: `a_response_that_ends_with_its_connection_…`; `streaming`: `a_broken_stream_is_visibly_broken_…`; `http2`: `a_broken_response_resets_its_stream` |
//! | trailers end a body | `attempt/exchange.rs` | `http1_semantics`: `a_body_with_trailers_…` |
//! | `Expect: 100-continue` is answered before the body is read | `client/request_body.rs` | `request_bodies`: `chunked_bodies_and_expect_100_continue_fail_over` |
//! | a response before the end of an upload reaches the client | `attempt/exchange.rs`, `client/response_writer.rs` | `http1_semantics`: `a_response_before_the_end_of_an_upload_…` |
//! | a backend's connection is reused only if request and response are complete | `upstream/connection.rs` | `connections`; `http1_semantics`: `a_connection_whose_request_was_not_sent_whole_…` |
//! | a client's connection is reused after a whole response and closed after a failure | here, `mod.rs` | `http1_semantics`: `a_connection_survives_relayed_errors_…` |
//! | bytes after a request do not disturb its response | `client/presence.rs` | `hardening`: `pipelined_bytes_…` |
//! | a client that disconnects cancels its request, also between attempts | `client/presence.rs` | `streaming`: `a_client_disconnect_…`; `http2`: `a_stream_reset_by_the_client_…` |
//! | a process that stops closes idle connections and finishes requests | `client/connection.rs` | `cli`: `sigterm_fails_readiness_…`; `upgrade`; `http2`: `a_shutdown_finishes_…` |
//! | errors say which side failed: only the backend's lead to another attempt | `mod.rs` | `retry`, `failover`, `streaming` |
//! | a peer that does not really speak HTTP/2 is asked over HTTP/1.1 from then on | `upstream/connection.rs` | `http2`: `an_http_2_backend_behaves_like_an_http_1_backend` |
//!
//! `HttpProxy` also caches, compresses, runs modules and spawns subrequests; none of that is used here.

use std::io::Cursor;
use std::sync::Arc;

use async_trait::async_trait;
use http::Version;
use log::debug;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{ProxyHttp, Session};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use super::attempt::exchange::AttemptExchange;
use super::client::response_writer::drain_upload;
use super::client::timeouts::IDLE_TIMEOUT;
use super::context::PingoraContext;
use super::timer::Timer;
use super::upstream::connection::{
    BodyAvailability, UpstreamConnection, UpstreamConnector, set_http2_authority,
};
use super::upstream::headers;
use super::{Balancer, request_context};
use crate::config::ListenerConfig;

/// The balancer and its connections to backends, shared by all listeners.
pub struct Runner {
    balancer: Balancer,
    connector: UpstreamConnector,
    options: HttpServerOptions,
}

impl Runner {
    /// A runner of this balancer.
    pub fn new(balancer: Balancer, server: &ServerConf) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(IDLE_TIMEOUT);
        Self { balancer, connector: UpstreamConnector::new(server), options }
    }

    /// Serves one request; returns its connection if another request can follow on it.
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
            Err(problem) => {
                debug!("not a request: {problem}");
                if *problem.etype() == ErrorType::InvalidHTTPHeader {
                    let _ = session.respond_error(400).await;
                }
                session.shutdown().await;
                return None;
            }
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let mut ctx = self.balancer.new_ctx();
        ctx.listener = listener;
        let served = self.run_phases(&mut session, &mut ctx, timer).await;
        self.balancer.logging(&mut session, served.as_ref().err().map(|error| &**error), &mut ctx).await;
        served.ok()?;
        let (stream, _) = session.downstream_session.finish().await.ok()??.into_parts();
        Some(stream)
    }

    /// Runs the phases, from the head of a request to the end of its response.
    ///
    /// # Errors
    /// When the client's connection has to be closed.
    async fn run_phases(
        &self,
        session: &mut Session,
        ctx: &mut PingoraContext,
        timer: &mut Timer,
    ) -> Result<()> {
        let error = match self.balancer.request_filter(session, ctx).await {
            Ok(true) => return Ok(()),
            Ok(false) => loop {
                match self.run_attempt(session, ctx, timer).await {
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
        self.balancer.fail_to_proxy(session, &error, ctx).await;
        Err(error)
    }

    /// Makes one attempt.
    ///
    /// # Errors
    /// When it ended without a whole response; the error says whether another attempt follows.
    async fn run_attempt(
        &self,
        session: &mut Session,
        ctx: &mut PingoraContext,
        timer: &mut Timer,
    ) -> Result<()> {
        let peer = self.balancer.upstream_peer(session, ctx).await.map_err(|mut error| {
            error.set_retry(false);
            error
        })?;
        let mut upstream = self
            .connector
            .connect(&peer)
            .await
            .map_err(|error| self.balancer.fail_to_connect(session, &peer, ctx, error.into_up()))?;
        let is_reused = upstream.reused;
        let exchanged = self.run_exchange(session, ctx, &peer, &mut upstream, timer).await;
        self.connector.release(upstream, &peer).await;
        exchanged.map_err(|error| {
            self.connector.note_protocol_error(&error, &peer);
            self.balancer.error_while_proxy(&peer, session, error, ctx, is_reused)
        })
    }

    /// Sends the request on this connection and passes the response on.
    async fn run_exchange(
        &self,
        session: &mut Session,
        ctx: &mut PingoraContext,
        peer: &HttpPeer,
        upstream: &mut UpstreamConnection,
        timer: &mut Timer,
    ) -> Result<()> {
        let (reused, version) = (upstream.reused, upstream.version());
        self.balancer.connected_to_upstream(session, reused, peer, upstream.fd(), None, ctx).await?;
        let mut head = Box::new(headers::forwardable_head(
            session.req_header(),
            request_context(ctx)?.request.is_upgrade,
        )?);
        head.set_version(version);
        self.balancer.upstream_request_filter(session, &mut head, ctx).await?;
        if version == Version::HTTP_2 {
            set_http2_authority(&mut head, peer.is_tls())?;
        }
        let context = request_context(ctx)?;
        let body = match (context.body.unsent.is_empty(), context.body.streaming_limit) {
            (false, _) => BodyAvailability::Ready,
            (true, Some(_)) => BodyAvailability::Later,
            (true, None) => BodyAvailability::None,
        };
        upstream.send_head(head, body).await.map_err(Error::into_up)?;
        AttemptExchange::new(session.as_downstream_mut(), context, upstream).run(timer).await
    }
}

/// For HTTP/2 streams; `client/connection.rs` has the connections of HTTP/1.1.
#[async_trait]
impl HttpServerApp for Runner {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        // The phases take a `Session`, which the engine makes around a connection only: this one is
        // made around nothing, and gets the HTTP/2 session put in.
        let mut phased = Session::new_h1(Box::new(Cursor::new(Vec::new())));
        *phased.downstream_session = session;
        let mut timer = Timer::default();
        let stream = self.serve_request(phased, None, &mut timer, shutdown).await;
        stream.map(|stream| ReusedHttpStream::new(stream, None))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
