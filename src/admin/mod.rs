//! The admin API: status page, health probes, metrics, status as JSON, and the actions of an operator
//! (reload, drain).
//!
//! Outside of loopback the configuration requires TLS and a token. No response contains a secret.

mod access;
mod affinity_watch;
mod budget_watch;
mod conditions;
pub mod config_status;
pub mod connections;
mod drain;
pub mod metrics;
pub mod monitor;
mod page;
pub mod reload;
pub mod requests;
mod response;
pub mod snapshot;
pub mod status;
pub mod status_feed;
#[cfg(test)]
mod testing;
mod wall_clock;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use log::debug;
use pingora::http::ResponseHeader;
use pingora::protocols::Stream;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::server::ShutdownWatch;
use pingora::{Error, ErrorType};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::access::{AllowedHosts, has_token_if_required, is_allowed_host_and_origin};
use self::drain::set_drained;
use self::page::StatusPage;
use self::reload::ReloadFunction;
use self::response::FullResponse;
use self::snapshot::StatusSource;
use self::status_feed::StatusFeed;
use crate::config::{self, TimeoutsConfig};
use crate::refusal::{Refusal, RefusalReason};

/// How long a client may take to read a response or an event. A client that reads events more slowly is
/// disconnected; it gets the newest status when it connects again.
const MAX_WRITE_TIME: Duration = Duration::from_secs(15);
/// How long a request body, which the API does not need, is read and dropped after the response.
const BODY_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The most event streams at a time.
const MAX_EVENT_STREAMS: usize = 64;
/// A comment of the event stream. It is sent while there is no event, so that a client that has
/// disconnected is noticed.
const KEEPALIVE_COMMENT: &[u8] = b": \n\n";
/// How long no event is sent before the comment.
const KEEPALIVE_COMMENT_INTERVAL: Duration = Duration::from_secs(15);

/// Serves the admin API.
pub struct AdminApi {
    status_source: StatusSource,
    status_feed: Arc<StatusFeed>,
    reload_function: ReloadFunction,
    page: StatusPage,
    /// The hosts in whose name it responds; `None` on a Unix socket.
    allowed_hosts: Option<AllowedHosts>,
    event_stream_permits: Arc<Semaphore>,
}

/// The response to a request.
enum AdminResponse {
    Full(FullResponse),
    /// Server-sent events until the client disconnects.
    EventStream(OwnedSemaphorePermit),
}

impl AdminApi {
    /// The admin API of this configuration.
    pub fn new(
        config: &config::AdminConfig,
        status_source: StatusSource,
        status_feed: Arc<StatusFeed>,
        reload_function: ReloadFunction,
    ) -> Self {
        let allowed_hosts = AllowedHosts::from_config(config);
        Self {
            status_source,
            status_feed,
            reload_function,
            page: StatusPage::assemble(),
            allowed_hosts,
            event_stream_permits: Arc::new(Semaphore::new(MAX_EVENT_STREAMS)),
        }
    }

    fn timeouts(&self) -> TimeoutsConfig {
        self.status_source.load_active_config().gateway.timeouts
    }

    async fn respond(&self, session: &ServerSession) -> AdminResponse {
        let request = session.req_header();
        if !is_allowed_host_and_origin(session, self.allowed_hosts.as_ref()) {
            let message =
                "the admin API serves its own addresses and host names only, and no pages of other sites";
            let refusal = Refusal::new(RefusalReason::PathNotAllowed, message);
            return AdminResponse::Full(response::with_refusal(403, &refusal));
        }
        let path = request.uri.path();
        // The page contains no data; its script asks for the token. Probes carry none.
        if !matches!(path, "/" | "/healthz" | "/readyz") && !self.is_authorized(session) {
            let message = "the admin API requires its token: Authorization: Bearer TOKEN";
            let refusal = Refusal::new(RefusalReason::InvalidApiKey, message);
            let mut response = response::with_refusal(401, &refusal);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return AdminResponse::Full(response);
        }
        match request.method {
            Method::GET | Method::HEAD => self.respond_to_get(path, request.uri.query()),
            Method::POST => AdminResponse::Full(self.respond_to_post(session, path).await),
            _ => {
                let message = "the admin API serves GET, HEAD and POST";
                let refusal = Refusal::new(RefusalReason::MethodNotAllowed, message);
                AdminResponse::Full(response::with_refusal(405, &refusal))
            }
        }
    }

    fn is_authorized(&self, session: &ServerSession) -> bool {
        has_token_if_required(session, self.status_source.load_active_config().admin_token.as_ref())
    }

    fn respond_to_get(&self, path: &str, query: Option<&str>) -> AdminResponse {
        let active_config = self.status_source.load_active_config();
        let stopping = active_config.gateway.process_state.is_stopping.load(Ordering::Acquire);
        AdminResponse::Full(match path {
            "/" => self.page(),
            "/healthz" => response::with_text(200, "ok\n"),
            "/readyz" if stopping => response::with_text(503, "stopping\n"),
            "/readyz" => response::with_text(200, "ok\n"),
            "/api/status" => {
                let status = self.status_source.collect_status(Instant::now());
                response::with_json(200, serde_json::to_vec(&status).unwrap_or_default())
            }
            "/api/requests" => requests::respond(&active_config.gateway, query.unwrap_or_default()),
            "/api/events" => match Arc::clone(&self.event_stream_permits).try_acquire_owned() {
                Ok(permit) => return AdminResponse::EventStream(permit),
                Err(_) => {
                    let message = format!("there are {MAX_EVENT_STREAMS} event streams already");
                    let refusal = Refusal::new(RefusalReason::Overloaded, message);
                    response::with_refusal(503, &refusal.with_retry_after(Duration::from_secs(1)))
                }
            },
            "/metrics" => {
                let text = metrics::prometheus_text(&active_config, Instant::now());
                response::with_body(200, "text/plain; version=0.0.4; charset=utf-8", text.into_bytes())
            }
            _ => response::not_found(),
        })
    }

    fn page(&self) -> FullResponse {
        let html = self.page.html.as_bytes().to_vec();
        let mut response = response::with_body(200, "text/html; charset=utf-8", html);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, self.page.content_security_policy.clone());
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }

    async fn respond_to_post(&self, session: &ServerSession, path: &str) -> FullResponse {
        let has_header = session.get_header("x-aoai-lb-admin").is_some_and(|value| value.as_bytes() == b"1");
        if !has_header {
            // A page of another site cannot send this header without a CORS preflight, which fails.
            let message = "a POST needs the header x-aoai-lb-admin: 1";
            return response::with_refusal(403, &Refusal::new(RefusalReason::PathNotAllowed, message));
        }
        if self.is_process_replaced() {
            // The action would change only this process, which is about to exit.
            let message = "another process has taken over: retry on a new connection";
            let refusal = Refusal::new(RefusalReason::Overloaded, message);
            return response::with_refusal(503, &refusal.with_retry_after(Duration::from_secs(1)));
        }
        if path == "/api/reload" {
            return self.reload_and_respond().await;
        }
        let active_config = self.status_source.load_active_config();
        let (name, drained) = match path.strip_prefix("/api/backends/").and_then(|rest| rest.split_once('/'))
        {
            Some((name, "drain")) => (name.to_owned(), true),
            Some((name, "undrain")) => (name.to_owned(), false),
            _ => return response::not_found(),
        };
        // It writes a file.
        let set = spawn_blocking(move || set_drained(&active_config.gateway, &name, drained)).await;
        set.unwrap_or_else(|_| {
            let refusal = Refusal::new(RefusalReason::Overloaded, "the process stops");
            response::with_refusal(503, &refusal)
        })
    }

    async fn reload_and_respond(&self) -> FullResponse {
        match (self.reload_function)().await {
            Ok(report) => {
                let warnings: Vec<String> = report.warnings.iter().map(ToString::to_string).collect();
                let body = json!({
                    "result": "success",
                    "version": report.status.activation_number,
                    "sha256": report.status.sha256,
                    "changes": report.changes,
                    "summary": report.changes.to_lines(),
                    "needs_upgrade": report.status.config_keys_needing_upgrade,
                    "warnings": warnings,
                });
                response::with_json(200, body.to_string().into_bytes())
            }
            Err(reason) => {
                let message = format!("reload failed, the previous configuration stays active: {reason}");
                response::with_refusal(400, &Refusal::bad_request(message))
            }
        }
    }

    /// Whether a successor has taken over. For a few seconds after an upgrade both processes accept
    /// connections.
    fn is_process_replaced(&self) -> bool {
        let process = &self.status_source.load_active_config().gateway.process_state;
        process.is_draining_connections.load(Ordering::Acquire)
            && !process.is_stopping.load(Ordering::Acquire)
    }

    /// Sends events until the client disconnects or this process stops.
    async fn stream_events(
        &self,
        session: &mut ServerSession,
        shutdown: &mut ShutdownWatch,
    ) -> pingora::Result<()> {
        let mut header = ResponseHeader::build(200, Some(4))?;
        header.insert_header(header::CONTENT_TYPE, "text/event-stream")?;
        header.insert_header(header::CACHE_CONTROL, "no-store")?;
        header.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        let (first, mut events) = self.status_feed.subscribe(&self.status_source);
        let tasks = vec![HttpTask::Header(Box::new(header), false), HttpTask::Body(Some(first), false)];
        self.write(session, tasks).await?;
        loop {
            let event = tokio::select! {
                next = timeout(KEEPALIVE_COMMENT_INTERVAL, events.changed()) => match next {
                    Ok(Ok(())) => events.borrow_and_update().clone(),
                    Ok(Err(_)) => break,
                    Err(_) => Bytes::from_static(KEEPALIVE_COMMENT),
                },
                _ = shutdown.wait_for(|has_begun| *has_begun) => break,
                // Completes when the client disconnects or sends something it should not.
                disconnected = session.read_body_or_idle(true) => {
                    disconnected?;
                    break;
                }
            };
            self.write(session, vec![HttpTask::Body(Some(event), false)]).await?;
        }
        self.write(session, vec![HttpTask::Done]).await
    }

    /// Writes parts of a response.
    ///
    /// # Errors
    /// If the client has disconnected, or does not read.
    async fn write(&self, session: &mut ServerSession, tasks: Vec<HttpTask>) -> pingora::Result<()> {
        let limit = MAX_WRITE_TIME.min(self.timeouts().response_idle);
        match timeout(limit, session.response_duplex_vec(tasks)).await {
            Ok(written) => written.map(|_| ()),
            Err(_) => Error::e_explain(ErrorType::WriteTimedout, "the client does not read"),
        }
    }

    /// Serves one request; returns its connection if another request can follow.
    async fn serve_request(&self, mut session: ServerSession, shutdown: &ShutdownWatch) -> Option<Stream> {
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                // Not the whole error: it may quote the request, and with it the token.
                debug!("admin API: cannot read the request: {}", error.etype().as_str());
                return None;
            }
        }
        let process = Arc::clone(&self.status_source.load_active_config().gateway.process_state);
        let is_draining = process.is_draining_connections.load(Ordering::Acquire);
        if is_draining || *shutdown.borrow() {
            session.set_keepalive(None);
        }
        session.set_total_drain_timeout(Some(BODY_DRAIN_TIMEOUT));
        let is_head = session.req_header().method == Method::HEAD;
        let sent = match self.respond(&session).await {
            AdminResponse::EventStream(_permit) if !is_head => {
                session.set_keepalive(None);
                self.stream_events(&mut session, &mut shutdown.clone()).await
            }
            AdminResponse::EventStream(_) => {
                let response = response::with_body(200, "text/event-stream", Vec::new());
                self.write(&mut session, response::to_tasks(response, true)).await
            }
            AdminResponse::Full(response) => {
                self.write(&mut session, response::to_tasks(response, is_head)).await
            }
        };
        if let Err(error) = sent {
            debug!("admin API: the client disconnected: {error}");
            return None;
        }
        let (stream, _) = session.finish().await.ok()??.into_parts();
        Some(stream)
    }
}
