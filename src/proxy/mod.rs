//! The Pingora adapter: each phase is a few lines around one verb of the gateway. What runs the phases
//! is in `drive.rs`.

mod attempt;
pub mod client;
mod context;
pub mod runner;
mod timer;
pub mod upstream;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, header};
use log::debug;
use pingora::http::RequestHeader;
use pingora::protocols::Digest;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use tokio::time::sleep;

use self::attempt::exchange::{client_left, pieces, recorded};
use self::attempt::relay::{FIRST_BYTE, IDLE, RETRY, Reply};
use self::attempt::retry_state::Step;
use self::attempt::upstream_error::{self, Trouble, clients_fault, is_clients_fault};
use self::client::admit::{self, DRAIN};
use self::client::request_body::{Budget, NoBody};
use self::client::{health, reset, tls};
use self::context::{Context, RequestContext};
use self::upstream::headers::{self, Framing};
use crate::admission::address::client_ip;
use crate::names::BackendName;
use crate::refusal::Refusal;

pub use self::context::Serving;

/// No backend (further) can be asked; the story says why.
const SPENT: ErrorType = ErrorType::Custom("NoFurtherAttempt");
/// There is nothing to show to the backend.
const NO_SECRET: ErrorType = ErrorType::Custom("NoSecret");
/// The longest that a request waits for a new secret of a backend that refused the last.
const RENEWAL: Duration = Duration::from_secs(5);
/// The client left while it waited.
const CLIENT_GONE: ErrorType = ErrorType::Custom("ClientGone");

/// What a plain request's head becomes for one backend, in lines.
pub fn preview(
    method: &Method,
    backend: &crate::gateway::Backend,
    gateway: &crate::gateway::Gateway,
    path: &str,
) -> Vec<String> {
    let presented = backend.credential.present().map_or(header::AUTHORIZATION, |(name, _)| name);
    let has_body = *method == Method::POST;
    headers::preview(method, backend, &gateway.requests, path.to_owned(), &presented, has_body)
        .unwrap_or_default()
}

/// The application that Pingora serves.
pub struct Balancer {
    serving: Arc<ArcSwap<Serving>>,
    bodies: Arc<Budget>,
}

impl Balancer {
    /// A balancer over what is serving now and what will.
    pub fn new(serving: Arc<ArcSwap<Serving>>) -> Self {
        Self { serving, bodies: Arc::default() }
    }
}

#[async_trait]
impl ProxyHttp for Balancer {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::default()
    }

    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {
        // The engine would add its compression module, which is of no use here.
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> pingora::Result<bool> {
        let serving = self.serving.load_full();
        if let Some(ready) = health::probe(session.req_header(), &serving) {
            let leaving = serving.gateway.process.leaving.load(Ordering::Acquire);
            return health::answer(session, ready, leaving).await;
        }
        let mut flow = Box::new(RequestContext::new(
            Arc::clone(&serving),
            Arc::clone(&self.bodies),
            session.req_header().method.clone(),
        ));
        flow.peer_ip =
            session.client_addr().and_then(|address| address.as_inet()).map(std::net::SocketAddr::ip);
        // On a connection with TLS it came along with the handshake, for each stream.
        let arrival = tls::of(session.digest());
        let listener = ctx.listener.take().or_else(|| arrival.and_then(|arrival| arrival.listener.clone()));
        flow.subject = arrival.and_then(|arrival| arrival.subject.clone());
        flow.client_ip = flow.peer_ip.map(|peer| {
            let trusted = listener.as_ref().map_or(&[][..], |listener| serving.trusted_proxies(listener));
            client_ip(peer, &session.req_header().headers, trusted)
        });
        let flow = ctx.flow.insert(flow);
        match admit::receive(session, flow, &self.bodies).await {
            Ok(()) => {}
            Err(NoBody::Refused(refusal)) => {
                refuse(session, flow, &refusal).await?;
                return Ok(true);
            }
            Err(NoBody::Unframed(refusal)) => {
                session.set_keepalive(None);
                refuse(session, flow, &refusal).await?;
                return Ok(true);
            }
            Err(NoBody::Gone) => {
                flow.end.client_gone = true;
                return Err(Error::new(CLIENT_GONE).into_down());
            }
        }
        let now = Instant::now();
        if let Some(Step::Spent) = flow.course.as_mut().map(|course| course.step(now)) {
            let tasks = flow.conclude(now)?;
            tell(session, flow, tasks).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> pingora::Result<Box<HttpPeer>> {
        let Context { turn, flow, .. } = ctx;
        let flow = flow.as_deref_mut().ok_or_else(|| Error::new(SPENT))?;
        if flow.between_tries() > 0 {
            still_there(session, flow).await?;
        }
        let serving = Arc::clone(&flow.serving);
        loop {
            let now = Instant::now();
            let Some(course) = &mut flow.course else { return Err(Error::new(SPENT)) };
            let step = course.step(now);
            flow.idle(now);
            match step {
                Step::Spent => return Err(Error::new(SPENT)),
                Step::Wait(wait) => {
                    pause(session, flow, sleep(wait.length)).await?;
                    if let Some(course) = &mut flow.course {
                        course.waited(wait);
                    }
                }
                Step::Renewal(credential) => {
                    pause(session, flow, credential.renewal(RENEWAL)).await?;
                    if let Some(course) = &mut flow.course {
                        course.renewed();
                    }
                }
                Step::Try(backend) => {
                    let Some(course) = &mut flow.course else { return Err(Error::new(SPENT)) };
                    let name = serving.gateway.backends.get(backend).map(|backend| &backend.config.name);
                    course.begin(name.unwrap_or(&BackendName::new("?")), now);
                    match serving.peers.of(backend, flow.upgrades) {
                        Some(peer) => {
                            // A connection that becomes another protocol is nobody else's.
                            if !flow.upgrades {
                                *turn = serving.peers.turn(backend).await;
                            }
                            return Ok(peer);
                        }
                        None if flow.broke_off(Trouble::Dns, false, now) => {}
                        None => return Err(Error::new(SPENT)),
                    }
                }
            }
        }
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Context,
    ) -> pingora::Result<()> {
        ctx.turn = None;
        // The client is not listened to while a connection is made. Nothing is asked, and billed,
        // for one that has left meanwhile.
        if reused { Ok(()) } else { still_there(session, story(ctx)?).await }
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> pingora::Result<()> {
        let flow = story(ctx)?;
        let (serving, upgrades) = (Arc::clone(&flow.serving), flow.upgrades);
        let Some(course) = &mut flow.course else { return Err(Error::new(SPENT)) };
        let backend = course.answerer().and_then(|answerer| serving.gateway.backends.get(answerer.backend));
        let Some(backend) = backend else { return Err(Error::new(SPENT)) };
        if let Some(answerer) = course.answerer().filter(|_| !upgrades) {
            serving.peers.speaks(answerer.backend, request.version);
        }
        let Some((name, secret)) = backend.credential.present() else {
            return Err(Error::new(NO_SECRET));
        };
        let Some(outgoing) = course.put(&serving.gateway, secret.number) else {
            return Err(Error::new(SPENT));
        };
        // The time-out of the first byte begins when the request has been sent.
        flow.deadline = None;
        flow.reply = Reply::None;
        let held = if outgoing.edits.is_empty() {
            vec![flow.body.bytes.clone()]
        } else {
            crate::azure::request::body::edit(&flow.body.bytes, &outgoing.edits)
        };
        let framing = framing(flow, held.iter().map(Bytes::len).sum());
        flow.pieces = pieces(held);
        headers::rewrite(request, backend, &serving.gateway.requests, outgoing.path, &framing)?;
        request.insert_header(name, secret.header.clone())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        ctx.turn = None;
        if let Some(flow) = &mut ctx.flow {
            // A connection that is shared may turn out to have ended when one more stream is begun.
            let stale = *error.etype() == ErrorType::H2Error;
            let (now, trouble) = (Instant::now(), upstream_error::of_connecting(&error));
            if trouble == Trouble::Tls {
                flow.distrusts(&error.to_string(), now);
            }
            error.set_retry(flow.broke_off(trouble, stale, now));
        }
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        _session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Context,
        client_reused: bool,
    ) -> Box<Error> {
        let Some(flow) = &mut ctx.flow else { return error };
        let now = Instant::now();
        let ours = match *error.etype() {
            FIRST_BYTE => Some(Trouble::FirstByteTimeout),
            IDLE => Some(Trouble::IdleTimeout),
            _ => None,
        };
        let another = match () {
            () if *error.etype() == RETRY => true,
            () if *error.etype() == NO_SECRET => flow.has_no_secret(now),
            () if is_clients_fault(&error) => false,
            () if ours.is_none() && *error.esource() == ErrorSource::Downstream => {
                flow.end.client_gone = true;
                false
            }
            () if flow.is_committed() => {
                flow.end.failed = true;
                flow.broke_off(ours.unwrap_or_else(|| upstream_error::of(&error)), false, now);
                false
            }
            () => {
                let trouble = ours.unwrap_or_else(|| upstream_error::of(&error));
                let is_lost = match *error.etype() {
                    // The engine knows: the stream was refused, or the connection was being closed.
                    ErrorType::H2Error => {
                        error.retry.decide_reuse(client_reused);
                        error.retry()
                    }
                    _ => client_reused,
                };
                let stale = is_lost && trouble == Trouble::Reset && matches!(flow.reply, Reply::None);
                flow.broke_off(trouble, stale, now)
            }
        };
        if another {
            flow.reply = Reply::None;
            flow.busy(now);
        }
        flow.deadline = None;
        error.set_retry(another);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> FailToProxy {
        let broken = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let Some(flow) = &mut ctx.flow else { return broken };
        let is_ours = matches!(*error.etype(), SPENT | NO_SECRET | FIRST_BYTE | IDLE | RETRY);
        if !is_ours && *error.esource() == ErrorSource::Downstream && !is_clients_fault(error) {
            flow.end.client_gone = true;
        }
        let tasks = match () {
            () if flow.is_committed() => {
                flow.end.failed |= !flow.end.client_gone;
                if !flow.knows_chunks
                    && let Some(stream) = session.stream()
                    && let Err(problem) = reset::reset_on_close(stream)
                {
                    debug!("a broken answer to an HTTP/1.0 client looks whole: {problem}");
                }
                return broken;
            }
            () if flow.end.client_gone => return broken,
            () if is_clients_fault(error) => flow.refuse(&clients_fault(error)),
            () => flow.conclude(Instant::now()),
        };
        session.set_keepalive(None);
        if let Ok(tasks) = tasks
            && tell(session, flow, tasks).await.is_err()
        {
            flow.end.client_gone = true;
        }
        drain(session).await;
        FailToProxy { error_code: flow.end.status.unwrap_or(0), can_reuse_downstream: false }
    }

    async fn logging(&self, _session: &mut Session, _error: Option<&Error>, ctx: &mut Context) {
        if let Some(flow) = &mut ctx.flow {
            flow.leave();
        }
    }
}

fn story(ctx: &mut Context) -> pingora::Result<&mut RequestContext> {
    ctx.flow.as_deref_mut().ok_or_else(|| Error::new(SPENT))
}

/// Waits between tries; the client may leave meanwhile.
async fn pause(
    session: &mut ServerSession,
    flow: &mut RequestContext,
    over: impl Future<Output = ()> + Send,
) -> pingora::Result<()> {
    if !session.is_body_done() {
        // Looking whether the client is there would take a byte of its upload.
        over.await;
        return Ok(());
    }
    tokio::select! {
        () = over => Ok(()),
        cause = client_left(session, &mut flow.deaf) => {
            Err(Error::because(CLIENT_GONE, "while waiting between tries", cause).into_down())
        }
    }
}

/// Whether the client is still there, as far as is known without waiting.
async fn still_there(session: &mut ServerSession, flow: &mut RequestContext) -> pingora::Result<()> {
    if !session.is_body_done() {
        // Looking would take a byte of its upload.
        return Ok(());
    }
    tokio::select! {
        biased;
        cause = client_left(session, &mut flow.deaf) => {
            Err(Error::because(CLIENT_GONE, "between tries", cause).into_down())
        }
        () = std::future::ready(()) => Ok(()),
    }
}

/// Answers a request that goes no further; the connection stays if it can.
async fn refuse(
    session: &mut ServerSession,
    flow: &mut RequestContext,
    refusal: &Refusal,
) -> pingora::Result<()> {
    if session.get_header(header::EXPECT).is_some() && !session.is_body_done() {
        // The client may or may not send the body it announced: nobody could tell where
        // its next request begins.
        session.set_keepalive(None);
    }
    let tasks = flow.refuse(refusal)?;
    tell(session, flow, tasks).await
}

/// Gives a client the whole of its answer, once that is written down.
async fn tell(
    session: &mut ServerSession,
    flow: &mut RequestContext,
    tasks: Vec<HttpTask>,
) -> pingora::Result<()> {
    let receipt = flow.settle();
    recorded(flow, receipt).await;
    session.response_duplex_vec(tasks).await?;
    Ok(())
}

/// Reads the rest of an upload that was answered before its end, for a moment: a client that is cut
/// off while it sends does not get to read the answer.
async fn drain(session: &mut ServerSession) {
    if !session.was_upgraded() && !session.is_body_done() {
        session.set_total_drain_timeout(Some(DRAIN));
        let _ = session.drain_request_body().await;
    }
}

/// The framing of a body of which `held` bytes are held.
fn framing(flow: &RequestContext, held: usize) -> Framing {
    match flow.body.streams {
        Some(_) => flow.body.announced.map_or(Framing::Chunked, Framing::Length),
        None if held == 0 && matches!(flow.method, Method::GET | Method::HEAD | Method::DELETE) => {
            Framing::None
        }
        None => Framing::Length(held as u64),
    }
}
