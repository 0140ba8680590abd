//! Commands that the help does not list: the reference of the configuration and shell completions for the package, and
//! `launch`, which starts a successor.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{self, Stdio};

use clap::{Command, ValueEnum};
use clap_complete::Shell;

use super::cli_error::CliError;
use crate::config;

/// A form of the reference of the configuration.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum ReferenceForm {
    /// docs/configuration.md
    Page,
    /// conf/aoai-lb.schema.json
    Schema,
    /// aoai-lb.yaml(5)
    Manual,
}

/// Prints the reference of the configuration in one of its forms.
pub(super) fn print_reference(form: ReferenceForm) -> Result<(), CliError> {
    let text = match form {
        ReferenceForm::Page => config::configuration_page(),
        ReferenceForm::Schema => config::json_schema(),
        ReferenceForm::Manual => config::manual_page(),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Prints the completions for a shell.
pub(super) fn print_completions(mut command: Command, shell: Shell) -> Result<(), CliError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "aoai-lb", &mut text);
    io::stdout().write_all(&text)?;
    Ok(())
}

/// Starts a program in a process group of its own, prints its process id and returns.
pub(super) fn launch_detached(program: &[OsString]) -> Result<(), CliError> {
    let [binary, arguments @ ..] = program else { return Ok(()) };
    let mut command = process::Command::new(binary);
    // Standard output must not be inherited: it is a pipe to the running process, which reads until every
    // writer has closed it.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    let child = command.spawn()?;
    writeln!(io::stdout(), "{}", child.id())?;
    Ok(())
}
