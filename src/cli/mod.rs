//! The command line: arguments and exit codes. Each command has a file of its own.

mod admin_client;
mod check;
mod cli_error;
mod config_file;
mod demo;
mod drain;
mod engine_messages;
mod exit_code;
mod explain;
mod find;
mod hidden_commands;
mod import_apim;
mod keys;
mod log_limiter;
mod logging;
mod manual;
mod output;
mod progress;
mod record_files;
pub mod record_lines;
mod reload;
mod run;
mod runtime;
mod simulate;
mod status;
mod table;
mod text;
mod upgrade;
mod usage;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::cli_error::CliError;
use self::config_file::ConfigArguments;
use self::drain::DrainArguments;
use self::exit_code::{EXIT_FAILURE, EXIT_SUCCESS};
use self::explain::ExplainArguments;
use self::find::FindArguments;
use self::hidden_commands::ReferenceForm;
use self::import_apim::ImportArguments;
use self::reload::ReloadArguments;
use self::status::StatusArguments;
use self::usage::UsageArguments;

/// The version of this binary, and of the TLS library in it: fixes of OpenSSL come with a new binary.
fn long_version() -> String {
    format!("{}\n{}", env!("CARGO_PKG_VERSION"), openssl::version::version())
}

/// A load balancer for Azure OpenAI: many resources look like one.
#[derive(Parser)]
#[command(name = "aoai-lb", version, long_version = long_version())]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the load balancer.
    Run {
        #[command(flatten)]
        config: ConfigArguments,
        /// Take the listening sockets over from the running process.
        #[arg(long)]
        upgrade: bool,
    },
    /// Check a configuration file and report all its problems.
    Check {
        #[command(flatten)]
        config: ConfigArguments,
        /// Also check the ports, deliver an empty batch of records, connect and authenticate to each backend, and
        /// check that its deployments exist.
        #[arg(long)]
        live: bool,
    },
    /// Explain what would happen to a request, without sending it. Secrets may be missing.
    Explain(ExplainArguments),
    /// Print a configuration that does what policies of Azure API Management do, with a comment for each thing that has no
    /// counterpart.
    ImportApim(ImportArguments),
    /// Try it without Azure or a configuration: simulated resources with the load balancer in front.
    Demo(demo::DemoArguments),
    /// Run simulated Azure OpenAI resources without the load balancer.
    Simulate {
        /// The file that describes the resources.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Manage client keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Keep new requests away from a backend, over restarts too, until `undrain`. Requests in flight go on.
    Drain(DrainArguments),
    /// Send new requests to a drained backend again.
    Undrain(DrainArguments),
    /// Have the running process read its configuration again, and print what changed.
    Reload(ReloadArguments),
    /// Show the status of the running process.
    Status(StatusArguments),
    /// Replace the running process with the installed binary and configuration, without downtime.
    Upgrade {
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Print the manual page.
    #[command(hide = true)]
    Man,
    /// Print the reference of the configuration.
    #[command(hide = true)]
    Reference {
        /// Its form.
        form: ReferenceForm,
    },
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Start a program and exit, so that init or systemd adopts it.
    #[command(hide = true)]
    Launch {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// Show what happened to one request: its record, from the spool or the record files.
    Find(FindArguments),
    /// Sum up requests and tokens of record files, by day, client, deployment and backend, or by other keys.
    Usage(UsageArguments),
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Generate a key, and print it with the entry for the configuration that has its SHA-256.
    New {
        /// The name of the client.
        client: String,
    },
}

/// Runs the command and returns the exit code: 0 for success, 1 for failure, 2 for a usage error; for `status --check`
/// also 3.
pub fn main() -> u8 {
    forbid_core_dumps();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(usage) => {
            let _ = usage.print();
            return u8::try_from(usage.exit_code()).unwrap_or(2);
        }
    };
    let result = match arguments.command {
        Command::Run { config, upgrade } => run::run(&config, upgrade),
        Command::Check { config, live } => check::run(&config, live),
        Command::Explain(arguments) => explain::run(arguments),
        Command::ImportApim(arguments) => import_apim::run(&arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Simulate { config } => simulate::run(&config),
        Command::Keys(KeysCommand::New { client }) => keys::run(&client),
        Command::Drain(arguments) => drain::drain(&arguments),
        Command::Undrain(arguments) => drain::undrain(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Status(arguments) => return to_exit_code(status::run(&arguments)),
        Command::Upgrade { config } => upgrade::run(&config),
        Command::Launch { program } => hidden_commands::launch_detached(&program),
        Command::Man => manual::print_manual_page(&Arguments::command()).map_err(Into::into),
        Command::Reference { form } => hidden_commands::print_reference(form),
        Command::Completions { shell } => hidden_commands::print_completions(Arguments::command(), shell),
        Command::Find(arguments) => find::run(&arguments),
        Command::Usage(arguments) => usage::run(arguments),
    };
    to_exit_code(result.map(|()| EXIT_SUCCESS))
}

/// The exit code of a command. If it failed, its message is printed.
fn to_exit_code(result: Result<u8, CliError>) -> u8 {
    result.unwrap_or_else(|error| {
        logging::print_failure(&error.to_string());
        EXIT_FAILURE
    })
}

/// Prevents core dumps, and other processes of the same user from reading the memory (ptrace): it
/// contains keys and prompts. Does nothing if the kernel does not support it.
fn forbid_core_dumps() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}
