//! `check --live`: whether each backend is there, is who it says it is, takes our credential, and
//! has its deployments. Nothing that is asked is billed.

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

use super::control_request::{ANSWER, Question, ask};
use super::peer::authorities;
use super::probe::MODELS;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::config::{self, KeyPair};
use crate::credentials::Value;
use crate::gateway::Backend;
use crate::names::{BackendName, Deployment};
use crate::proxy::Serving;

/// The version of the API that is asked where the configuration names none.
const API_VERSION: &str = "2024-10-21";
/// An empty request is refused before it costs anything, and after the deployment was looked for.
const EMPTY: &str = "{}";

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    /// Whose.
    pub backend: BackendName,
    /// What.
    pub what: String,
    /// How it is, or what is wrong with it.
    pub result: Result<String, String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, text) = match &self.result {
            Ok(text) => ("good", text),
            Err(text) => ("BAD ", text),
        };
        write!(f, "{mark}  {}  {}: {text}", self.backend, self.what)
    }
}

/// Looks at all backends at once; the findings are in the order of the configuration.
pub async fn inspect(serving: &Arc<Serving>) -> Vec<Finding> {
    let all = (0..serving.gateway.backends.len()).map(|index| {
        let serving = Arc::clone(serving);
        async move { inspect_one(&serving, index).await }
    });
    join_all(all).await.into_iter().flatten().collect()
}

async fn inspect_one(serving: &Serving, index: usize) -> Vec<Finding> {
    let Some(backend) = serving.gateway.backends.get(index) else { return Vec::new() };
    let mut findings = Vec::new();
    let mut note = |what: &str, result: Result<String, String>| {
        let is_good = result.is_ok();
        findings.push(Finding { backend: backend.config.name.clone(), what: what.to_owned(), result });
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
    let reached = spawn_blocking(move || reach(&config, address, connect)).await;
    if !note("connection", reached.unwrap_or_else(|problem| Err(problem.to_string()))) {
        return findings;
    }
    let shown = match timeout(ANSWER, backend.credential.kept().value()).await {
        Ok(Ok(_)) => backend.credential.present(),
        Ok(Err(problem)) => {
            note("credential", Err(problem.to_string()));
            return findings;
        }
        Err(_) => {
            note("credential", Err(format!("none came within {ANSWER:?}")));
            return findings;
        }
    };
    let (Some(shown), Some(peer)) = (shown, serving.peers.of(index, false)) else {
        note("credential", Err("there is none".to_owned()));
        return findings;
    };
    let asking = Asking { backend, shown, peer, connector: Connector::new(None) };
    let models = Question { method: Method::GET, target: MODELS, body: "" };
    let taken = match asking.ask(models).await {
        Ok((status, body)) => match verdict::judge(status, &body, &|_| true) {
            Verdict::Credential | Verdict::PermissionDenied => Err(refused(status, &body)),
            Verdict::Failed => Err(format!("it answers {status}")),
            Verdict::Throttled => Ok("taken, and throttled at the moment (429)".to_owned()),
            _ => Ok(format!("taken ({status})")),
        },
        Err(problem) => Err(problem),
    };
    if !note("credential", taken) {
        return findings;
    }
    for (name, upstream) in backend.config.deployments.listed() {
        let what = match upstream {
            upstream if upstream == name => format!("deployment {name}"),
            upstream => format!("deployment {name} ({upstream})"),
        };
        note(&what, asking.has(upstream, serving.gateway.requests.api_version.as_deref()).await);
    }
    if backend.config.deployments.passes_all() {
        note("deployments", Ok("every name is passed on; none is asked for".to_owned()));
    }
    findings
}

struct Asking<'b> {
    backend: &'b Backend,
    shown: (http::HeaderName, Arc<Value>),
    peer: Box<HttpPeer>,
    connector: Connector,
}

impl Asking<'_> {
    async fn ask(&self, question: Question<'_>) -> Result<(u16, Vec<u8>), String> {
        let answer = ask(self.backend, self.shown.clone(), &self.peer, &self.connector, question);
        match timeout(ANSWER, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(problem)) => Err(format!("no answer: {}", problem.etype().as_str())),
            Err(_) => Err(format!("no answer within {ANSWER:?}")),
        }
    }

    /// Whether the resource has this deployment.
    async fn has(&self, upstream: &Deployment, default_version: Option<&str>) -> Result<String, String> {
        let own = self.backend.config.api_version.as_deref();
        let version = own.or(default_version).unwrap_or(API_VERSION);
        let target = format!("/openai/deployments/{upstream}/chat/completions?api-version={version}");
        let question = Question { method: Method::POST, target: &target, body: EMPTY };
        let (status, body) = self.ask(question).await?;
        match verdict::judge(status, &body, &|_| true) {
            Verdict::Absent => Err(format!("the resource does not have it ({status} DeploymentNotFound)")),
            Verdict::NotHere => Err(format!("{status}: {}", says(&body))),
            Verdict::Credential | Verdict::PermissionDenied => Err(refused(status, &body)),
            Verdict::Failed => Err(format!("it answers {status}")),
            Verdict::Throttled => Ok("there, and throttled at the moment (429)".to_owned()),
            Verdict::Success | Verdict::Client | Verdict::Elsewhere => Ok(format!("there ({status})")),
        }
    }
}

/// The first address of an endpoint.
async fn resolve(backend: &config::Backend, patience: Duration) -> Result<(SocketAddr, String), String> {
    let (host, port) = (backend.endpoint.host.as_str(), backend.endpoint.port);
    let found = match timeout(patience, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(problem)) => return Err(format!("{host} does not resolve: {problem}")),
        Err(_) => return Err(format!("{host} does not resolve within {patience:?}")),
    };
    let all: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
    let first = found.first().ok_or_else(|| format!("{host} has no address"))?;
    Ok((*first, format!("{host} is {}", all.join(", "))))
}

/// Connects and agrees on TLS, for the reason if that fails, which the engine does not tell.
fn reach(backend: &config::Backend, address: SocketAddr, patience: Duration) -> Result<String, String> {
    let stream = TcpStream::connect_timeout(&address, patience)
        .map_err(|problem| format!("cannot connect to {address}: {problem}"))?;
    if !backend.endpoint.tls {
        return Ok(format!("{address}, without TLS"));
    }
    let io = |problem: std::io::Error| problem.to_string();
    stream.set_read_timeout(Some(patience)).map_err(io)?;
    stream.set_write_timeout(Some(patience)).map_err(io)?;
    let name = backend.tls.server_name.as_ref().unwrap_or(&backend.endpoint.host);
    let connector = connector(backend)?;
    match connector.connect(name, stream) {
        Ok(stream) => {
            let ends = stream.ssl().peer_certificate().map(|certificate| certificate.not_after().to_string());
            let ends = ends.unwrap_or_else(|| "unknown".to_owned());
            Ok(format!("{address}, {}, certificate for {name} until {ends}", stream.ssl().version_str()))
        }
        Err(HandshakeError::Failure(half)) if half.ssl().verify_result() != X509VerifyResult::OK => {
            let reason = half.ssl().verify_result().error_string();
            let whose = if backend.tls.ca.is_some() { "tls.ca" } else { "the system's authorities" };
            Err(format!("the certificate for {name} is not believed, by {whose}: {reason}"))
        }
        Err(HandshakeError::Failure(half)) => Err(format!("TLS cannot be agreed on: {}", half.error())),
        Err(HandshakeError::SetupFailure(problem)) => Err(format!("TLS: {problem}")),
        Err(HandshakeError::WouldBlock(_)) => Err(format!("TLS is not agreed on within {patience:?}")),
    }
}

fn connector(backend: &config::Backend) -> Result<SslConnector, String> {
    let bad = |problem: openssl::error::ErrorStack| format!("TLS: {problem}");
    // It knows the system's authorities, since the engine has looked for them by now.
    let mut connector = SslConnector::builder(SslMethod::tls()).map_err(bad)?;
    if let Some(path) = &backend.tls.ca {
        let mut store = X509StoreBuilder::new().map_err(bad)?;
        for authority in authorities(path).map_err(|problem| problem.to_string())? {
            store.add_cert(authority).map_err(bad)?;
        }
        connector.set_cert_store(store.build());
    }
    if let Some(files) = &backend.tls.pair {
        let KeyPair { leaf, chain, key } = KeyPair::read(files).map_err(|problem| problem.to_string())?;
        connector.set_certificate(&leaf).map_err(bad)?;
        connector.set_private_key(&key).map_err(bad)?;
        for certificate in chain {
            connector.add_extra_chain_cert(certificate).map_err(bad)?;
        }
    }
    Ok(connector.build())
}

fn refused(status: u16, body: &[u8]) -> String {
    format!("it is refused ({status}): {}", says(body))
}

/// What an error says, fit for a terminal.
fn says(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = value.pointer("/error/message").or_else(|| value.get("message"));
    let text = message.and_then(serde_json::Value::as_str).unwrap_or("no reason given");
    text.escape_debug().take(256).collect()
}
