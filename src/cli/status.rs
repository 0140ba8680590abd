//! `aoai-lb status`: shows the status of the running process as tables.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::Args;

use super::admin_client::{AdminArguments, AdminClient, AdminError};
use super::cli_error::CliError;
use super::runtime::start_background_runtime;
use super::status_sections::{write_expiry, write_refusals, write_sinks};
use super::table::{format_remaining, unknown_placeholder, write_table};
use crate::admin::status::{BackendStatus, StatusReport};
use crate::outbound::OutboundResponse;

/// How often `--watch` updates.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// The pause before the next request if a process responded that has been replaced.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a response may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
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
    #[command(flatten)]
    admin: AdminArguments,
}

/// Why the status cannot be shown.
#[derive(Debug, thiserror::Error)]
enum StatusError {
    /// There is no status.
    #[error(transparent)]
    Admin(#[from] AdminError),
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
    let client = AdminClient::new(&arguments.admin, REQUEST_TIMEOUT)?;
    loop {
        let output = match get_status_of_serving_process(&client).await {
            Ok(response) if arguments.json => {
                let mut text = response.body.to_vec();
                text.push(b'\n');
                Ok(text)
            }
            Ok(response) => format_tables(&serde_json::from_slice(&response.body)?),
            Err(error) if arguments.watch => Ok(format!("{error}\n").into_bytes()),
            Err(error) => return Err(error.into()),
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

/// Gets the status of the process that is serving. For a few seconds after an upgrade its predecessor may
/// respond as well.
async fn get_status_of_serving_process(client: &AdminClient) -> Result<OutboundResponse, AdminError> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    loop {
        let response = client.get("/api/status").await?;
        let is_replaced = |status: StatusReport| status.process.replaced;
        if Instant::now() >= deadline || !serde_json::from_slice(&response.body).is_ok_and(is_replaced) {
            return Ok(response);
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
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
