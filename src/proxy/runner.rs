//! What runs the phases of the balancer over a request.
//!
//! The engine has a runner of its own, `HttpProxy`. That one copies heads for every phase and takes each
//! part of a body through a channel between two halves of itself, and a body that is sent twice has to
//! come from a session that stands in for the client's. Doing without saves a fifth to a quarter of the
//! processor time of a short request, and a fifth of the memory of a stream (measured by `make bench`).

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

use super::attempt::exchange::Exchange;
use super::client::connection;
use super::context::Context;
use super::timer::Timer;
use super::upstream::connection::{BodyOf, Upstream, Upstreams, address_http2};
use super::upstream::headers;
use super::{Balancer, drain, story};
use crate::config::Listener;

/// The balancer with its connections, which all listeners share.
pub struct Runner {
    balancer: Balancer,
    upstreams: Upstreams,
    options: HttpServerOptions,
}

impl Runner {
    /// Runs this balancer.
    pub fn new(balancer: Balancer, server: &ServerConf) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(connection::IDLE);
        Self { balancer, upstreams: Upstreams::new(server), options }
    }

    /// Serves one request; returns its connection if that can be used for another.
    pub(super) async fn serve(
        &self,
        mut session: Session,
        listener: Option<Arc<Listener>>,
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
        let answered = self.answer(&mut session, &mut ctx, timer).await;
        self.balancer.logging(&mut session, answered.as_ref().err().map(|error| &**error), &mut ctx).await;
        answered.ok()?;
        let (stream, _) = session.downstream_session.finish().await.ok()??.into_parts();
        Some(stream)
    }

    /// From the head of a request to the end of its answer.
    ///
    /// # Errors
    /// When the client's connection is of no further use.
    async fn answer(&self, session: &mut Session, ctx: &mut Context, timer: &mut Timer) -> Result<()> {
        let error = match self.balancer.request_filter(session, ctx).await {
            Ok(true) => return Ok(()),
            Ok(false) => loop {
                match self.attempt(session, ctx, timer).await {
                    Ok(()) => {
                        drain(session).await;
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

    /// Asks the next backend.
    ///
    /// # Errors
    /// When it broke off; whether another follows is in the error.
    async fn attempt(&self, session: &mut Session, ctx: &mut Context, timer: &mut Timer) -> Result<()> {
        let peer = self.balancer.upstream_peer(session, ctx).await.map_err(|mut error| {
            error.set_retry(false);
            error
        })?;
        let mut upstream = self
            .upstreams
            .connect(&peer)
            .await
            .map_err(|error| self.balancer.fail_to_connect(session, &peer, ctx, error.into_up()))?;
        let is_reused = upstream.reused;
        let exchanged = self.exchange(session, ctx, &peer, &mut upstream, timer).await;
        self.upstreams.release(upstream, &peer).await;
        exchanged.map_err(|error| {
            self.upstreams.learn(&error, &peer);
            self.balancer.error_while_proxy(&peer, session, error, ctx, is_reused)
        })
    }

    /// Puts the request to a backend and passes on what it says.
    async fn exchange(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        peer: &HttpPeer,
        upstream: &mut Upstream,
        timer: &mut Timer,
    ) -> Result<()> {
        let (reused, version) = (upstream.reused, upstream.version());
        self.balancer.connected_to_upstream(session, reused, peer, upstream.fd(), None, ctx).await?;
        let mut head = Box::new(headers::kept(session.req_header(), story(ctx)?.upgrades)?);
        head.set_version(version);
        self.balancer.upstream_request_filter(session, &mut head, ctx).await?;
        if version == Version::HTTP_2 {
            address_http2(&mut head, peer.is_tls())?;
        }
        let flow = story(ctx)?;
        let body = match (flow.pieces.is_empty(), flow.body.streams) {
            (false, _) => BodyOf::Ready,
            (true, Some(_)) => BodyOf::Later,
            (true, None) => BodyOf::None,
        };
        upstream.send_head(head, body).await.map_err(Error::into_up)?;
        Exchange::new(session.as_downstream_mut(), flow, upstream).run(timer).await
    }
}

/// For streams of HTTP/2; the guard has the connections of HTTP/1.1.
#[async_trait]
impl HttpServerApp for Runner {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        // A session for a phase can be made around a connection only.
        let mut phased = Session::new_h1(Box::new(Cursor::new(Vec::new())));
        *phased.downstream_session = session;
        let mut timer = Timer::default();
        let stream = self.serve(phased, None, &mut timer, shutdown).await;
        stream.map(|stream| ReusedHttpStream::new(stream, None))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
