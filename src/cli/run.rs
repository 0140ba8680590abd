//! `aoai-lb run`: runs the load balancer.

use std::io;
use std::path::{Path, PathBuf};

use super::cli_error::CliError;
use super::config_file::load_config_and_print_warnings;
use super::logging::init_logging;
use super::runtime::start_background_runtime;
use crate::server;
use crate::server::upgrade::Program;

pub(super) fn run(path: &Path, takes_over: bool) -> Result<(), CliError> {
    init_logging();
    let file = std::path::absolute(path)?;
    let checked = load_config_and_print_warnings(&file)?;
    let program = Program { binary: invoked_binary_path()?, config_file: file };
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
