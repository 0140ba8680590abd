//! `aoai-lb upgrade`: has the running process replace itself.

use std::io::{self, Write};
use std::path::Path;

use super::cli_error::CliError;
use super::runtime::background_runtime;
use crate::config;
use crate::server::upgrade::request_upgrade;

pub(super) fn run(path: &Path) -> Result<(), CliError> {
    let socket =
        config::load_upgrade_socket_path(&std::path::absolute(path)?, &config::environment_variable)?;
    let print = |step: &str| {
        let _ = writeln!(io::stdout(), "{step}");
    };
    let pid = background_runtime()?.block_on(request_upgrade(&socket, print))?;
    writeln!(io::stdout(), "process {pid} serves; the one before it finishes what it has begun")?;
    Ok(())
}
