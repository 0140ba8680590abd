//! `aoai-lb explain`: what would happen to a request, told by the rules that decide about requests.
//!
//! Nothing is asked of anybody: a gateway is made of the file, one request is put to it, and what it
//! decides is written down.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use super::cli_error::CliError;
use super::config_file::load_config;
use super::runtime::background_runtime;
use crate::admission::client::Client;
use crate::azure::response::verdict::Verdict;
use crate::config::{BalancePolicy, Config};
use crate::credentials::Keyring;
use crate::gateway::{AdmittedRequest, BodyView, Gateway, ProcessState};
use crate::proxy::upstream::headers;
use crate::record::{Recorder, RecorderError};
use crate::refusal::Refusal;
use crate::routing::retry_plan::{AttemptOutcome, NextStep, RetryPlan};

/// A request to be explained.
struct ExplainedRequest {
    /// Its method.
    method: Method,
    /// Path and query.
    path_and_query: String,
    /// `model` in its body.
    model: Option<String>,
    /// The client's name.
    client: Option<String>,
}

/// Why nothing can be explained.
#[derive(Debug, thiserror::Error)]
enum ExplainError {
    /// The threads that a gateway needs cannot be started.
    #[error(transparent)]
    Record(#[from] RecorderError),
    /// There is no such client.
    #[error("--client: there is no client {name}; there are {known}")]
    UnknownClient {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
}

/// What replies say, as far as it matters what they mean.
const SAMPLE_RESPONSES: [(u16, &str, &str); 14] = [
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

/// Prints the explanation of a request.
pub(super) fn run(
    path: &Path,
    method: &str,
    path_and_query: String,
    model: Option<String>,
    client: Option<String>,
) -> Result<(), CliError> {
    let checked = load_config(path)?;
    let invalid_method = |_| CliError(format!("{method} is no method; write GET, POST or DELETE"));
    let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).map_err(invalid_method)?;
    let request = ExplainedRequest { method, path_and_query, model, client };
    let text = explain_request(&checked.config, &request, background_runtime()?.handle())?;
    write!(io::stdout(), "{text}")?;
    Ok(())
}

/// Explains a request.
///
/// # Errors
/// [`ExplainError`].
fn explain_request(
    config: &Config,
    request: &ExplainedRequest,
    runtime: &tokio::runtime::Handle,
) -> Result<String, ExplainError> {
    let now = Instant::now();
    let keyring = Keyring::offline(runtime);
    // Nothing is recorded.
    let recorder = Recorder::start(&Config { record: None, ..config.clone() }, &keyring, runtime)?;
    let process = Arc::new(ProcessState::new(now, recorder, keyring));
    let gateway = Gateway::new(config, process, now);
    let mut text = format!("{} {}\n", request.method, request.path_and_query);
    let client = select_client(&gateway, request, &mut text)?;
    match admit_request(&gateway, request, &client, &mut text) {
        Ok(admitted) => write_routing(&gateway, config, request, &admitted, now, &mut text),
        Err(refusal) => {
            let reason = refusal.reason;
            write_line(
                &mut text,
                "answer",
                &format!("{} {}: {}", reason.status(), reason.code(), refusal.message),
            );
            write_line(&mut text, "", "no backend is asked");
        }
    }
    gateway.process.recorder.shut_down();
    Ok(text)
}

fn write_line(text: &mut String, label: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{label:<12}{value}");
}

fn select_client(
    gateway: &Gateway,
    request: &ExplainedRequest,
    text: &mut String,
) -> Result<Arc<Client>, ExplainError> {
    let all = gateway.clients().listed_clients();
    let Some(name) = &request.client else {
        let description = match all.len() {
            0 => "anyone: clients is open",
            _ => "none given: as one that may use everything (--client NAME says which)",
        };
        write_line(text, "client", description);
        return Ok(Arc::new(Client::unrestricted()));
    };
    let known =
        || all.iter().filter_map(|client| Some(client.name.as_ref()?.to_string())).collect::<Vec<_>>();
    let client = gateway.clients().find_by_name(name).ok_or_else(|| ExplainError::UnknownClient {
        name: name.clone(),
        known: if all.is_empty() { "none: clients is open".to_owned() } else { known().join(", ") },
    })?;
    write_line(text, "client", name);
    Ok(Arc::clone(client))
}

/// The way of a request through admission, as `proxy` goes it.
fn admit_request(
    gateway: &Gateway,
    request: &ExplainedRequest,
    client: &Client,
    text: &mut String,
) -> Result<AdmittedRequest, Refusal> {
    let target = gateway.parse_target(&request.method, request.path_and_query.as_bytes(), false)?;
    write_line(
        text,
        "path",
        &format!("{} ({}, {})", target.path, target.api.name(), target.operation.name()),
    );
    gateway.check_path_allowed(&request.method, &target)?;
    gateway.check_client_permissions(&request.method, &target, client)?;
    let body = match &request.model {
        Some(model) => serde_json::json!({ "model": model }).to_string(),
        None if request.method == Method::POST => "{}".to_owned(),
        None => String::new(),
    };
    let body = BodyView { bytes: &Bytes::from(body), content_type: "application/json", is_encoded: false };
    let call = gateway.read_call(&request.method, &target, &body)?;
    match &call.deployment {
        Some(deployment) => write_line(text, "deployment", deployment.as_str()),
        None => write_line(
            text,
            "deployment",
            "none is named: the call goes to requests.home and is not balanced",
        ),
    }
    gateway.admit(&request.method, target, client, call)
}

fn write_routing(
    gateway: &Gateway,
    config: &Config,
    request: &ExplainedRequest,
    admitted: &AdmittedRequest,
    now: Instant,
    text: &mut String,
) {
    let retry_limits = gateway.retry_limits(now, now, None);
    let mut retry_plan = RetryPlan::new(&admitted.pool);
    let operation = admitted.target.operation;
    write_line(text, "order", "this one first, if all are well; then the next if it refuses");
    let mut rank = 0;
    while let NextStep::Attempt(chosen) =
        retry_plan.next_step(&admitted.pool, operation, &retry_limits, now, 0.0)
    {
        rank += 1;
        if let Some(candidate) = admitted.pool.candidate(chosen.candidate_index)
            && let Some(backend) = gateway.backends.get(candidate.backend_index)
        {
            let (tier, weight) = (candidate.tier.get(), candidate.weight.get());
            write_line(
                text,
                &format!("  {rank}."),
                &format!("{}: tier {tier}, weight {weight}", backend.config.name),
            );
            let upstream_request = gateway.upstream_request(admitted, candidate, true);
            write_line(
                text,
                "",
                &format!(
                    "  {} {}{}",
                    request.method,
                    backend.config.endpoint.authority(),
                    upstream_request.path_and_query
                ),
            );
            for header in headers::preview(
                &request.method,
                backend,
                &gateway.request_config,
                &upstream_request.path_and_query,
            ) {
                write_line(text, "", &format!("    {header}"));
            }
            for edit in &upstream_request.body_edits {
                write_line(
                    text,
                    "",
                    &format!("    in the body: {}", String::from_utf8_lossy(&edit.replacement)),
                );
            }
        }
        retry_plan.on_attempt_start(&admitted.pool, &chosen, now);
        retry_plan.on_attempt_end(chosen.candidate_index, AttemptOutcome::CannotServe);
    }
    if admitted.searches_by_id {
        let others = gateway.other_resources();
        let names = others.candidates().iter().filter_map(|other| gateway.backends.get(other.backend_index));
        let names: Vec<_> = names.map(|backend| backend.config.name.to_string()).collect();
        write_line(text, "", &format!("on 404 then each of: {}", names.join(", ")));
    }
    let balance_policy = match config.balance_policy {
        BalancePolicy::Headroom => {
            "within a tier in turn by weight, and less often where quota runs out (balance: headroom)"
        }
        BalancePolicy::RoundRobin => "within a tier in turn by weight (balance: round_robin)",
    };
    write_line(text, "", balance_policy);
    write_line(text, "replies", "");
    for (status, description, body) in SAMPLE_RESPONSES {
        let verdict = gateway.response_verdict(admitted, status, body.as_bytes());
        write_line(
            text,
            &format!("  {status}"),
            &format!("{description}: {}", describe_verdict(verdict, config)),
        );
    }
    write_line(
        text,
        "  none",
        &format!(
            "no connection, reset, no first byte in time: {}",
            describe_verdict(Verdict::BackendFailure, config)
        ),
    );
    let retry = &config.retry;
    let mut limits = format!(
        "at most {} tries after the first, none begun later than {}",
        retry.max_retries,
        humantime::format_duration(retry.deadline)
    );
    if !admitted.is_repeatable {
        limits += "; not repeated once a byte was sent, except after 429 (it could happen twice)";
    }
    write_line(text, "limits", &limits);
}

/// What a verdict leads to: for the request, and for the backend.
fn describe_verdict(verdict: Verdict, config: &Config) -> String {
    let duration = |length: Duration| humantime::format_duration(length).to_string();
    match verdict {
        Verdict::Success | Verdict::ClientError => "relayed".to_owned(),
        Verdict::Throttled => format!(
            "the next backend; the deployment rests as long as it asks ({} if it does not say, at most {})",
            duration(config.cooldown.default_duration),
            duration(config.cooldown.max_duration)
        ),
        Verdict::BackendFailure => format!(
            "the next backend; counts on its breaker ({} that are {}% of its tries within {} leave it alone for {})",
            config.breaker.min_failures,
            config.breaker.min_failure_ratio.percent(),
            duration(config.breaker.window),
            duration(config.breaker.open_duration)
        ),
        Verdict::CredentialRejected => {
            "the next backend; this one rests 60s or until it has another secret".to_owned()
        }
        Verdict::PermissionDenied => "the next backend; this operation rests there for 60s".to_owned(),
        Verdict::DeploymentNotFound => "the next backend; the deployment rests there for 60s".to_owned(),
        Verdict::UnsupportedByBackend => "the next backend; nothing is remembered".to_owned(),
        Verdict::RetryableStatus => "the next backend, each once; nothing is remembered".to_owned(),
    }
}
