//! `aoai-lb reload`: has the running process read its configuration again, and says what changed.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::admin_client::{AdminArguments, AdminClient};
use super::cli_error::CliError;
use super::runtime::start_background_runtime;

/// How long a reload may take: it waits for names, tokens and secrets.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The arguments of the command.
#[derive(Args)]
pub(super) struct ReloadArguments {
    #[command(flatten)]
    admin: AdminArguments,
}

pub(super) fn run(arguments: &ReloadArguments) -> Result<(), CliError> {
    let client = AdminClient::new(&arguments.admin, REQUEST_TIMEOUT)?;
    let response = start_background_runtime()?.block_on(client.post("/api/reload"))?;
    let lines = |key: &str| {
        let list = response[key].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    for warning in lines("warnings") {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    let mut out = io::stdout();
    for line in lines("summary") {
        writeln!(out, "{line}")?;
    }
    let needs_upgrade = lines("needs_upgrade");
    if !needs_upgrade.is_empty() {
        writeln!(out, "takes effect with an upgrade (aoai-lb upgrade): {}", needs_upgrade.join(", "))?;
    }
    let version = response["version"].as_u64().map(|version| format!(" {version}")).unwrap_or_default();
    writeln!(out, "configuration{version} is active")?;
    Ok(())
}
