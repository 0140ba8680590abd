//! The balancer's own requests to a backend, for health probes, questions and `check --live`. Azure does not bill them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;

use super::headers;
use crate::credentials::SecretValue;
use crate::gateway::Backend;
use crate::names::DeploymentName;

/// Longest duration of such a request. Health probes get the time for connecting in addition.
pub(super) const BALANCER_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Reading a response body stops once it exceeds this many bytes; errors are shorter.
const STOP_READING_BODY_AFTER_BYTES: usize = 64 * 1024;

/// The list of models. Every Azure OpenAI resource serves it.
pub(super) const MODELS_TARGET: &str = "/openai/models?api-version=2024-10-21";
/// The api-version of such requests if the configuration names none.
const DEFAULT_API_VERSION: &str = "2024-10-21";
/// A body without any field. Azure checks credential, permission and deployment first and then refuses the
/// request, before it costs anything.
pub(super) const EMPTY_REQUEST_BODY: &str = "{}";

/// The target of a request to a deployment of a backend; `path` is what follows its name.
/// `default_version` is `requests.api_version`.
pub(super) fn deployment_target(
    backend: &Backend,
    deployment: &DeploymentName,
    path: &str,
    default_version: Option<&str>,
) -> String {
    let own_version = backend.config.api_version_override.as_deref();
    let version = own_version.or(default_version).unwrap_or(DEFAULT_API_VERSION);
    format!("/openai/deployments/{deployment}/{path}?api-version={version}")
}

/// A request of the balancer itself to a backend.
pub(super) struct BalancerRequest<'q> {
    pub(super) method: Method,
    /// Path and query.
    pub(super) target: &'q str,
    /// JSON; empty for no body.
    pub(super) body: &'static str,
}

/// Sends the request; returns the status and the beginning of the response body.
///
/// # Errors
/// If the connection fails or the response is incomplete.
pub(super) async fn send_balancer_request(
    backend: &Backend,
    (name, secret): (HeaderName, Arc<SecretValue>),
    peer: &HttpPeer,
    connector: &Connector,
    balancer_request: BalancerRequest<'_>,
) -> pingora::Result<(u16, Vec<u8>)> {
    let mut request =
        RequestHeader::build(balancer_request.method, balancer_request.target.as_bytes(), Some(6))?;
    headers::set_host_and_accept_encoding(&mut request, backend)?;
    request.insert_header(name, secret.header_value.clone())?;
    if !balancer_request.body.is_empty() {
        request.insert_header(http::header::CONTENT_TYPE, "application/json")?;
        request.insert_header(http::header::CONTENT_LENGTH, balancer_request.body.len())?;
    }
    let (mut session, _) = connector.get_http_session(peer).await?;
    session.set_read_timeout(Some(BALANCER_REQUEST_TIMEOUT));
    session.write_request_header(Box::new(request)).await?;
    if !balancer_request.body.is_empty() {
        session.write_request_body(Bytes::from_static(balancer_request.body.as_bytes()), true).await?;
    }
    session.finish_request_body().await?;
    session.read_response_header().await?;
    let status = session.response_header().map_or(0, |header| header.status.as_u16());
    let mut body = Vec::new();
    while let Some(piece) = session.read_response_body().await? {
        body.extend_from_slice(&piece);
        if body.len() > STOP_READING_BODY_AFTER_BYTES {
            break;
        }
    }
    if session.response_done() {
        connector.release_http_session(session, peer, peer.options.idle_timeout).await;
    }
    Ok((status, body))
}
