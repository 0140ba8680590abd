//! `aoai-lb upgrade`: replaces the running process with the installed binary and file, and waits until
//! the new one is serving.

use std::io::{self, Write};
use std::path::Path;

use super::cli_error::CliError;
use super::runtime::start_background_runtime;
use crate::config;
use crate::server::upgrade::request_upgrade;

pub(super) fn run(path: &Path) -> Result<(), CliError> {
    let socket =
        config::load_upgrade_socket_path(&std::path::absolute(path)?, &config::environment_variable)?;
    let print = |step: &str| {
        let _ = writeln!(io::stdout(), "{step}");
    };
    let pid = start_background_runtime()?.block_on(request_upgrade(&socket, print))?;
    writeln!(
        io::stdout(),
        "process {pid} is serving; the previous process exits when its requests are finished"
    )?;
    Ok(())
}
