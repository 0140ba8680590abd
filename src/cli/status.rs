//! `aoai-lb status`: what the admin API knows, as a table in a terminal.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http::Method;

use super::table;
use crate::admin::status::{BackendStatus, Status};
use crate::config::Endpoint;
use crate::outbound::{Answer, Call, Outbound, OutboundError};

/// How often `--watch` looks.
const TICK: Duration = Duration::from_secs(2);
/// How soon another process is asked for.
const AGAIN: Duration = Duration::from_millis(100);
/// The most that an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer: hundreds of backends and clients.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// To the beginning of a terminal, and what was below is gone (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// How `aoai-lb status` is called.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Show it again every two seconds.
    #[arg(long)]
    watch: bool,
    /// Show it as JSON, as GET /api/status answers.
    #[arg(long)]
    json: bool,
    /// The admin API: http://…, https://…, or unix:/path.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9901")]
    admin: String,
    /// A file that holds the API's token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoStatus {
    /// The API's address is none.
    #[error("--admin: {0}")]
    Address(String),
    /// The token cannot be read.
    #[error("--token-file: {}: {problem}", path.display())]
    Token { path: PathBuf, problem: io::Error },
    /// The API is not reached.
    #[error("the admin API is not reached: {0}")]
    Outbound(#[from] OutboundError),
    /// It has another answer.
    #[error("the admin API answered {status}: {says}")]
    Refused { status: u16, says: String },
    /// It is none of ours, or of another version.
    #[error("what the admin API answered is no status: {0}")]
    Strange(#[from] serde_json::Error),
    /// It cannot be shown.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where the admin API is.
enum Place {
    Endpoint(Endpoint),
    Socket(String),
}

/// Shows the status, once or until interrupted.
///
/// # Errors
/// [`NoStatus`]; while watching, it is shown and asked for again.
pub(crate) async fn run(arguments: &Arguments) -> Result<(), NoStatus> {
    let place = match arguments.admin.strip_prefix("unix:") {
        Some(path) => Place::Socket(path.to_owned()),
        None => Place::Endpoint(
            Endpoint::parse(&arguments.admin).map_err(|bad| NoStatus::Address(bad.to_owned()))?,
        ),
    };
    let token = match &arguments.token_file {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            let token = read.map_err(|problem| NoStatus::Token { path: path.clone(), problem })?;
            Some(format!("Bearer {}", token.trim()))
        }
        None => None,
    };
    let outbound = Outbound::new(PATIENCE).with_answers_up_to(ANSWER_MAX);
    loop {
        let shown = match ask_serving(&outbound, &place, token.as_deref()).await {
            Ok(answer) if arguments.json => {
                let mut text = answer.body.to_vec();
                text.push(b'\n');
                Ok(text)
            }
            Ok(answer) => lines(&serde_json::from_slice(&answer.body)?),
            Err(problem) if arguments.watch => Ok(format!("{problem}\n").into_bytes()),
            Err(problem) => return Err(problem),
        }?;
        let mut out = io::stdout().lock();
        if arguments.watch && out.is_terminal() {
            out.write_all(CLEAR.as_bytes())?;
        }
        out.write_all(&shown)?;
        out.flush()?;
        drop(out);
        if !arguments.watch {
            return Ok(());
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Asks until the process answers that serves: for a few seconds after an upgrade both do.
async fn ask_serving(outbound: &Outbound, place: &Place, token: Option<&str>) -> Result<Answer, NoStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask(outbound, place, token).await?;
        let is_replaced = |status: Status| status.process.replaced;
        if Instant::now() >= deadline || !serde_json::from_slice(&answer.body).is_ok_and(is_replaced) {
            return Ok(answer);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask(outbound: &Outbound, place: &Place, token: Option<&str>) -> Result<Answer, NoStatus> {
    let headers: Vec<_> = token.map(|token| ("authorization", token)).into_iter().collect();
    let call = Call { method: Method::GET, target: "/api/status", headers: &headers, body: Bytes::new() };
    let answer = match place {
        Place::Endpoint(endpoint) => outbound.call(endpoint, call).await?,
        Place::Socket(path) => outbound.call_socket(path, call).await?,
    };
    if answer.status != 200 {
        let value: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let says = value["error"]["message"].as_str().unwrap_or("no reason").to_owned();
        return Err(NoStatus::Refused { status: answer.status, says });
    }
    Ok(answer)
}

/// The status as tables.
fn lines(status: &Status) -> Result<Vec<u8>, NoStatus> {
    let mut out = Vec::new();
    let (process, configuration) = (&status.process, &status.configuration);
    let readiness = if process.stopping { "stopping" } else { "ready" };
    let up = humantime::format_duration(Duration::from_secs(process.uptime_seconds));
    writeln!(out, "aoai-lb {}, process {}, up {up}, {readiness}", status.build.version, process.pid)?;
    let file = configuration.file.as_deref().unwrap_or("no file");
    writeln!(
        out,
        "configuration {} of {file}, in place since {}",
        configuration.version, configuration.loaded
    )?;
    if let Some(problem) = &configuration.problem {
        writeln!(out, "the last reload was refused: {problem}")?;
    }
    if !configuration.needs_upgrade.is_empty() {
        writeln!(out, "needs an upgrade: {}", configuration.needs_upgrade.join(", "))?;
    }
    writeln!(out, "in flight {}, settled {}\n", status.in_flight, status.settled)?;
    table::write(&backends(&status.backends), 3, &mut out)?;
    let deployments = deployments(&status.backends);
    if deployments.len() > 1 {
        writeln!(out)?;
        table::write(&deployments, 3, &mut out)?;
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
        table::write(&rows, 1, &mut out)?;
    }
    Ok(out)
}

fn backends(backends: &[BackendStatus]) -> Vec<Vec<String>> {
    let head = [
        "BACKEND",
        "STATE",
        "FOR ANOTHER",
        "TIER",
        "WEIGHT",
        "IN FLIGHT",
        "TRIES/MIN",
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
            left(backend.until_ms),
            backend.tier.to_string(),
            backend.weight.to_string(),
            backend.in_flight.to_string(),
            recent.attempts.to_string(),
            recent.share.map_or_else(unknown, |share| format!("{:.0}%", share * 100.0)),
            recent.throttled.to_string(),
            recent.failed.to_string(),
            milliseconds(recent.p50_ms),
            milliseconds(recent.p95_ms),
        ]);
    }
    rows
}

fn deployments(backends: &[BackendStatus]) -> Vec<Vec<String>> {
    let head = ["BACKEND", "DEPLOYMENT", "STATE", "FOR ANOTHER", "TOKENS LEFT", "REQUESTS LEFT", "LOAD"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let of = |left: Option<i64>, limit: Option<u64>| match (left, limit) {
        (Some(left), Some(limit)) => format!("{left} of {limit}"),
        (Some(left), None) => left.to_string(),
        _ => unknown(),
    };
    for backend in backends {
        for known in &backend.deployments {
            rows.push(vec![
                backend.name.clone(),
                known.name.clone(),
                known.state.clone(),
                left(known.until_ms),
                of(known.remaining_tokens, known.limit_tokens),
                of(known.remaining_requests, known.limit_requests),
                known.utilization.map_or_else(unknown, |load| format!("{:.0}%", load * 100.0)),
            ]);
        }
        for resting in backend.resting.iter().filter(|resting| resting.operation.is_some()) {
            let operation = resting.operation.as_deref().unwrap_or_default();
            let mut row = vec![
                backend.name.clone(),
                format!("({operation})"),
                resting.reason.clone(),
                left(resting.until_ms),
            ];
            row.resize_with(head.len(), unknown);
            rows.push(row);
        }
    }
    rows
}

fn unknown() -> String {
    "-".to_owned()
}

fn left(ms: Option<u64>) -> String {
    ms.map_or_else(unknown, |ms| {
        humantime::format_duration(Duration::from_secs(ms.div_ceil(1000))).to_string()
    })
}

fn milliseconds(ms: Option<u64>) -> String {
    ms.map_or_else(unknown, |ms| format!("{ms} ms"))
}
