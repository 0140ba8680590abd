//! `aoai-lb drain` and `aoai-lb undrain`: keep new requests away from a backend, and send them there again.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::admin_client::{AdminArguments, AdminClient};
use super::cli_error::CliError;
use super::runtime::start_background_runtime;

/// How long the response may take: a file is written for it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// What the names of backends do not have, escaped.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// The arguments of both commands.
#[derive(Args)]
pub(super) struct DrainArguments {
    /// The name of the backend.
    name: String,
    #[command(flatten)]
    admin: AdminArguments,
}

pub(super) fn drain(arguments: &DrainArguments) -> Result<(), CliError> {
    let response = post(arguments, "drain")?;
    let in_flight = match response["in_flight"].as_u64() {
        Some(0) => "; no request is in flight there".to_owned(),
        Some(1) => "; 1 request is still in flight there".to_owned(),
        Some(count) => format!("; {count} requests are still in flight there"),
        None => String::new(),
    };
    let state = if response["changed"] == false { "was drained already" } else { "is drained" };
    let mut out = io::stdout();
    writeln!(out, "{} {state}{in_flight}", arguments.name)?;
    let stranded = response["left_without_backend"].as_array().into_iter().flatten();
    let stranded: Vec<&str> = stranded.filter_map(Value::as_str).collect();
    if !stranded.is_empty() {
        writeln!(io::stderr(), "warning: left without a backend: {}", stranded.join(", "))?;
    }
    warn_if_not_saved(&response)
}

pub(super) fn undrain(arguments: &DrainArguments) -> Result<(), CliError> {
    let response = post(arguments, "undrain")?;
    let state = if response["changed"] == false { "was not drained" } else { "is no longer drained" };
    writeln!(io::stdout(), "{} {state}", arguments.name)?;
    warn_if_not_saved(&response)
}

fn post(arguments: &DrainArguments, verb: &str) -> Result<Value, CliError> {
    let client = AdminClient::new(&arguments.admin, REQUEST_TIMEOUT)?;
    let path = format!("/api/backends/{}/{verb}", utf8_percent_encode(&arguments.name, ESCAPED));
    Ok(start_background_runtime()?.block_on(client.post(&path))?)
}

fn warn_if_not_saved(response: &Value) -> Result<(), CliError> {
    if let Some(problem) = response["save_problem"].as_str() {
        writeln!(io::stderr(), "warning: this ends with the process, since it cannot be saved: {problem}")?;
    }
    Ok(())
}
