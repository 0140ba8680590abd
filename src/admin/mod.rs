//! The admin API: the status page, health, metrics, the state of things, and the few things that
//! can be done at run time.
//!
//! Beyond loopback it wants TLS and a token; its answers carry no secret.

pub mod feed;
pub mod metrics;
mod page;
pub mod status;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, Response, header};
use log::{debug, info, warn};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::server::ShutdownWatch;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::time::timeout;

use self::feed::Feed;
use crate::config::{self, AdminAddress, KeyPair};
use crate::proxy::client::refusal_response;
use crate::refusal::{Reason, Refusal};
use crate::routing::health;
use crate::server::reload::{Live, NotReloaded};

/// How long a connection may be silent between two requests, in seconds.
const IDLE: u64 = 60;
/// What is sent where nothing is to be told, so that whoever left is noticed.
const NOTHING_NEW: &[u8] = b": \n\n";
/// How often.
const PULSE: Duration = Duration::from_secs(15);

/// Serves the admin API.
pub struct Admin {
    live: Arc<Live>,
    started: Instant,
    /// Where a reload does its work.
    background: Handle,
    feed: Arc<Feed>,
    policy: HeaderValue,
    /// The hosts that it answers for; `None` for a Unix socket.
    hosts: Option<Hosts>,
}

/// The names under which a client may have found it. A page of another site must not read it
/// through a name that it makes resolve here.
struct Hosts {
    address: IpAddr,
    names: Vec<String>,
}

impl Hosts {
    /// Addresses of this machine, and the names that its certificate vouches for.
    fn has(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        match name.parse::<IpAddr>() {
            Ok(ip) => ip == self.address || ip.to_canonical().is_loopback() || self.address.is_unspecified(),
            Err(_) => {
                let domain = name.split_once('.').map(|(_, domain)| domain);
                let is_it = |known: &String| match known.strip_prefix("*.") {
                    Some(known) => domain.is_some_and(|domain| domain.eq_ignore_ascii_case(known)),
                    None => known.eq_ignore_ascii_case(name),
                };
                name.eq_ignore_ascii_case("localhost") || self.names.iter().any(is_it)
            }
        }
    }
}

/// What a request is answered with.
enum Answer {
    Whole(Response<Vec<u8>>),
    /// Events, for as long as somebody listens.
    Events,
}

impl Admin {
    /// The admin API of what is live, as configured.
    pub fn new(
        live: Arc<Live>,
        config: &config::Admin,
        feed: Arc<Feed>,
        started: Instant,
        background: Handle,
    ) -> Self {
        let files = config.tls.iter().flat_map(|tls| &tls.pairs);
        let names =
            files.filter_map(|files| KeyPair::read(files).ok()).flat_map(|pair| pair.names()).collect();
        let hosts = match config.address {
            AdminAddress::Tcp(address) => Some(Hosts { address: address.ip(), names }),
            AdminAddress::Unix(_) => None,
        };
        let policy = page::content_security_policy();
        Self { live, started, background, feed, policy, hosts }
    }

    async fn answer(&self, session: &ServerSession) -> Answer {
        let request = session.req_header();
        if !self.is_local(session) {
            let message =
                "the admin API answers only under its own addresses and names, and no page of another site";
            return Answer::Whole(refused(403, &Refusal::new(Reason::PathNotAllowed, message)));
        }
        let path = request.uri.path();
        // The page has nothing in it; it asks for the token by itself.
        if !matches!(path, "/" | "/healthz" | "/readyz") && !self.is_known(session) {
            let message = "the admin API wants its token: Authorization: Bearer TOKEN";
            let mut response = refused(401, &Refusal::new(Reason::InvalidApiKey, message));
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Answer::Whole(response);
        }
        match request.method {
            Method::GET | Method::HEAD => self.tell(path),
            Method::POST => Answer::Whole(self.act(session, path).await),
            _ => {
                let message = "the admin API serves GET, HEAD and POST";
                Answer::Whole(refused(405, &Refusal::new(Reason::MethodNotAllowed, message)))
            }
        }
    }

    /// GET.
    fn tell(&self, path: &str) -> Answer {
        let serving = self.live.serving.load();
        let stopping = serving.gateway.process.stopping.load(Ordering::Acquire);
        Answer::Whole(match path {
            "/" => {
                let mut page = respond(200, "text/html; charset=utf-8", page::PAGE.as_bytes().to_vec());
                let headers = page.headers_mut();
                headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
                headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
                page
            }
            "/healthz" => text(200, "ok\n"),
            "/readyz" if stopping => text(503, "stopping\n"),
            "/readyz" => text(200, "ok\n"),
            "/api/status" => {
                let status = status::of(&self.live, self.started, Instant::now());
                respond(200, JSON, serde_json::to_vec(&status).unwrap_or_default())
            }
            "/api/events" => return Answer::Events,
            "/metrics" => {
                let text = metrics::text(&serving.gateway, Instant::now());
                respond(200, "text/plain; version=0.0.4; charset=utf-8", text.into_bytes())
            }
            _ => not_found(),
        })
    }

    /// POST.
    async fn act(&self, session: &ServerSession, path: &str) -> Response<Vec<u8>> {
        let said = session.get_header("x-aoai-lb-admin").is_some_and(|value| value.as_bytes() == b"1");
        if !said {
            // No page of another site can send this header.
            let message = "a POST needs the header x-aoai-lb-admin: 1";
            return refused(403, &Refusal::new(Reason::PathNotAllowed, message));
        }
        if self.is_replaced() {
            // It would be of no use, and the other one would not know.
            let message = "another process has taken over: ask again, on a new connection";
            let refusal = Refusal::new(Reason::Overloaded, message).after(Duration::from_secs(1));
            return refused(503, &refusal);
        }
        if path == "/api/reload" {
            return self.reload().await;
        }
        let backend = path.strip_prefix("/api/backends/").and_then(|rest| rest.split_once('/'));
        match backend {
            Some((name, "drain")) => self.drain(name, true),
            Some((name, "undrain")) => self.drain(name, false),
            _ => not_found(),
        }
    }

    async fn reload(&self) -> Response<Vec<u8>> {
        let live = Arc::clone(&self.live);
        // It goes on even if whoever asked leaves.
        let reloaded = self.background.spawn(async move { live.reload().await }).await;
        match reloaded.unwrap_or(Err(NotReloaded::Fault)) {
            Ok(reloaded) => {
                let warnings: Vec<String> = reloaded.warnings.iter().map(ToString::to_string).collect();
                let told = &reloaded.told;
                json(
                    200,
                    &json!({
                        "result": "success",
                        "version": told.version,
                        "sha256": told.sha256,
                        "needs_upgrade": told.needs_upgrade,
                        "warnings": warnings,
                    }),
                )
            }
            Err(problem) => {
                let message = format!("the configuration stays as it is: {problem}");
                refused(400, &Refusal::bad_request(message))
            }
        }
    }

    fn drain(&self, name: &str, drains: bool) -> Response<Vec<u8>> {
        let serving = self.live.serving.load();
        let Some(backend) =
            serving.gateway.backends.iter().find(|backend| backend.config.name.as_str() == name)
        else {
            let names: Vec<&str> =
                serving.gateway.backends.iter().map(|backend| backend.config.name.as_str()).collect();
            let message = format!("there is no backend of this name; there are {}", names.join(", "));
            return refused(404, &Refusal::new(Reason::PathNotAllowed, message));
        };
        let now = Instant::now();
        let changed = if drains { backend.memory.drain(now) } else { backend.memory.undrain(now) };
        let state = if drains { "drained" } else { "undrained" };
        if changed {
            info!("backend {name}: {state} by the operator");
        }
        let mut stranded = Vec::new();
        if drains {
            let is_drained = |index: usize| {
                let backend = serving.gateway.backends.get(index);
                let incident = backend.and_then(|backend| backend.resting(now));
                incident.is_some_and(|incident| incident.rest.reason == health::Reason::Drained)
            };
            for (of, pool) in serving.gateway.pools() {
                let mut members = pool.candidates().iter().map(|candidate| candidate.backend);
                if members.all(is_drained) {
                    stranded.push(of.to_string());
                }
            }
            if changed && !stranded.is_empty() {
                warn!("nobody is left to serve {}", stranded.join(", "));
            }
        }
        let in_flight = backend.memory.in_flight.load(Ordering::Relaxed);
        json(
            200,
            &json!({
                "backend": name,
                "drained": drains,
                "changed": changed,
                "in_flight": in_flight,
                "left_without_backend": stranded,
            }),
        )
    }

    /// Whether another process serves by now. For a few seconds both are asked.
    fn is_replaced(&self) -> bool {
        let process = self.live.process();
        process.leaving.load(Ordering::Acquire) && !process.stopping.load(Ordering::Acquire)
    }

    fn is_local(&self, session: &ServerSession) -> bool {
        let header = |name| session.get_header(name).and_then(|value| value.to_str().ok());
        if header("sec-fetch-site").is_some_and(|site| site == "cross-site") {
            return false;
        }
        let host = header("host");
        if let Some(origin) = session.get_header("origin") {
            let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            if origin.is_none_or(|(_, origin)| !host.is_some_and(|host| host.eq_ignore_ascii_case(origin))) {
                return false;
            }
        }
        let Some(hosts) = &self.hosts else { return true };
        host.is_some_and(|host| hosts.has(host))
    }

    /// Whether the token is shown that has to be. Digests are compared, in constant time, so that
    /// not even the length of the token shows.
    fn is_known(&self, session: &ServerSession) -> bool {
        let serving = self.live.serving.load();
        let Some(token) = &serving.admin_token else { return true };
        let shown = session.get_header(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let shown = shown.and_then(|value| value.split_at_checked(7));
        let (Some((scheme, shown)), Some(token)) = (shown, token.now()) else { return false };
        let digest = |bytes: &[u8]| openssl::sha::sha256(bytes);
        scheme.eq_ignore_ascii_case(b"bearer ")
            && openssl::memcmp::eq(&digest(shown), &digest(token.secret.expose().as_bytes()))
    }

    /// Sends events until the client leaves or this process does.
    async fn send_events(
        &self,
        http: &mut ServerSession,
        stopping: &mut ShutdownWatch,
    ) -> pingora::Result<()> {
        let mut header = ResponseHeader::build(200, Some(4))?;
        header.insert_header(header::CONTENT_TYPE, "text/event-stream")?;
        header.insert_header(header::CACHE_CONTROL, "no-store")?;
        header.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        let mut events = self.feed.watch();
        let first = feed::event(&self.live, self.started);
        let tasks = vec![HttpTask::Header(Box::new(header), false), HttpTask::Body(Some(first), false)];
        http.response_duplex_vec(tasks).await?;
        loop {
            let event = tokio::select! {
                next = timeout(PULSE, events.changed()) => match next {
                    Ok(Ok(())) => events.borrow_and_update().clone(),
                    Ok(Err(_)) => break,
                    Err(_) => Bytes::from_static(NOTHING_NEW),
                },
                _ = stopping.wait_for(|stopping| *stopping) => break,
                left = http.read_body_or_idle(true) => {
                    left?;
                    break;
                }
            };
            http.response_duplex_vec(vec![HttpTask::Body(Some(event), false)]).await?;
        }
        http.response_duplex_vec(vec![HttpTask::Done]).await?;
        Ok(())
    }
}

#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(
        self: &Arc<Self>,
        mut http: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        match http.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(problem) => {
                // Not the whole of it: the token may be in it.
                debug!("admin: not a request: {}", problem.etype().as_str());
                return None;
            }
        }
        let leaving = self.live.process().leaving.load(Ordering::Acquire);
        http.set_keepalive((!leaving && !*shutdown.borrow()).then_some(IDLE));
        let is_head = http.req_header().method == Method::HEAD;
        let done = match self.answer(&http).await {
            Answer::Events if !is_head => {
                http.set_keepalive(None);
                self.send_events(&mut http, &mut shutdown.clone()).await
            }
            Answer::Events => send(&mut http, respond(200, "text/event-stream", Vec::new()), true).await,
            Answer::Whole(response) => send(&mut http, response, is_head).await,
        };
        if let Err(problem) = done {
            debug!("admin: the client has left: {problem}");
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&http);
        let stream = http.finish().await.ok()?;
        stream.map(|stream| ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}

async fn send(http: &mut ServerSession, response: Response<Vec<u8>>, head_only: bool) -> pingora::Result<()> {
    let (parts, body) = response.into_parts();
    let header = Box::new(ResponseHeader::from(parts));
    let mut tasks = vec![HttpTask::Header(header, head_only || body.is_empty())];
    if !head_only && !body.is_empty() {
        tasks.push(HttpTask::Body(Some(Bytes::from(body)), true));
    }
    http.response_duplex_vec(tasks).await.map(|_| ())
}

const JSON: &str = "application/json";

fn json(status: u16, value: &serde_json::Value) -> Response<Vec<u8>> {
    respond(status, JSON, value.to_string().into_bytes())
}

fn text(status: u16, body: &str) -> Response<Vec<u8>> {
    respond(status, "text/plain", body.as_bytes().to_vec())
}

fn not_found() -> Response<Vec<u8>> {
    let message = "the admin API has GET /, /healthz, /readyz, /metrics, /api/status, /api/events, and \
                   POST /api/reload, /api/backends/NAME/drain, /api/backends/NAME/undrain";
    refused(404, &Refusal::new(Reason::PathNotAllowed, message))
}

fn refused(status: u16, refusal: &Refusal) -> Response<Vec<u8>> {
    respond(status, JSON, refusal_response::body(refusal).to_vec())
}

fn respond(status: u16, kind: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    let length = HeaderValue::from(response.body().len());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
