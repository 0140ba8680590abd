//! The admin API: health, readiness, metrics, and the state of things as JSON.
//!
//! Beyond loopback it wants TLS and a token; its answers carry no secret.

pub mod metrics;
pub mod status;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::{Method, Response, header};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;

use crate::config::{self, AdminAddress, KeyPair};
use crate::credentials::Kept;
use crate::proxy::Serving;
use crate::proxy::reply;
use crate::refusal::{Reason, Refusal};

/// Serves the admin API.
pub struct Admin {
    serving: Arc<ArcSwap<Serving>>,
    started: Instant,
    /// What has to be shown; `None`: nothing.
    token: Option<Kept>,
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
                name.eq_ignore_ascii_case("localhost")
                    || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
            }
        }
    }
}

impl Admin {
    /// The admin API of what is serving, as configured; `token` is its secret.
    pub fn new(
        serving: Arc<ArcSwap<Serving>>,
        config: &config::Admin,
        token: Option<Kept>,
        started: Instant,
    ) -> Self {
        let files = config.tls.iter().flat_map(|tls| &tls.pairs);
        let names =
            files.filter_map(|files| KeyPair::read(files).ok()).flat_map(|pair| pair.names()).collect();
        let hosts = match config.address {
            AdminAddress::Tcp(address) => Some(Hosts { address: address.ip(), names }),
            AdminAddress::Unix(_) => None,
        };
        Self { serving, started, token, hosts }
    }

    fn answer(&self, session: &ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        if !self.is_local(session) {
            let message =
                "the admin API answers only under its own addresses and names, and no page of another site";
            return refused(403, &Refusal::new(Reason::PathNotAllowed, message));
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            let message = "the admin API serves GET";
            return refused(405, &Refusal::new(Reason::MethodNotAllowed, message));
        }
        let path = request.uri.path();
        if !matches!(path, "/healthz" | "/readyz") && !self.is_known(session) {
            let message = "the admin API wants its token: Authorization: Bearer TOKEN";
            let mut response = refused(401, &Refusal::new(Reason::InvalidApiKey, message));
            let challenge = http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            return response;
        }
        let serving = self.serving.load();
        let stopping = serving.gateway.process.stopping.load(Ordering::Acquire);
        match path {
            "/healthz" => text(200, "ok\n"),
            "/readyz" if stopping => text(503, "stopping\n"),
            "/readyz" => text(200, "ok\n"),
            "/api/status" => {
                let status = status::of(&serving.gateway, self.started, Instant::now());
                respond(200, "application/json", serde_json::to_vec(&status).unwrap_or_default())
            }
            "/metrics" => {
                let text = metrics::text(&serving.gateway, Instant::now());
                respond(200, "text/plain; version=0.0.4; charset=utf-8", text.into_bytes())
            }
            _ => {
                let message = "the admin API has /healthz, /readyz, /metrics and /api/status";
                refused(404, &Refusal::new(Reason::PathNotAllowed, message))
            }
        }
    }

    fn is_local(&self, session: &ServerSession) -> bool {
        let header = |name| session.get_header(name).and_then(|value| value.to_str().ok());
        if header("sec-fetch-site").is_some_and(|site| site == "cross-site") || header("origin").is_some() {
            return false;
        }
        let Some(hosts) = &self.hosts else { return true };
        header("host").is_some_and(|host| hosts.has(host))
    }

    /// Whether the token is shown that has to be. Digests are compared, in constant time, so that
    /// not even the length of the token shows.
    fn is_known(&self, session: &ServerSession) -> bool {
        let Some(token) = &self.token else { return true };
        let shown = session.get_header(header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
        let shown = shown.and_then(|value| value.split_at_checked(7));
        let (Some((scheme, shown)), Some(token)) = (shown, token.now()) else { return false };
        let digest = |bytes: &[u8]| openssl::sha::sha256(bytes);
        scheme.eq_ignore_ascii_case(b"bearer ")
            && openssl::memcmp::eq(&digest(shown), &digest(token.secret.expose().as_bytes()))
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        self.answer(session)
    }
}

fn text(status: u16, body: &str) -> Response<Vec<u8>> {
    respond(status, "text/plain", body.as_bytes().to_vec())
}

fn refused(status: u16, refusal: &Refusal) -> Response<Vec<u8>> {
    respond(status, "application/json", reply::body(refusal).to_vec())
}

fn respond(status: u16, kind: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    let length = http::HeaderValue::from(response.body().len());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}
