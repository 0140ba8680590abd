//! The checks of `check --live`: whether the name of each backend resolves, its connection can be made, its
//! certificate is trusted, its credential is accepted, and its deployments exist. None of the requests is
//! billed.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use http::Method;
use openssl::error::ErrorStack;
use openssl::ssl::{HandshakeError, SslConnector, SslMethod};
use openssl::x509::X509VerifyResult;
use openssl::x509::store::X509StoreBuilder;
use pingora::connectors::http::Connector;
use pingora::upstreams::peer::HttpPeer;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::balancer_request::{
    BALANCER_REQUEST_TIMEOUT, BalancerRequest, EMPTY_REQUEST_BODY, MODELS_TARGET, deployment_target,
    send_balancer_request,
};
use super::peer::load_ca_certificates;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::config::{self, CertifiedKey};
use crate::credentials::{CredentialRedactor, SecretValue};
use crate::gateway::Backend;
use crate::names::{BackendName, DeploymentName};
use crate::outbound::describe_engine_error;
use crate::proxy::ActiveConfig;
use crate::system_error;

/// The result of one check.
#[derive(Debug)]
pub struct CheckFinding {
    /// What it is about: the name of a backend, or a key of the configuration.
    pub subject: String,
    /// What was checked: `name`, `connection`, `credential` or a deployment of a backend.
    pub checked_item: String,
    /// What was found, or what is wrong.
    pub result: Result<String, String>,
}

impl fmt::Display for CheckFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, text) = match &self.result {
            Ok(text) => ("good", text),
            Err(text) => ("BAD ", text),
        };
        write!(f, "{mark}  {}  {}: {text}", self.subject, self.checked_item)
    }
}

/// Checks all backends at the same time. The findings are in the order of the configuration.
pub async fn check_backends(config: &Arc<ActiveConfig>) -> Vec<CheckFinding> {
    let all = (0..config.gateway.backends.len()).map(|index| {
        let config = Arc::clone(config);
        async move { check_backend(&config, index).await }
    });
    join_all(all).await.into_iter().flatten().collect()
}

/// Checks one backend. Each check is made only if those before it have succeeded.
async fn check_backend(config: &ActiveConfig, index: usize) -> Vec<CheckFinding> {
    let Some(backend) = config.gateway.backends.get(index) else { return Vec::new() };
    let mut findings = BackendFindings { backend: &backend.config.name, list: Vec::new() };
    if check_reachability(&backend.config, config.gateway.timeouts.connect, &mut findings).await
        && let Some(sender) = check_credential(config, index, backend, &mut findings).await
    {
        check_deployments(&sender, config, &mut findings).await;
    }
    findings.list
}

/// The findings about one backend.
struct BackendFindings<'b> {
    backend: &'b BackendName,
    list: Vec<CheckFinding>,
}

impl BackendFindings<'_> {
    /// Adds a finding; returns whether the check succeeded.
    fn add(&mut self, checked_item: &str, result: Result<String, String>) -> bool {
        let succeeded = result.is_ok();
        let (subject, checked_item) = (self.backend.to_string(), checked_item.to_owned());
        self.list.push(CheckFinding { subject, checked_item, result });
        succeeded
    }
}

/// Checks the name and the connection.
async fn check_reachability(
    backend: &config::BackendConfig,
    connect_timeout: Duration,
    findings: &mut BackendFindings<'_>,
) -> bool {
    let address = match resolve(backend, connect_timeout).await {
        Ok((address, text)) => {
            findings.add("name", Ok(text));
            address
        }
        Err(error) => return findings.add("name", Err(error)),
    };
    let backend = backend.clone();
    let connected = spawn_blocking(move || check_tcp_and_tls(&backend, address, connect_timeout)).await;
    findings.add("connection", connected.unwrap_or_else(|error| Err(error.to_string())))
}

/// Checks the credential with a request for the list of models; returns what further checks need if it is
/// accepted.
async fn check_credential<'b>(
    config: &ActiveConfig,
    index: usize,
    backend: &'b Backend,
    findings: &mut BackendFindings<'_>,
) -> Option<BackendRequestSender<'b>> {
    let auth_header = match timeout(BALANCER_REQUEST_TIMEOUT, backend.credential.secret().wait_for_value())
        .await
    {
        Ok(Ok(_)) => backend.credential.current_auth_header(),
        Ok(Err(error)) => {
            findings.add("credential", Err(error.to_string()));
            return None;
        }
        Err(_) => {
            findings
                .add("credential", Err(format!("no token or secret within {BALANCER_REQUEST_TIMEOUT:?}")));
            return None;
        }
    };
    let (Some(auth_header), Some(peer)) = (auth_header, config.peers.peer_for_attempt(index, false)) else {
        findings.add("credential", Err("the backend has no credential".to_owned()));
        return None;
    };
    let sender = BackendRequestSender { backend, auth_header, peer, connector: Connector::new(None) };
    let models = BalancerRequest { method: Method::GET, target: MODELS_TARGET, body: "" };
    let result = match sender.send(models).await {
        Ok((status, body)) => match verdict::judge_response(status, &body, &|_| true) {
            Verdict::CredentialRejected | Verdict::PermissionDenied => Err(refusal_text(status, &body)),
            Verdict::BackendFailure => Err(format!("the backend answers {status}")),
            Verdict::Throttled => Ok("accepted; the backend is throttled at the moment (429)".to_owned()),
            _ => Ok(format!("accepted ({status})")),
        },
        Err(error) => Err(error),
    };
    findings.add("credential", result).then_some(sender)
}

/// Checks each deployment that the configuration lists.
async fn check_deployments(
    sender: &BackendRequestSender<'_>,
    config: &ActiveConfig,
    findings: &mut BackendFindings<'_>,
) {
    let deployments = &sender.backend.config.deployments;
    let default_version = config.gateway.request_config.default_api_version.as_deref();
    for (name, upstream_name) in deployments.listed_entries() {
        let checked_item = if upstream_name == name {
            format!("deployment {name}")
        } else {
            format!("deployment {name} ({upstream_name})")
        };
        findings.add(&checked_item, sender.check_deployment(upstream_name, default_version).await);
    }
    if deployments.passes_unlisted() {
        findings.add("deployments", Ok("every name is passed on; none is checked".to_owned()));
    }
}

/// What is needed to send requests to one backend.
struct BackendRequestSender<'b> {
    backend: &'b Backend,
    auth_header: (http::HeaderName, Arc<SecretValue>),
    peer: Box<HttpPeer>,
    connector: Connector,
}

impl BackendRequestSender<'_> {
    /// Sends a request; returns the status and the beginning of the response body.
    async fn send(&self, request: BalancerRequest<'_>) -> Result<(u16, Vec<u8>), String> {
        let auth_header = self.auth_header.clone();
        let response = send_balancer_request(self.backend, auth_header, &self.peer, &self.connector, request);
        match timeout(BALANCER_REQUEST_TIMEOUT, response).await {
            Ok(Ok((status, body))) => {
                // An error may quote the credential.
                let redactor = CredentialRedactor::new(&self.auth_header.1.secret);
                let redacted = redactor.and_then(|redactor| redactor.redact_if_found(&body));
                Ok((status, redacted.unwrap_or(body)))
            }
            Ok(Err(error)) => Err(format!("no response: {}", describe_engine_error(&error))),
            Err(_) => Err(format!("no response within {BALANCER_REQUEST_TIMEOUT:?}")),
        }
    }

    /// Checks whether the resource has this deployment.
    async fn check_deployment(
        &self,
        upstream_name: &DeploymentName,
        default_version: Option<&str>,
    ) -> Result<String, String> {
        let target = deployment_target(self.backend, upstream_name, "chat/completions", default_version);
        let request = BalancerRequest { method: Method::POST, target: &target, body: EMPTY_REQUEST_BODY };
        let (status, body) = self.send(request).await?;
        match verdict::judge_response(status, &body, &|_| true) {
            Verdict::DeploymentNotFound => {
                Err(format!("the resource does not have it ({status} DeploymentNotFound)"))
            }
            Verdict::UnsupportedByBackend => Err(format!("{status}: {}", error_message(&body))),
            Verdict::CredentialRejected | Verdict::PermissionDenied => Err(refusal_text(status, &body)),
            Verdict::BackendFailure => Err(format!("the backend answers {status}")),
            Verdict::Throttled => Ok("exists; it is throttled at the moment (429)".to_owned()),
            // A 400 for the empty request is what an existing deployment answers.
            Verdict::Success
            | Verdict::ClientError
            | Verdict::RetryElsewhere
            | Verdict::TooLargeForBackend
            | Verdict::NotOnThisResource
            | Verdict::PromptTooLong => Ok(format!("exists ({status})")),
        }
    }
}

/// The first address of an endpoint, and all of them as text.
async fn resolve(
    backend: &config::BackendConfig,
    time_limit: Duration,
) -> Result<(SocketAddr, String), String> {
    let (host, port) = (backend.endpoint.host.as_str(), backend.endpoint.port);
    let addresses = match timeout(time_limit, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            return Err(format!("{host} does not resolve: {}", system_error::describe_lookup(&error)));
        }
        Err(_) => return Err(format!("{host} does not resolve within {time_limit:?}")),
    };
    let all: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let first = addresses.first().ok_or_else(|| format!("{host} has no address"))?;
    Ok((*first, format!("{host} resolves to {}", all.join(", "))))
}

/// Connects and makes the TLS handshake, with OpenSSL directly, because Pingora's error does not say whether
/// the certificate is the reason.
fn check_tcp_and_tls(
    backend: &config::BackendConfig,
    address: SocketAddr,
    time_limit: Duration,
) -> Result<String, String> {
    let stream = TcpStream::connect_timeout(&address, time_limit)
        .map_err(|error| format!("cannot connect to {address}: {}", system_error::describe(&error)))?;
    if !backend.endpoint.uses_tls {
        return Ok(format!("{address}, without TLS"));
    }
    stream.set_read_timeout(Some(time_limit)).map_err(|error| system_error::describe(&error))?;
    stream.set_write_timeout(Some(time_limit)).map_err(|error| system_error::describe(&error))?;
    let name = backend.tls.server_name_override.as_ref().unwrap_or(&backend.endpoint.host);
    let connector = tls_connector(backend)?;
    match connector.connect(name, stream) {
        Ok(stream) => {
            let expiry =
                stream.ssl().peer_certificate().map(|certificate| certificate.not_after().to_string());
            let expiry = expiry.unwrap_or_else(|| "unknown".to_owned());
            Ok(format!("{address}, {}, certificate for {name} until {expiry}", stream.ssl().version_str()))
        }
        Err(HandshakeError::Failure(failed)) if failed.ssl().verify_result() != X509VerifyResult::OK => {
            let reason = failed.ssl().verify_result().error_string();
            let authorities =
                if backend.tls.ca_file.is_some() { "tls.ca" } else { "the system's certificate authorities" };
            Err(format!("the certificate for {name} is not trusted by {authorities}: {reason}"))
        }
        Err(HandshakeError::Failure(failed)) => Err(format!(
            "the TLS handshake with {address} failed: {}",
            failed.error().io_error().map_or_else(
                || system_error::describe_tls(&failed.error().to_string()),
                system_error::describe
            )
        )),
        Err(HandshakeError::SetupFailure(error)) => Err(tls_setup_problem(&error)),
        Err(HandshakeError::WouldBlock(_)) => {
            Err(format!("the TLS handshake was not complete within {time_limit:?}"))
        }
    }
}

fn tls_setup_problem(error: &ErrorStack) -> String {
    format!("TLS cannot be set up for this backend: {}", system_error::describe_tls(&error.to_string()))
}

fn tls_connector(backend: &config::BackendConfig) -> Result<SslConnector, String> {
    let to_text = |error: ErrorStack| tls_setup_problem(&error);
    // The vendored OpenSSL finds the system's authorities only through environment variables. Pingora sets
    // them when the first connector is made, and the keyring has made one by now.
    let mut connector = SslConnector::builder(SslMethod::tls()).map_err(to_text)?;
    if let Some(path) = &backend.tls.ca_file {
        let mut store = X509StoreBuilder::new().map_err(to_text)?;
        for authority in load_ca_certificates(path).map_err(|error| error.to_string())? {
            store.add_cert(authority).map_err(to_text)?;
        }
        connector.set_cert_store(store.build());
    }
    if let Some(files) = &backend.tls.client_certificate {
        let CertifiedKey { leaf, intermediates, private_key } =
            CertifiedKey::from_files(files).map_err(|error| error.to_string())?;
        connector.set_certificate(&leaf).map_err(to_text)?;
        connector.set_private_key(&private_key).map_err(to_text)?;
        for certificate in intermediates {
            connector.add_extra_chain_cert(certificate).map_err(to_text)?;
        }
    }
    Ok(connector.build())
}

fn refusal_text(status: u16, body: &[u8]) -> String {
    format!("refused ({status}): {}", error_message(body))
}

/// The message of an error response, escaped and shortened for a terminal.
fn error_message(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = value.pointer("/error/message").or_else(|| value.get("message"));
    let text = message.and_then(serde_json::Value::as_str).unwrap_or("no reason given");
    text.escape_debug().take(256).collect()
}
