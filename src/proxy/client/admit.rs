//! Admits a request: checks its head, authenticates the client, reads the body and finds out what is asked
//! for. No backend is chosen here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use tokio::time::timeout;

use super::head;
use super::request_body::{BodyLimits, BodyReadError, RequestBody, read_body};
use super::timeouts::UPLOAD_DRAIN_TIMEOUT;
use super::websocket_handshake::{UpgradeOffer, offered_subprotocol};
use crate::admission::client::Client;
use crate::admission::client_registry::{AuthError, UNKNOWN_SIGNING_KEY_MESSAGE};
use crate::azure::RequestTarget;
use crate::config::RequestClass;
use crate::gateway::{BodyView, Gateway, ModelsAnswer, Moment};
use crate::names::{Caller, CertificateSubject};
use crate::proxy::attempt::retry_state::RetryState;
use crate::proxy::context::RequestContext;
use crate::proxy::long_work::work_over;
use crate::refusal::Refusal;

static X_STAINLESS_READ_TIMEOUT: header::HeaderName =
    header::HeaderName::from_static("x-stainless-read-timeout");

static CLASS_HEADER: header::HeaderName = header::HeaderName::from_static("x-aoai-lb-class");

/// Longest time that a request waits for the keys that access tokens are signed with.
const SIGNING_KEYS_TIMEOUT: Duration = Duration::from_secs(5);

/// What happens to a request that is not refused.
pub(in crate::proxy) enum Admission {
    /// It goes to a backend: `context.retry_state` is set.
    ForBackend,
    /// The balancer answers it itself.
    Answered(ModelsAnswer),
    /// It opens a Responses socket, whose turns are admitted one by one.
    ResponsesSocket,
}

/// Reads and checks a request, and fills in its context.
///
/// # Errors
/// [`BodyReadError`] if the request is refused or the client disconnects.
pub(in crate::proxy) async fn admit_request(
    session: &mut ServerSession,
    context: &mut RequestContext,
) -> Result<Admission, BodyReadError> {
    let gateway = Arc::clone(&context.config.gateway);
    configure_session(session, &gateway);
    let is_http2 = session.req_header().version == Version::HTTP_2;
    // So that the record of a request that is refused before its body is read does not say 0 bytes. HTTP/2
    // need not declare a body.
    if declares_body(session.req_header()) || (is_http2 && !session.is_body_done()) {
        context.body = RequestBody::unread();
    }
    // The heads of HTTP/1.1 have been checked in `connection.rs`.
    if is_http2 {
        head::check_http2_fields(session.req_header()).inspect_err(|_| gateway.count_malformed_request())?;
    }
    let target = parse_and_check_target(session, context)?;
    let subject = context.request.certificate_subject.as_ref();
    let client = authenticate(session, &gateway, &target, subject).await?;
    context.request.client = Some(Arc::clone(&client));
    context.request.class = Some(request_class(session, &client));
    let method = session.req_header().method.clone();
    if let Some(answer) = gateway.answer_models_request(&method, &target, &client)? {
        return Ok(Admission::Answered(answer));
    }
    if context.request.is_websocket_upgrade && target.is_responses_socket() {
        return Ok(Admission::ResponsesSocket);
    }
    // All checks that need no body come before it is read: a refused client cannot use up memory.
    gateway.check_permissions_from_head(&method, &target, &client)?;
    let limits = BodyLimits {
        max_held_bytes: gateway.request_config.max_buffered_body_bytes,
        max_streamed_upload_bytes: target
            .is_file_upload(&method)
            .then_some(gateway.request_config.max_streamed_body_bytes),
        timeout: gateway.timeouts.request_body,
        body_memory: Arc::clone(&context.body_memory),
        memory_holder: Caller::of(client.name.as_ref(), context.request.client_ip),
        max_total_held_bytes: gateway.request_config.max_total_buffered_bytes,
    };
    context.overhead_clock.pause(Instant::now());
    let request_body = read_body(session, &limits).await?;
    let body_read_at = Instant::now();
    let encoding = header_text(session, &header::CONTENT_ENCODING).trim();
    let content_type = header_text(session, &header::CONTENT_TYPE).to_owned();
    let is_encoded = !matches!(encoding, "" | "identity");
    let body =
        BodyView { bytes: &request_body.held_bytes, content_type: &content_type, is_compressed: is_encoded };
    let call = work_over(body.bytes.len(), || gateway.parse_requested_call(&method, &target, &body));
    context.overhead_clock.resume(body_read_at);
    // Before a possible refusal, because the record needs them.
    context.body = request_body;
    context.request.content_type = content_type;
    let call = call?;
    context.request.deployment.clone_from(&call.deployment);
    context.request.wants_stream = call.wants_stream;
    let received = Moment { instant: context.request.received_instant, time: context.request.received_at };
    gateway.learn_from_other_instances(&target, &call, &context.body.held_bytes, received).await;
    let admitted = gateway.admit(&method, target, &client, call, &context.body.held_bytes, received)?;
    context.reserve_limits(&admitted, Instant::now()).await?;
    let shed_rule = context.request.class.and_then(|class| gateway.shed_rule(class));
    let (headers, body) = (&session.req_header().headers, &context.body.held_bytes);
    let prompt_route = gateway.prompt_route(&admitted, headers, body, Instant::now());
    let admitted = admitted.with_shed_rule(shed_rule).with_prompt_route(prompt_route);
    let limits = gateway.retry_limits_for_request(
        &admitted,
        Instant::now(),
        context.request.received_instant,
        client_declared_read_timeout(session),
    );
    context.retry_state =
        Some(RetryState::new(gateway, admitted, limits, received, context.request.client_ip));
    Ok(Admission::ForBackend)
}

/// The client that sent the request. This waits only if an access token is signed with an unknown key, for
/// which the signing keys are fetched again.
async fn authenticate(
    session: &ServerSession,
    gateway: &Gateway,
    target: &RequestTarget,
    subject: Option<&CertificateSubject>,
) -> Result<Arc<Client>, Refusal> {
    let headers = &session.req_header().headers;
    let signing_keys = match gateway.authenticate(headers, target, subject) {
        Ok(client) => return Ok(client),
        Err(AuthError::Refused(refusal)) => return Err(refusal),
        Err(AuthError::UnknownSigningKey(signing_keys)) => signing_keys,
    };
    // In a task of its own, which goes on after the timeout: later requests need the keys as well.
    let refresh = tokio::spawn(async move { signing_keys.refresh_unless_recent().await });
    let _ = timeout(SIGNING_KEYS_TIMEOUT, refresh).await;
    gateway.authenticate(headers, target, subject).map_err(|error| match error {
        AuthError::Refused(refusal) => refusal,
        AuthError::UnknownSigningKey(_) => Refusal::invalid_api_key(UNKNOWN_SIGNING_KEY_MESSAGE),
    })
}

/// Parses the request target and checks that the configuration allows it.
fn parse_and_check_target(
    session: &ServerSession,
    context: &mut RequestContext,
) -> Result<Arc<RequestTarget>, Refusal> {
    let header = session.req_header();
    let gateway = Arc::clone(&context.config.gateway);
    // Only WebSockets are upgraded to. Another offer, such as the `h2c` of Java's HTTP client, is ignored and
    // not forwarded; a 101 to it would have no request that it belongs to.
    let upgrade = UpgradeOffer::of_request(header);
    context.request.is_websocket_upgrade = upgrade != UpgradeOffer::None;
    if context.request.is_websocket_upgrade {
        context.request.offered_subprotocol = offered_subprotocol(&header.headers).map(str::to_owned);
    }
    context.request.accepts_chunked_response = header.version != Version::HTTP_10;
    let raw = header.raw_path();
    let target = gateway
        .check_method_and_parse_target(&header.method, raw, context.request.is_websocket_upgrade)
        .inspect_err(|_| {
            context.request.unparsable_path = Some(printable_path(raw));
        })?;
    context.request.target = Some(Arc::clone(&target));
    gateway.check_method_and_path_allowed(&header.method, &target)?;
    match upgrade {
        UpgradeOffer::Malformed(refusal) => Err(refusal),
        UpgradeOffer::None | UpgradeOffer::WebSocket => Ok(target),
    }
}

/// Sets timeouts and keep-alive of the client's session.
fn configure_session(session: &mut ServerSession, gateway: &Gateway) {
    let is_draining = gateway.process_state.is_draining_connections.load(Ordering::Acquire);
    // While this process is being replaced, the client has to connect to its successor for the next request.
    // And HTTP/1.0 has no chunked encoding: a response without a length ends with its connection.
    if is_draining || session.req_header().version == Version::HTTP_10 {
        session.set_keepalive(None);
    }
    session.set_read_timeout(Some(gateway.timeouts.request_body));
    // The balancer or a backend may respond before an upload has ended. Pingora would then close the
    // connection, which resets it while the client sends, so that the client may lose the response. Instead
    // the rest of the upload is read for a while. Without this, to write a 100 would also begin Pingora's reading of a
    // body that `request_body.rs` reads itself.
    session.set_close_on_response_before_downstream_finish(false);
    session.set_total_drain_timeout(Some(UPLOAD_DRAIN_TIMEOUT));
}

/// A header field as text; empty if it is missing or not text.
fn header_text<'s>(session: &'s ServerSession, name: &header::HeaderName) -> &'s str {
    session.get_header(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// The class of a request: that of its client, unless the request itself asks for a less urgent one.
fn request_class(session: &ServerSession, client: &Client) -> RequestClass {
    let lowered = RequestClass::parse(header_text(session, &CLASS_HEADER).trim());
    lowered.map_or(client.class, |lowered| lowered.max(client.class))
}

/// The read timeout of the client, which OpenAI's SDKs send in seconds.
fn client_declared_read_timeout(session: &ServerSession) -> Option<Duration> {
    let value = session.get_header(&X_STAINLESS_READ_TIMEOUT)?.to_str().ok()?;
    Duration::try_from_secs_f64(value.trim().parse().ok()?).ok()
}

/// Whether a request declares a body.
fn declares_body(header: &RequestHeader) -> bool {
    let length = header.headers.get(header::CONTENT_LENGTH);
    header.headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

/// The path of a request target that could not be parsed, for the record: without the query, which may have
/// a key, escaped and shortened.
fn printable_path(raw: &[u8]) -> String {
    let path = raw.split(|byte| *byte == b'?').next().unwrap_or_default();
    path.get(..256).unwrap_or(path).escape_ascii().to_string()
}
