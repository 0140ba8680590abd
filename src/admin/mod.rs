//! The admin API: health, readiness, metrics, and the state of things as JSON.
//!
//! On a loopback address or a Unix socket only; its answers carry no secret.

pub mod metrics;
pub mod status;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::{Method, Response, header};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;

use crate::proxy::Serving;
use crate::proxy::reply;
use crate::refusal::{Reason, Refusal};

/// Serves the admin API.
pub struct Admin {
    serving: Arc<ArcSwap<Serving>>,
    started: Instant,
    /// The host part of the configured address; `None` for a Unix socket.
    host: Option<String>,
}

impl Admin {
    /// The admin API of what is serving; `host` is the configured address's.
    pub fn new(serving: Arc<ArcSwap<Serving>>, host: Option<String>, started: Instant) -> Self {
        Self { serving, started, host }
    }

    fn answer(&self, session: &ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        if !self.is_local(session) {
            let message = "the admin API answers only for loopback names";
            return refused(403, &Refusal::new(Reason::PathNotAllowed, message));
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            let message = "the admin API serves GET";
            return refused(405, &Refusal::new(Reason::MethodNotAllowed, message));
        }
        let serving = self.serving.load();
        let stopping = serving.gateway.process.stopping.load(Ordering::Acquire);
        match request.uri.path() {
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

    /// A page of another site must not read this through a name that it makes resolve here.
    fn is_local(&self, session: &ServerSession) -> bool {
        let header = |name| session.get_header(name).and_then(|value| value.to_str().ok());
        if header("sec-fetch-site").is_some_and(|site| site == "cross-site") || header("origin").is_some() {
            return false;
        }
        let Some(configured) = &self.host else { return true };
        let Some(host) = header("host") else { return false };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost")
            || name == configured
            || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
