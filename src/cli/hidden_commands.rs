//! Commands that the help does not list: the manual page and shell completions for the package, and
//! `launch`, which starts a successor.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{self, Stdio};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::cli_error::CliError;

/// Prints one manual page for all commands.
pub(super) fn print_man_page(command: &Command) -> Result<(), CliError> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    let mut commands: Vec<_> =
        command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    for command in &mut commands {
        let man = Man::new(command.clone());
        let name = command.get_name().to_uppercase();
        writeln!(page, ".SH \"{name}\"")?;
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(page, "{about}.")?;
        let mut options = Vec::new();
        man.render_options_section(&mut options)?;
        page.extend_from_slice(String::from_utf8_lossy(&options).replace(".SH OPTIONS\n", "").as_bytes());
    }
    io::stdout().write_all(&page)?;
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
