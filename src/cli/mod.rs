//! The command line: arguments, exit codes, and which command runs. Each command has a file.

mod check;
mod cli_error;
mod config_file;
mod demo;
mod explain;
mod hidden_commands;
mod keys;
mod logging;
mod run;
mod runtime;
mod simulate;
mod status;
mod table;
mod upgrade;
mod usage;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::status::StatusArguments;
use self::usage::ReportFormat;

/// Where the file is on a machine that it was installed on.
const DEFAULT_CONFIG_FILE: &str = "/etc/aoai-lb/aoai-lb.yaml";

/// Everything went well.
const EXIT_SUCCESS: u8 = 0;
/// The command could not do what it was asked to.
const EXIT_FAILURE: u8 = 1;

/// A load balancer for Azure OpenAI: many resources look like one.
#[derive(Parser)]
#[command(name = "aoai-lb", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve.
    Run {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Take the listening sockets over from the process that is running.
        #[arg(long)]
        upgrade: bool,
    },
    /// Report every problem of a configuration file at once.
    Check {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Also resolve, connect to, and authenticate at each backend, and ask for each deployment.
        #[arg(long)]
        live: bool,
    },
    /// Tell what would happen to a request, and why.
    Explain {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// GET, POST or DELETE.
        method: String,
        /// Path and query, such as /openai/v1/responses.
        path: String,
        /// What the body's `model` says.
        #[arg(long)]
        model: Option<String>,
        /// Whose request it is.
        #[arg(long)]
        client: Option<String>,
    },
    /// Try it without a file and without Azure: simulated resources and the balancer.
    Demo,
    /// Serve simulated Azure OpenAI resources only.
    Simulate {
        /// The file that describes them.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Client keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Show what the admin API knows, as a table.
    Status(StatusArguments),
    /// Have the running process replace itself with the installed binary and file, and wait until the new one serves.
    Upgrade {
        /// The configuration file of the running process.
        #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG_FILE)]
        config: PathBuf,
    },
    /// Print the manual page.
    #[command(hide = true)]
    Man,
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Start a program and end, leaving it to whoever takes care of orphans.
    #[command(hide = true)]
    Launch {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// Sum up tokens and requests per day, client, deployment and backend from record files.
    Usage {
        /// Files of JSON lines, rotated and compressed ones too.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The form of the report.
        #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
        format: ReportFormat,
    },
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Print a fresh key once, and the lines of configuration with its SHA-256.
    New {
        /// The client's name.
        client: String,
    },
}

/// Runs the command line; returns the exit code: 0 good, 1 bad, 2 usage.
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
        Command::Explain { config, method, path, model, client } => {
            explain::run(&config, &method, path, model, client)
        }
        Command::Demo => demo::run(),
        Command::Simulate { config } => simulate::run(&config),
        Command::Keys(KeysCommand::New { client }) => keys::run(&client),
        Command::Status(arguments) => status::run(&arguments),
        Command::Upgrade { config } => upgrade::run(&config),
        Command::Launch { program } => hidden_commands::launch(&program),
        Command::Man => hidden_commands::print_man_page(&Arguments::command()),
        Command::Completions { shell } => hidden_commands::print_completions(Arguments::command(), shell),
        Command::Usage { files, format } => usage::run(&files, format),
    };
    match result {
        Ok(()) => EXIT_SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            EXIT_FAILURE
        }
    }
}

/// No core dump, and no look into the memory by others of the same user: keys and prompts are in
/// it. Where the kernel does not know how, it is as it would have been.
fn forbid_core_dumps() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}
