//! `check --live`: whether each backend resolves, can be connected to, has a trusted certificate,
//! accepts its credential, and has its deployments. None of the requests is billed.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use http::Method;
use openssl::ssl::{HandshakeError, SslConnector, SslMethod};
use openssl::x509::X509VerifyResult;
use openssl::x509::store::X509StoreBuilder;
use pingora::connectors::http::Connector;
use pingora::upstreams::peer::HttpPeer;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::control_request::{CONTROL_TIMEOUT, ControlRequest, send_control_request};
use super::peer::load_ca_certificates;
use super::probe::MODELS_TARGET;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::config::{self, CertifiedKey};
use crate::credentials::SecretValue;
use crate::gateway::Backend;
use crate::names::{BackendName, DeploymentName};
use crate::proxy::ActiveConfig;

/// The api-version where the configuration names none.
const API_VERSION: &str = "2024-10-21";
/// An empty request is refused before it costs anything, but after the deployment is looked up.
const EMPTY_JSON: &str = "{}";

/// The result of one check.
#[derive(Debug)]
pub struct CheckFinding {
    /// The backend.
    pub backend: BackendName,
    /// What was checked.
    pub what: String,
    /// What was found, or what is wrong.
    pub result: Result<String, String>,
}

impl fmt::Display for CheckFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, text) = match &self.result {
            Ok(text) => ("good", text),
            Err(text) => ("BAD ", text),
        };
        write!(f, "{mark}  {}  {}: {text}", self.backend, self.what)
    }
}

/// Checks all backends at once; the findings are in the order of the configuration.
pub async fn check_backends(serving: &Arc<ActiveConfig>) -> Vec<CheckFinding> {
    let all = (0..serving.gateway.backends.len()).map(|index| {
        let serving = Arc::clone(serving);
        async move { check_backend(&serving, index).await }
    });
    join_all(all).await.into_iter().flatten().collect()
}

async fn check_backend(serving: &ActiveConfig, index: usize) -> Vec<CheckFinding> {
    let Some(backend) = serving.gateway.backends.get(index) else { return Vec::new() };
    let mut findings = Vec::new();
    let mut note = |what: &str, result: Result<String, String>| {
        let is_good = result.is_ok();
        findings.push(CheckFinding { backend: backend.config.name.clone(), what: what.to_owned(), result });
        is_good
    };
    let connect = serving.gateway.timeouts.connect;
    let address = match resolve(&backend.config, connect).await {
        Ok((address, text)) => {
            note("name", Ok(text));
            address
        }
        Err(problem) => {
            note("name", Err(problem));
            return findings;
        }
    };
    let config = backend.config.clone();
    let reached = spawn_blocking(move || check_connection(&config, address, connect)).await;
    if !note("connection", reached.unwrap_or_else(|problem| Err(problem.to_string()))) {
        return findings;
    }
    let auth_header = match timeout(CONTROL_TIMEOUT, backend.credential.secret().wait_for_value()).await {
        Ok(Ok(_)) => backend.credential.auth_header(),
        Ok(Err(problem)) => {
            note("credential", Err(problem.to_string()));
            return findings;
        }
        Err(_) => {
            note("credential", Err(format!("no token or secret within {CONTROL_TIMEOUT:?}")));
            return findings;
        }
    };
    let (Some(auth_header), Some(peer)) = (auth_header, serving.peers.peer_for_attempt(index, false)) else {
        note("credential", Err("the backend has no credential".to_owned()));
        return findings;
    };
    let check = BackendCheck { backend, auth_header, peer, connector: Connector::new(None) };
    let models = ControlRequest { method: Method::GET, target: MODELS_TARGET, body: "" };
    let taken = match check.ask(models).await {
        Ok((status, body)) => match verdict::judge_response(status, &body, &|_| true) {
            Verdict::CredentialRejected | Verdict::PermissionDenied => Err(refusal_text(status, &body)),
            Verdict::BackendFailure => Err(format!("the backend answers {status}")),
            Verdict::Throttled => Ok("accepted; the backend is throttled at the moment (429)".to_owned()),
            _ => Ok(format!("accepted ({status})")),
        },
        Err(problem) => Err(problem),
    };
    if !note("credential", taken) {
        return findings;
    }
    for (name, upstream) in backend.config.deployments.entries() {
        let what = match upstream {
            upstream if upstream == name => format!("deployment {name}"),
            upstream => format!("deployment {name} ({upstream})"),
        };
        note(
            &what,
            check
                .check_deployment(upstream, serving.gateway.request_config.default_api_version.as_deref())
                .await,
        );
    }
    if backend.config.deployments.passes_unlisted() {
        note("deployments", Ok("every name is passed on; none is checked".to_owned()));
    }
    findings
}

struct BackendCheck<'b> {
    backend: &'b Backend,
    auth_header: (http::HeaderName, Arc<SecretValue>),
    peer: Box<HttpPeer>,
    connector: Connector,
}

impl BackendCheck<'_> {
    async fn ask(&self, question: ControlRequest<'_>) -> Result<(u16, Vec<u8>), String> {
        let answer = send_control_request(
            self.backend,
            self.auth_header.clone(),
            &self.peer,
            &self.connector,
            question,
        );
        match timeout(CONTROL_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(problem)) => Err(format!("no response: {}", problem.etype().as_str())),
            Err(_) => Err(format!("no response within {CONTROL_TIMEOUT:?}")),
        }
    }

    /// Whether the resource has this deployment.
    async fn check_deployment(
        &self,
        upstream: &DeploymentName,
        default_version: Option<&str>,
    ) -> Result<String, String> {
        let own = self.backend.config.api_version_override.as_deref();
        let version = own.or(default_version).unwrap_or(API_VERSION);
        let target = format!("/openai/deployments/{upstream}/chat/completions?api-version={version}");
        let question = ControlRequest { method: Method::POST, target: &target, body: EMPTY_JSON };
        let (status, body) = self.ask(question).await?;
        match verdict::judge_response(status, &body, &|_| true) {
            Verdict::DeploymentNotFound => {
                Err(format!("the resource does not have it ({status} DeploymentNotFound)"))
            }
            Verdict::UnsupportedByBackend => Err(format!("{status}: {}", error_message(&body))),
            Verdict::CredentialRejected | Verdict::PermissionDenied => Err(refusal_text(status, &body)),
            Verdict::BackendFailure => Err(format!("the backend answers {status}")),
            Verdict::Throttled => Ok("exists; it is throttled at the moment (429)".to_owned()),
            Verdict::Success | Verdict::ClientError | Verdict::RetryableStatus => {
                Ok(format!("exists ({status})"))
            }
        }
    }
}

/// The first address of an endpoint, and all of them as text.
async fn resolve(
    backend: &config::BackendConfig,
    time_limit: Duration,
) -> Result<(SocketAddr, String), String> {
    let (host, port) = (backend.endpoint.host.as_str(), backend.endpoint.port);
    let found = match timeout(time_limit, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(problem)) => return Err(format!("{host} does not resolve: {problem}")),
        Err(_) => return Err(format!("{host} does not resolve within {time_limit:?}")),
    };
    let all: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
    let first = found.first().ok_or_else(|| format!("{host} has no address"))?;
    Ok((*first, format!("{host} resolves to {}", all.join(", "))))
}

/// Connects and makes the TLS handshake, with OpenSSL directly: the engine does not tell why one fails.
fn check_connection(
    backend: &config::BackendConfig,
    address: SocketAddr,
    time_limit: Duration,
) -> Result<String, String> {
    let stream = TcpStream::connect_timeout(&address, time_limit)
        .map_err(|problem| format!("cannot connect to {address}: {problem}"))?;
    if !backend.endpoint.uses_tls {
        return Ok(format!("{address}, without TLS"));
    }
    let io = |problem: std::io::Error| problem.to_string();
    stream.set_read_timeout(Some(time_limit)).map_err(io)?;
    stream.set_write_timeout(Some(time_limit)).map_err(io)?;
    let name = backend.tls.server_name.as_ref().unwrap_or(&backend.endpoint.host);
    let connector = tls_connector(backend)?;
    match connector.connect(name, stream) {
        Ok(stream) => {
            let ends = stream.ssl().peer_certificate().map(|certificate| certificate.not_after().to_string());
            let ends = ends.unwrap_or_else(|| "unknown".to_owned());
            Ok(format!("{address}, {}, certificate for {name} until {ends}", stream.ssl().version_str()))
        }
        Err(HandshakeError::Failure(half)) if half.ssl().verify_result() != X509VerifyResult::OK => {
            let reason = half.ssl().verify_result().error_string();
            let whose =
                if backend.tls.ca_file.is_some() { "tls.ca" } else { "the system's certificate authorities" };
            Err(format!("the certificate for {name} is not trusted by {whose}: {reason}"))
        }
        Err(HandshakeError::Failure(half)) => Err(format!("the TLS handshake failed: {}", half.error())),
        Err(HandshakeError::SetupFailure(problem)) => Err(format!("TLS: {problem}")),
        Err(HandshakeError::WouldBlock(_)) => {
            Err(format!("the TLS handshake was not complete within {time_limit:?}"))
        }
    }
}

fn tls_connector(backend: &config::BackendConfig) -> Result<SslConnector, String> {
    let bad = |problem: openssl::error::ErrorStack| format!("TLS: {problem}");
    // The vendored OpenSSL finds the system's authorities by environment variables, which the engine's
    // connector has set by now.
    let mut connector = SslConnector::builder(SslMethod::tls()).map_err(bad)?;
    if let Some(path) = &backend.tls.ca_file {
        let mut store = X509StoreBuilder::new().map_err(bad)?;
        for authority in load_ca_certificates(path).map_err(|problem| problem.to_string())? {
            store.add_cert(authority).map_err(bad)?;
        }
        connector.set_cert_store(store.build());
    }
    if let Some(files) = &backend.tls.client_certificate {
        let CertifiedKey { leaf, intermediates: chain, private_key: key } =
            CertifiedKey::from_files(files).map_err(|problem| problem.to_string())?;
        connector.set_certificate(&leaf).map_err(bad)?;
        connector.set_private_key(&key).map_err(bad)?;
        for certificate in chain {
            connector.add_extra_chain_cert(certificate).map_err(bad)?;
        }
    }
    Ok(connector.build())
}

fn refusal_text(status: u16, body: &[u8]) -> String {
    format!("refused ({status}): {}", error_message(body))
}

/// The message of an error response, escaped and cut for a terminal.
fn error_message(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = value.pointer("/error/message").or_else(|| value.get("message"));
    let text = message.and_then(serde_json::Value::as_str).unwrap_or("no reason given");
    text.escape_debug().take(256).collect()
}
