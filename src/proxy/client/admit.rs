//! A request before a backend is chosen: its head, whose it is, its body, what it asks for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use tokio::time::timeout;

use super::head;
use super::request_body;
use super::request_body::{Bounds, Budget, Intake, NoBody};
use crate::admission::clients::{self, Client, Stranger};
use crate::azure::Target;
use crate::gateway::{Body, Gateway};
use crate::names::Subject;
use crate::proxy::attempt::retry_state::RetryState;
use crate::proxy::context::RequestContext;
use crate::refusal::Refusal;

/// How long a client that is refused may take to send the rest of its body, so that it gets
/// to read why.
pub(in crate::proxy) const DRAIN: Duration = Duration::from_secs(5);

static X_STAINLESS_READ_TIMEOUT: header::HeaderName =
    header::HeaderName::from_static("x-stainless-read-timeout");

/// The longest that a request waits for the keys that tokens are signed with.
const KEYS: Duration = Duration::from_secs(5);

/// Everything before a backend is chosen.
///
/// # Errors
/// [`NoBody`] where it goes no further.
pub(in crate::proxy) async fn receive(
    session: &mut ServerSession,
    flow: &mut RequestContext,
    bodies: &Arc<Budget>,
) -> Result<(), NoBody> {
    let gateway = Arc::clone(&flow.serving.gateway);
    prepare(session, &gateway);
    if session.req_header().version == Version::HTTP_2 {
        head::check_fields(session.req_header())?;
    }
    let target = read_head(session, flow)?;
    let subject = flow.subject.take();
    let client = authenticate(session, &gateway, &target, subject.as_ref()).await?;
    flow.client = Some(Arc::clone(&client));
    let method = session.req_header().method.clone();
    gateway.permit(&method, &target, &client)?;
    let bounds = Bounds {
        held: gateway.requests.max_body,
        streamed: target.is_upload(&method).then_some(gateway.requests.max_streamed_body),
        deadline: gateway.timeouts.request_body,
        budget: Arc::clone(bodies),
        memory: gateway.requests.body_memory,
    };
    flow.idle(Instant::now());
    let intake = request_body::take(session, &bounds).await?;
    let complete = Instant::now();
    let encoding = text(session, &header::CONTENT_ENCODING).trim();
    let content_type = text(session, &header::CONTENT_TYPE).to_owned();
    let encoded = !matches!(encoding, "" | "identity");
    let body = Body { bytes: &intake.bytes, content_type: &content_type, encoded };
    let asked = gateway.read(&method, &target, &body);
    flow.busy(complete);
    flow.body = intake;
    flow.content_type = content_type;
    let asked = asked?;
    flow.deployment.clone_from(&asked.deployment);
    flow.stream = asked.stream;
    let admitted = gateway.admit(&method, target, &client, asked)?;
    let allowance = gateway.allowance(Instant::now(), flow.arrival, clients_patience(session));
    flow.course = Some(RetryState::new(admitted, allowance));
    Ok(())
}

/// Whose request it is. Where only the key is not known that its token was signed with, that is
/// asked for, which is the one moment that anybody waits here.
async fn authenticate(
    session: &ServerSession,
    gateway: &Gateway,
    target: &Target,
    subject: Option<&Subject>,
) -> Result<Arc<Client>, Refusal> {
    let headers = &session.req_header().headers;
    let signers = match gateway.authenticate(headers, target, subject) {
        Ok(client) => return Ok(client),
        Err(Stranger::Refused(refusal)) => return Err(refusal),
        Err(Stranger::UnknownKey(signers)) => signers,
    };
    // It goes on for those who come later, whatever becomes of this request.
    let refresh = tokio::spawn(async move { signers.refresh().await });
    let _ = timeout(KEYS, refresh).await;
    gateway.authenticate(headers, target, subject).map_err(|stranger| match stranger {
        Stranger::Refused(refusal) => refusal,
        Stranger::UnknownKey(_) => clients::refused(clients::UNKNOWN_KEY),
    })
}

/// What the head tells about where to.
fn read_head(session: &ServerSession, flow: &mut RequestContext) -> Result<Arc<Target>, Refusal> {
    let header = session.req_header();
    let gateway = Arc::clone(&flow.serving.gateway);
    flow.upgrades = session.is_upgrade_req();
    flow.knows_chunks = header.version != Version::HTTP_10;
    if announces_body(header) {
        flow.body = Intake::unread();
    }
    let raw = header.raw_path();
    let target = gateway.locate(&header.method, raw, flow.upgrades).inspect_err(|_| {
        flow.raw_path = Some(readable(raw));
    })?;
    flow.target = Some(Arc::clone(&target));
    gateway.allow(&header.method, &target)?;
    Ok(target)
}

/// Sets what has to be set on the client's own session, before it is replaced.
fn prepare(session: &mut ServerSession, gateway: &Gateway) {
    let leaving = gateway.process.leaving.load(Ordering::Acquire);
    // Streams end with the connection for those who do not know chunks; and the next request
    // is for another process when this one ends.
    if leaving || session.req_header().version == Version::HTTP_10 {
        session.set_keepalive(None);
    }
    session.set_read_timeout(Some(gateway.timeouts.request_body));
    // A client that does not read holds a backend's answer, its body's memory and a place.
    session.set_write_timeout(Some(gateway.timeouts.idle));
    // An answer may come before the end of an upload, from us or from a backend. The rest is
    // read before the connection is used again or closed, for a moment: a client that is
    // reset while it sends does not get to read why.
    session.set_close_on_response_before_downstream_finish(false);
    session.set_total_drain_timeout(Some(DRAIN));
}

/// A header as text; empty if there is none.
fn text<'s>(session: &'s ServerSession, name: &header::HeaderName) -> &'s str {
    session.get_header(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// How long the client's SDK waits for an answer, as it says.
fn clients_patience(session: &ServerSession) -> Option<Duration> {
    let value = session.get_header(&X_STAINLESS_READ_TIMEOUT)?.to_str().ok()?;
    Duration::try_from_secs_f64(value.trim().parse().ok()?).ok()
}

/// Whether a request announces a body.
fn announces_body(header: &RequestHeader) -> bool {
    let length = header.headers.get(header::CONTENT_LENGTH);
    header.headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

/// A target that could not be understood, fit for a record: no query, escaped, cut.
fn readable(raw: &[u8]) -> String {
    let path = raw.split(|byte| *byte == b'?').next().unwrap_or_default();
    path.get(..256).unwrap_or(path).escape_ascii().to_string()
}
