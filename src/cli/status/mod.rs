//! `aoai-lb status`: what the admin API of the running process tells, as text, as one line with an exit code, or on
//! the whole screen.

mod affinity;
mod all;
mod backends;
mod caches;
mod check;
mod costs;
mod fitted_table;
mod limits;
mod plain;
mod pools;
mod queue;
mod report_time;
mod sections;
mod shared;
mod status_client;
mod summary;
#[cfg(test)]
mod testing;
mod watch;

use std::io::{self, Write};

use bytes::Bytes;
use clap::Args;

use self::status_client::{StatusClient, StatusError};
use self::watch::WATCH_INTERVAL;
use super::admin_client::AdminArguments;
use super::cli_error::CliError;
use super::exit_code::{EXIT_FAILURE, EXIT_SUCCESS};
use super::output::{palette, terminal_columns};
use super::runtime::start_background_runtime;
use crate::admin::status::StatusReport;

/// The exit code of `--check` if an operator has to act.
const EXIT_NOT_GOOD: u8 = 3;

/// The arguments of `aoai-lb status`.
#[derive(Args)]
pub(super) struct StatusArguments {
    /// Update it every two seconds, on the whole screen of a terminal. Its keys: q, s (sort), / (filter), p (pause), ?.
    #[arg(long)]
    watch: bool,
    /// Print one line. The exit code is 0 if the state is healthy or spilling, 3 if it is not, and 1 if it is unknown.
    #[arg(long, conflicts_with_all = ["watch", "json", "verbose"])]
    check: bool,
    /// Also show the quotas of deployments, the requests, tokens and limits of clients, and which resource has how many objects.
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
    /// Show all instances that share one Redis (`shared`), each in a row, and their sum.
    #[arg(long, conflicts_with_all = ["watch", "check", "verbose"])]
    all: bool,
    /// Print the JSON of GET /api/status; with --all, that of the instances and their sum.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Shows the status of the running process, and returns the exit code.
pub(super) fn run(arguments: &StatusArguments) -> Result<u8, CliError> {
    let runtime = start_background_runtime()?;
    let client = StatusClient::new(&arguments.admin)?;
    let result = if arguments.watch && !arguments.json && watch::is_available() {
        runtime.block_on(watch::run(client, arguments.verbose))
    } else {
        runtime.block_on(print_status(&client, arguments))
    };
    // A request that is under way is not waited for.
    runtime.shutdown_background();
    match result {
        Err(StatusError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(EXIT_FAILURE),
        result => Ok(result?),
    }
}

/// Prints the status once, or with `--watch` until interrupted.
///
/// # Errors
/// [`StatusError`]; with `--watch`, a failed request is shown and repeated.
async fn print_status(client: &StatusClient, arguments: &StatusArguments) -> Result<u8, StatusError> {
    loop {
        let (text, exit_code) = match client.get().await {
            Ok((_, status)) if arguments.all => (format_all(arguments, &status)?, EXIT_SUCCESS),
            Ok((body, status)) => format_status(arguments, &body, &status),
            Err(error) if arguments.watch => {
                (format!("{}\n", CliError::from(error)).into_bytes(), EXIT_FAILURE)
            }
            Err(error) => return Err(error),
        };
        // The lock is not held during the pause.
        io::stdout().write_all(&text)?;
        io::stdout().flush()?;
        if !arguments.watch {
            return Ok(exit_code);
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn format_all(arguments: &StatusArguments, status: &StatusReport) -> Result<Vec<u8>, StatusError> {
    if arguments.json {
        return all::to_json(status);
    }
    all::format(status, terminal_columns(), palette()).map(String::into_bytes)
}

fn format_status(arguments: &StatusArguments, body: &Bytes, status: &StatusReport) -> (Vec<u8>, u8) {
    if arguments.json {
        return ([body, b"\n".as_slice()].concat(), EXIT_SUCCESS);
    }
    if arguments.check {
        let exit_code = if check::is_good(status) { EXIT_SUCCESS } else { EXIT_NOT_GOOD };
        return ((check::line(status) + "\n").into_bytes(), exit_code);
    }
    let text = plain::format(status, terminal_columns(), palette(), arguments.verbose);
    (text.into_bytes(), EXIT_SUCCESS)
}
