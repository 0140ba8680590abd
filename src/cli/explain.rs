//! `aoai-lb explain`: what would happen to a request, told by the rules that decide about requests.
//!
//! Nothing is asked of anybody: a gateway is made of the file, one request is put to it, and what it
//! decides is written down.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use crate::admission::clients::Client;
use crate::azure::response::verdict::Verdict;
use crate::config::{Balance, Config};
use crate::credentials::Keyring;
use crate::gateway::{Admitted, Body, Gateway, Process};
use crate::proxy;
use crate::record::{RecordError, Recorder};
use crate::refusal::Refusal;
use crate::routing::retry_plan::{Choice, Journey, Outcome};

/// A request to be explained.
pub(super) struct Request {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// `model` in its body.
    pub model: Option<String>,
    /// The client's name.
    pub client: Option<String>,
}

/// Why nothing can be explained.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotExplained {
    /// The threads that a gateway needs cannot be started.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// There is no such client.
    #[error("--client: there is no client {name}; there are {known}")]
    Client {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
}

/// What replies say, as far as it matters what they mean.
const REPLIES: [(u16, &str, &str); 14] = [
    (200, "an answer", ""),
    (400, "something about the request", r#"{"error":{"code":"BadRequest","message":"…"}}"#),
    (400, "the content filter's verdict", r#"{"error":{"code":"content_filter","message":"…"}}"#),
    (
        401,
        "the credential is refused",
        r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key"}}"#,
    ),
    (403, "the credential may not do this", r#"{"error":{"code":"PermissionDenied","message":"…"}}"#),
    (
        403,
        "the network is refused",
        r#"{"error":{"code":"403","message":"Access denied due to Virtual Network/Firewall rules."}}"#,
    ),
    (404, "the deployment is missing", r#"{"error":{"code":"DeploymentNotFound","message":"…"}}"#),
    (404, "something else is missing", r#"{"error":{"code":"404","message":"Resource not found"}}"#),
    (408, "it took too long", ""),
    (409, "a conflict", "{}"),
    (424, "a failed dependency", "{}"),
    (429, "too many requests", ""),
    (500, "a server's error", ""),
    (503, "it is not available", ""),
];

/// Explains a request.
///
/// # Errors
/// [`NotExplained`].
pub(super) fn explain(
    config: &Config,
    request: &Request,
    runtime: &tokio::runtime::Handle,
) -> Result<String, NotExplained> {
    let now = Instant::now();
    let keyring = Keyring::offline(runtime);
    // Nothing is recorded.
    let recorder = Recorder::open(&Config { record: None, ..config.clone() }, &keyring, runtime)?;
    let process = Arc::new(Process::new(now, recorder, keyring));
    let gateway = Gateway::new(config, process, now);
    let mut text = format!("{} {}\n", request.method, request.target);
    let client = client(&gateway, request, &mut text)?;
    match admit(&gateway, request, &client, &mut text) {
        Ok(admitted) => routes(&gateway, config, request, &admitted, now, &mut text),
        Err(refusal) => {
            let reason = refusal.reason;
            line(&mut text, "answer", &format!("{} {}: {}", reason.status(), reason.code(), refusal.message));
            line(&mut text, "", "no backend is asked");
        }
    }
    gateway.process.recorder.close();
    Ok(text)
}

fn line(text: &mut String, what: &str, how: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{what:<12}{how}");
}

fn client(gateway: &Gateway, request: &Request, text: &mut String) -> Result<Arc<Client>, NotExplained> {
    let all = gateway.clients().all();
    let Some(name) = &request.client else {
        let who = match all.len() {
            0 => "anyone: clients is open",
            _ => "none given: as one that may use everything (--client NAME says which)",
        };
        line(text, "client", who);
        return Ok(Arc::new(Client::unrestricted()));
    };
    let known =
        || all.iter().filter_map(|client| Some(client.name.as_ref()?.to_string())).collect::<Vec<_>>();
    let client = gateway.clients().named(name).ok_or_else(|| NotExplained::Client {
        name: name.clone(),
        known: if all.is_empty() { "none: clients is open".to_owned() } else { known().join(", ") },
    })?;
    line(text, "client", name);
    Ok(Arc::clone(client))
}

/// The way of a request through admission, as `proxy` goes it.
fn admit(
    gateway: &Gateway,
    request: &Request,
    client: &Client,
    text: &mut String,
) -> Result<Admitted, Refusal> {
    let target = gateway.locate(&request.method, request.target.as_bytes(), false)?;
    line(text, "path", &format!("{} ({}, {})", target.path, target.api.name(), target.operation.name()));
    gateway.allow(&request.method, &target)?;
    gateway.permit(&request.method, &target, client)?;
    let body = match &request.model {
        Some(model) => serde_json::json!({ "model": model }).to_string(),
        None if request.method == Method::POST => "{}".to_owned(),
        None => String::new(),
    };
    let body = Body { bytes: &Bytes::from(body), content_type: "application/json", encoded: false };
    let asked = gateway.read(&request.method, &target, &body)?;
    match &asked.deployment {
        Some(deployment) => line(text, "deployment", deployment.as_str()),
        None => line(text, "deployment", "none is named: the call goes to requests.home and is not balanced"),
    }
    gateway.admit(&request.method, target, client, asked)
}

fn routes(
    gateway: &Gateway,
    config: &Config,
    request: &Request,
    admitted: &Admitted,
    now: Instant,
    text: &mut String,
) {
    let allowance = gateway.allowance(now, now, None);
    let mut journey = Journey::through(&admitted.pool);
    let operation = admitted.target.operation;
    line(text, "order", "this one first, if all are well; then the next if it refuses");
    let mut place = 0;
    while let Choice::Try(chosen) = journey.choose(&admitted.pool, operation, &allowance, now, 0.0) {
        place += 1;
        if let Some(candidate) = admitted.pool.candidate(chosen.place)
            && let Some(backend) = gateway.backends.get(candidate.backend)
        {
            let (tier, weight) = (candidate.tier.get(), candidate.weight.get());
            line(
                text,
                &format!("  {place}."),
                &format!("{}: tier {tier}, weight {weight}", backend.config.name),
            );
            let outgoing = gateway.put(admitted, candidate, true);
            line(
                text,
                "",
                &format!("  {} {}{}", request.method, backend.config.endpoint.authority(), outgoing.path),
            );
            for header in proxy::preview(&request.method, backend, gateway, &outgoing.path) {
                line(text, "", &format!("    {header}"));
            }
            for (_, new) in &outgoing.edits {
                line(text, "", &format!("    in the body: {}", String::from_utf8_lossy(new)));
            }
        }
        journey.begin(&admitted.pool, &chosen, now);
        journey.end(chosen.place, Outcome::Unfit);
    }
    if admitted.seeks {
        let others = gateway.strangers();
        let names = others.candidates().iter().filter_map(|other| gateway.backends.get(other.backend));
        let names: Vec<_> = names.map(|backend| backend.config.name.to_string()).collect();
        line(text, "", &format!("on 404 then each of: {}", names.join(", ")));
    }
    let balance = match config.balance {
        Balance::Headroom => {
            "within a tier in turn by weight, and less often where quota runs out (balance: headroom)"
        }
        Balance::RoundRobin => "within a tier in turn by weight (balance: round_robin)",
    };
    line(text, "", balance);
    line(text, "replies", "");
    for (status, what, body) in REPLIES {
        let verdict = gateway.judge(admitted, status, body.as_bytes());
        line(text, &format!("  {status}"), &format!("{what}: {}", consequence(verdict, config)));
    }
    line(
        text,
        "  none",
        &format!("no connection, reset, no first byte in time: {}", consequence(Verdict::Failed, config)),
    );
    let retry = &config.retry;
    let mut limits = format!(
        "at most {} tries after the first, none begun later than {}",
        retry.attempts,
        humantime::format_duration(retry.deadline)
    );
    if !admitted.repeatable {
        limits += "; not repeated once a byte was sent, except after 429 (it could happen twice)";
    }
    line(text, "limits", &limits);
}

/// What a verdict leads to: for the request, and for the backend.
fn consequence(verdict: Verdict, config: &Config) -> String {
    let time = |length: Duration| humantime::format_duration(length).to_string();
    match verdict {
        Verdict::Success | Verdict::Client => "relayed".to_owned(),
        Verdict::Throttled => format!(
            "the next backend; the deployment rests as long as it asks ({} if it does not say, at most {})",
            time(config.cooldown.default),
            time(config.cooldown.maximum)
        ),
        Verdict::Failed => format!(
            "the next backend; counts on its breaker ({} that are {}% of its tries within {} leave it alone for {})",
            config.breaker.failures,
            config.breaker.ratio.percent(),
            time(config.breaker.window),
            time(config.breaker.open)
        ),
        Verdict::Credential => {
            "the next backend; this one rests 60s or until it has another secret".to_owned()
        }
        Verdict::PermissionDenied => "the next backend; this operation rests there for 60s".to_owned(),
        Verdict::Absent => "the next backend; the deployment rests there for 60s".to_owned(),
        Verdict::NotHere => "the next backend; nothing is remembered".to_owned(),
        Verdict::Elsewhere => "the next backend, each once; nothing is remembered".to_owned(),
    }
}
