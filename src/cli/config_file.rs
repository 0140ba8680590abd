//! Reads the configuration file for a command.

use std::io::{self, Write};
use std::path::Path;

use super::cli_error::CliError;
use crate::config::{self, CheckedConfig};

/// Reads and checks the file. Warnings go to standard error.
pub(super) fn load_config_and_print_warnings(path: &Path) -> Result<CheckedConfig, CliError> {
    let checked = config::load_and_check_file(path, &config::environment_variable);
    let warnings = match &checked {
        Ok(CheckedConfig { warnings, .. }) => warnings,
        Err(problems) => &problems.warnings,
    };
    for warning in warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    Ok(checked?)
}
