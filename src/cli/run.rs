//! `aoai-lb run`: runs the load balancer.

use std::io;
use std::path::PathBuf;

use log::warn;

use super::cli_error::CliError;
use super::config_file::{ConfigArguments, LoadedConfig};
use super::logging::init_logging;
use super::runtime::start_background_runtime;
use crate::server;
use crate::server::upgrade::Program;

pub(super) fn run(arguments: &ConfigArguments, takes_over: bool) -> Result<(), CliError> {
    init_logging();
    let arguments = arguments.with_absolute_paths()?;
    let LoadedConfig { checked, environment } = arguments.load()?;
    checked.warnings.iter().for_each(|warning| warn!("{warning}"));
    let binary = invoked_binary_path()?;
    let program = Program { binary, config_file: arguments.file().to_owned(), environment };
    server::run(checked, Some(program), takes_over, &start_background_runtime()?)?;
    Ok(())
}

/// The path by which this binary was called: an upgrade starts the binary that is installed there. The
/// path of the running executable would still lead to the old one.
fn invoked_binary_path() -> io::Result<PathBuf> {
    let called = std::env::args_os().next().map(PathBuf::from);
    match called.filter(|called| called.components().count() > 1) {
        Some(called) => std::path::absolute(called),
        None => std::env::current_exe(),
    }
}
