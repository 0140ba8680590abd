//! `aoai-lb status`: shows the status of the running process as tables.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http::Method;

use super::cli_error::CliError;
use super::runtime::start_background_runtime;
use super::status_sections::{write_expiry, write_refusals, write_sinks};
use super::table::{format_remaining, unknown_placeholder, write_table};
use crate::admin::status::{BackendStatus, StatusReport};
use crate::config::Endpoint;
use crate::outbound::{OutboundClient, OutboundError, OutboundRequest, OutboundResponse};
use crate::system_error::describe;

/// How often `--watch` updates.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// The pause before the next request if a process responded that has been replaced.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a response may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest file of an admin token.
const MAX_TOKEN_FILE_BYTES: u64 = 64 * 1024;
/// The maximum size of a response: enough for hundreds of backends and clients.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// Clears a terminal and its scrollback (ECMA-48, CUP and ED).
const CLEAR_TERMINAL: &str = "\x1b[H\x1b[2J\x1b[3J";

/// The arguments of `aoai-lb status`.
#[derive(Args)]
pub(super) struct StatusArguments {
    /// Update it every two seconds.
    #[arg(long)]
    watch: bool,
    /// Print the JSON of GET /api/status.
    #[arg(long)]
    json: bool,
    /// The address of the admin API: http://…, https://…, or unix:/path.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9901")]
    admin: String,
    /// A file with the token of the admin API.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why the status cannot be shown.
#[derive(Debug, thiserror::Error)]
enum StatusError {
    /// The address is invalid.
    #[error("--admin: {0}")]
    InvalidAddress(String),
    /// The file of the token cannot be read.
    #[error("--token-file: {}: {}", path.display(), describe(problem))]
    TokenFile { path: PathBuf, problem: io::Error },
    /// The request failed.
    #[error("cannot reach the admin API at {address}: {reason}. Is aoai-lb running with an admin block?")]
    Unreachable { address: String, reason: String },
    /// The response is an error.
    #[error("the admin API responded with {status}: {message}")]
    Refused { status: u16, message: String },
    /// The response is not a status, or that of another version.
    #[error("the response of the admin API is not a status: {0}")]
    NotAStatus(#[from] serde_json::Error),
    /// Standard output cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Shows the status of the running process.
pub(super) fn run(arguments: &StatusArguments) -> Result<(), CliError> {
    Ok(start_background_runtime()?.block_on(show_status(arguments))?)
}

/// Shows the status once, or with `--watch` until interrupted.
///
/// # Errors
/// [`StatusError`]; with `--watch`, a failed request is shown and repeated.
async fn show_status(arguments: &StatusArguments) -> Result<(), StatusError> {
    let client = AdminClient::from_arguments(arguments)?;
    loop {
        let output = match client.get_status_of_serving_process().await {
            Ok(response) if arguments.json => {
                let mut text = response.body.to_vec();
                text.push(b'\n');
                Ok(text)
            }
            Ok(response) => format_tables(&serde_json::from_slice(&response.body)?),
            Err(error) if arguments.watch => Ok(format!("{error}\n").into_bytes()),
            Err(error) => return Err(error),
        }?;
        let mut out = io::stdout().lock();
        if arguments.watch && out.is_terminal() {
            out.write_all(CLEAR_TERMINAL.as_bytes())?;
        }
        out.write_all(&output)?;
        out.flush()?;
        // The lock is not held during the pause.
        drop(out);
        if !arguments.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Sends requests to the admin API.
struct AdminClient {
    outbound_client: OutboundClient,
    /// The address as it was given.
    address: String,
    target: AdminTarget,
    authorization: Option<String>,
}

/// Where the admin API listens.
enum AdminTarget {
    Endpoint(Endpoint),
    UnixSocket(String),
}

impl AdminClient {
    fn from_arguments(arguments: &StatusArguments) -> Result<Self, StatusError> {
        let target = match arguments.admin.strip_prefix("unix:") {
            Some(path) => AdminTarget::UnixSocket(path.to_owned()),
            None => AdminTarget::Endpoint(
                Endpoint::parse(&arguments.admin)
                    .map_err(|reason| StatusError::InvalidAddress(reason.to_owned()))?,
            ),
        };
        let authorization = match &arguments.token_file {
            Some(path) => {
                // A FIFO is welcome here, such as that of a shell's `<(command)`.
                let mut contents = String::new();
                let file = File::open(path).map(|file| file.take(MAX_TOKEN_FILE_BYTES));
                let contents = file.and_then(|mut file| file.read_to_string(&mut contents)).map(|_| contents);
                let token =
                    contents.map_err(|problem| StatusError::TokenFile { path: path.clone(), problem })?;
                Some(format!("Bearer {}", token.trim()))
            }
            None => None,
        };
        let outbound = OutboundClient::new(REQUEST_TIMEOUT).with_read_limit_bytes(MAX_RESPONSE_BYTES);
        Ok(Self { outbound_client: outbound, address: arguments.admin.clone(), target, authorization })
    }

    /// Gets the status of the process that is serving. For a few seconds after an upgrade its predecessor
    /// may respond as well.
    async fn get_status_of_serving_process(&self) -> Result<OutboundResponse, StatusError> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let response = self.get_status().await?;
            let is_replaced = |status: StatusReport| status.process.replaced;
            if Instant::now() >= deadline || !serde_json::from_slice(&response.body).is_ok_and(is_replaced) {
                return Ok(response);
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn get_status(&self) -> Result<OutboundResponse, StatusError> {
        let headers: Vec<_> =
            self.authorization.iter().map(|value| ("authorization", value.as_str())).collect();
        let request = OutboundRequest {
            method: Method::GET,
            path_and_query: "/api/status",
            headers: &headers,
            body: Bytes::new(),
        };
        let result = match &self.target {
            AdminTarget::Endpoint(endpoint) => self.outbound_client.send(endpoint, request).await,
            AdminTarget::UnixSocket(path) => self.outbound_client.send_to_unix_socket(path, request).await,
        };
        let response = result.map_err(|error| {
            let reason = match error {
                // Without its destination, which `address` names already.
                OutboundError::Transport { reason, .. } => reason,
                error => error.to_string(),
            };
            StatusError::Unreachable { address: self.address.clone(), reason }
        })?;
        if response.status != 200 {
            let value: serde_json::Value = serde_json::from_slice(&response.body).unwrap_or_default();
            let message = value["error"]["message"].as_str().unwrap_or("no message").to_owned();
            return Err(StatusError::Refused { status: response.status, message });
        }
        Ok(response)
    }
}

/// The status as tables.
fn format_tables(status: &StatusReport) -> Result<Vec<u8>, StatusError> {
    let mut out = Vec::new();
    let (process, configuration) = (&status.process, &status.configuration);
    let readiness = if process.stopping { "stopping" } else { "ready" };
    let uptime = humantime::format_duration(Duration::from_secs(process.uptime_seconds));
    writeln!(out, "aoai-lb {}, process {}, up {uptime}, {readiness}", status.build.version, process.pid)?;
    let file = configuration.file.as_deref().unwrap_or("no file");
    writeln!(
        out,
        "configuration {} of {file}, active since {}",
        configuration.version, configuration.loaded
    )?;
    if let Some(problem) = &configuration.last_reload_error {
        writeln!(out, "the last reload failed: {problem}")?;
    }
    if !configuration.needs_upgrade.is_empty() {
        writeln!(out, "needs an upgrade: {}", configuration.needs_upgrade.join(", "))?;
    }
    if let Some(problem) = &process.drains_not_saved {
        writeln!(out, "drains end with this process: {problem}")?;
    }
    writeln!(out, "in flight {}, finished {}\n", status.requests_in_flight, status.finished_requests)?;
    write_table(&backend_rows(&status.backends), 3, &mut out)?;
    let deployments = deployment_rows(&status.backends);
    if deployments.len() > 1 {
        writeln!(out)?;
        write_table(&deployments, 3, &mut out)?;
    }
    if !status.clients.is_empty() {
        let head = ["CLIENT", "REQUESTS", "INPUT TOKENS", "OUTPUT TOKENS", "REQUESTS/MIN", "TOKENS/MIN"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for client in &status.clients {
            let (total, recent) = (&client.total, &client.last_minute);
            rows.push(vec![
                client.name.clone(),
                total.requests.to_string(),
                total.input_tokens.to_string(),
                total.output_tokens.to_string(),
                recent.requests.to_string(),
                (recent.input_tokens + recent.output_tokens).to_string(),
            ]);
        }
        writeln!(out)?;
        write_table(&rows, 1, &mut out)?;
    }
    write_refusals(&status.refusals, &mut out)?;
    write_sinks(&status.sinks, &mut out)?;
    write_expiry(&status.certificates, &status.credentials, &mut out)?;
    Ok(out)
}

fn backend_rows(backends: &[BackendStatus]) -> Vec<Vec<String>> {
    let head = [
        "BACKEND",
        "STATE",
        "TIME LEFT",
        "TIER",
        "WEIGHT",
        "IN FLIGHT",
        "ATTEMPTS/MIN",
        "SHARE",
        "429/MIN",
        "FAILED/MIN",
        "P50",
        "P95",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for backend in backends {
        let recent = &backend.last_minute;
        rows.push(vec![
            backend.name.clone(),
            backend.state.clone(),
            format_remaining(backend.remaining_ms),
            backend.tier.to_string(),
            backend.weight.to_string(),
            backend.attempts_in_flight.to_string(),
            recent.attempts.to_string(),
            recent.attempt_share.map_or_else(unknown_placeholder, |share| format!("{:.0}%", share * 100.0)),
            recent.throttled.to_string(),
            recent.failed.to_string(),
            format_milliseconds(recent.attempt_p50_ms),
            format_milliseconds(recent.attempt_p95_ms),
        ]);
    }
    rows
}

fn deployment_rows(backends: &[BackendStatus]) -> Vec<Vec<String>> {
    let head = ["BACKEND", "DEPLOYMENT", "STATE", "TIME LEFT", "TOKENS LEFT", "REQUESTS LEFT", "LOAD"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let quota = |remaining: Option<i64>, limit: Option<u64>| match (remaining, limit) {
        (Some(remaining), Some(limit)) => format!("{remaining} of {limit}"),
        (Some(remaining), None) => remaining.to_string(),
        _ => unknown_placeholder(),
    };
    for backend in backends {
        for deployment in &backend.deployments {
            rows.push(vec![
                backend.name.clone(),
                deployment.name.clone(),
                deployment.state.clone(),
                format_remaining(deployment.remaining_ms),
                quota(deployment.remaining_tokens, deployment.limit_tokens),
                quota(deployment.remaining_requests, deployment.limit_requests),
                deployment
                    .utilization
                    .map_or_else(unknown_placeholder, |load| format!("{:.0}%", load * 100.0)),
            ]);
        }
        for part in backend.unavailable_parts.iter().filter(|part| part.operation.is_some()) {
            let operation = part.operation.as_deref().unwrap_or_default();
            let mut row = vec![
                backend.name.clone(),
                format!("({operation})"),
                part.reason.clone(),
                format_remaining(part.remaining_ms),
            ];
            row.resize_with(head.len(), unknown_placeholder);
            rows.push(row);
        }
    }
    rows
}

fn format_milliseconds(ms: Option<u64>) -> String {
    ms.map_or_else(unknown_placeholder, |ms| format!("{ms} ms"))
}
