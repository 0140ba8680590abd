//! `aoai-lb upgrade`: replaces the running process with the installed binary and file, and waits until
//! the new one is serving.

use std::io::{self, Write};

use super::cli_error::CliError;
use super::config_file::ConfigArguments;
use super::progress::Progress;
use super::runtime::start_background_runtime;
use crate::config;
use crate::server::upgrade::request_upgrade;

pub(super) fn run(arguments: &ConfigArguments) -> Result<(), CliError> {
    let arguments = arguments.with_absolute_paths()?;
    let (environment, _) = arguments.load_environment()?;
    let variable = |name: &str| environment.variable(name);
    let socket = config::load_upgrade_socket_path(arguments.file(), &variable)?;
    let progress = Progress::start("waiting for the running process");
    let print = |step: &str| {
        let _ = progress.suspend(|| writeln!(io::stdout(), "{step}"));
    };
    let pid = start_background_runtime()?.block_on(request_upgrade(&socket, print))?;
    drop(progress);
    writeln!(
        io::stdout(),
        "process {pid} is serving; the previous process exits when its requests are finished"
    )?;
    Ok(())
}
