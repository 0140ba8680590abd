//! The commands: one function each.

mod demo;
mod explain;
mod keys;
mod logging;
mod status;
mod table;
pub mod usage;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::Instant;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::runtime::Runtime;

use self::status::Arguments as StatusArguments;
use self::usage::{Format, Report};
use crate::config::{self, Checked, Config};
use crate::credentials::Keyring;
use crate::demo::Simulator;
use crate::gateway::Process;
use crate::proxy::upstream::dns::Directory;
use crate::proxy::upstream::live_check;
use crate::record::Recorder;
use crate::server::upgrade::Program;
use crate::server::{self, reload};

/// Where the file is on a machine that it was installed on.
const DEFAULT_FILE: &str = "/etc/aoai-lb/aoai-lb.yaml";

/// Everything went well.
const GOOD: u8 = 0;
/// The command could not do what it was asked to.
const BAD: u8 = 1;

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
    Keys(Keys),
    /// Show what the admin API knows, as a table.
    Status(StatusArguments),
    /// Have the running process replace itself with the installed binary and file, and wait until the new one serves.
    Upgrade {
        /// The configuration file of the running process.
        #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
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
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

#[derive(Subcommand)]
enum Keys {
    /// Print a fresh key once, and the lines of configuration with its SHA-256.
    New {
        /// The client's name.
        client: String,
    },
}

/// Runs the command line; returns the exit code: 0 good, 1 bad, 2 usage.
pub fn main() -> u8 {
    hide_memory();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(usage) => {
            let _ = usage.print();
            return u8::try_from(usage.exit_code()).unwrap_or(2);
        }
    };
    let result = match arguments.command {
        Command::Run { config, upgrade } => run(&config, upgrade),
        Command::Check { config, live } => check(&config, live),
        Command::Explain { config, method, path, model, client } => {
            explain_request(&config, &method, path, model, client)
        }
        Command::Demo => background().and_then(|background| Ok(demo::run(&background)?)),
        Command::Simulate { config } => simulate(&config),
        Command::Keys(Keys::New { client }) => new_key(&client),
        Command::Status(arguments) => show_status(&arguments),
        Command::Upgrade { config } => upgrade(&config),
        Command::Launch { program } => launch(&program),
        Command::Man => man(),
        Command::Completions { shell } => completions(shell),
        Command::Usage { files, format } => usage(&files, format),
    };
    match result {
        Ok(()) => GOOD,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{failure}");
            BAD
        }
    }
}

/// No core dump, and no look into the memory by others of the same user: keys and prompts are in
/// it. Where the kernel does not know how, it is as it would have been.
fn hide_memory() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// What is printed when a command fails: the chain of causes.
struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            // Many errors repeat their cause in their own words.
            if !text.contains(&inner_text) {
                text.push_str(": ");
                text.push_str(&inner_text);
            }
            cause = inner.source();
        }
        Self(text)
    }
}

fn run(path: &Path, takes_over: bool) -> Result<(), Failure> {
    logging::start();
    let file = std::path::absolute(path)?;
    let checked = load(&file)?;
    let program = Program { binary: own_binary()?, file };
    server::run(checked, Some(program), takes_over, &background()?)?;
    Ok(())
}

/// The binary as it was called, so that a new one in its place is found there.
fn own_binary() -> io::Result<PathBuf> {
    let called = std::env::args_os().next().map(PathBuf::from);
    match called.filter(|called| called.components().count() > 1) {
        Some(called) => std::path::absolute(called),
        None => std::env::current_exe(),
    }
}

fn show_status(arguments: &StatusArguments) -> Result<(), Failure> {
    Ok(background()?.block_on(status::run(arguments))?)
}

fn upgrade(path: &Path) -> Result<(), Failure> {
    let socket = config::upgrade_socket(&std::path::absolute(path)?, &config::environment)?;
    let say = |what: &str| {
        let _ = writeln!(io::stdout(), "{what}");
    };
    let pid = background()?.block_on(server::upgrade::ask(&socket, say))?;
    writeln!(io::stdout(), "process {pid} serves; the one before it finishes what it has begun")?;
    Ok(())
}

/// One page for all commands.
fn man() -> Result<(), Failure> {
    let mut page = Vec::new();
    let command = Arguments::command();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    let mut commands: Vec<_> =
        command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    for command in &mut commands {
        let man = clap_mangen::Man::new(command.clone());
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

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "aoai-lb", &mut text);
    io::stdout().write_all(&text)?;
    Ok(())
}

fn launch(program: &[OsString]) -> Result<(), Failure> {
    let [binary, arguments @ ..] = program else { return Ok(()) };
    let mut command = process::Command::new(binary);
    // Its output would hold up whoever waits for the end of this process's.
    command.args(arguments).stdin(process::Stdio::null()).stdout(process::Stdio::null()).process_group(0);
    let child = command.spawn()?;
    writeln!(io::stdout(), "{}", child.id())?;
    Ok(())
}

fn usage(files: &[PathBuf], format: Format) -> Result<(), Failure> {
    let mut report = Report::default();
    for file in files {
        report.add(file)?;
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    report.write(format, &mut out)?;
    out.flush()?;
    for (count, what) in
        [(report.strange, "lines are no records"), (report.repeated, "records were there twice")]
    {
        if count > 0 {
            writeln!(io::stderr(), "{count} {what} and do not count")?;
        }
    }
    Ok(())
}

fn check(path: &Path, live: bool) -> Result<(), Failure> {
    let checked = load(path)?;
    if live && !look_at_backends(checked)? {
        return Err(Failure(format!("{}: not all of it is good", path.display())));
    }
    writeln!(io::stdout(), "{}: good", path.display())?;
    Ok(())
}

/// Looks at every backend; returns whether all is well.
fn look_at_backends(checked: Checked) -> Result<bool, Failure> {
    let background = background()?;
    let keyring = Keyring::new(background.handle());
    // Nothing is recorded.
    let checked = Checked { config: Config { record: None, ..checked.config }, ..checked };
    let recorder = Recorder::open(&checked.config, &keyring, background.handle())?;
    let process = Arc::new(Process::new(Instant::now(), recorder, keyring));
    let findings = background.block_on(async {
        let serving = reload::prepare(&checked.config, &Directory::default(), &process).await?.0;
        Ok::<_, Failure>(live_check::inspect(&serving).await)
    })?;
    let mut out = io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    process.recorder.close();
    Ok(findings.iter().all(|finding| finding.result.is_ok()))
}

fn explain_request(
    path: &Path,
    method: &str,
    target: String,
    model: Option<String>,
    client: Option<String>,
) -> Result<(), Failure> {
    let checked = load(path)?;
    let bad = |_| Failure(format!("{method} is no method; write GET, POST or DELETE"));
    let method = http::Method::from_bytes(method.to_ascii_uppercase().as_bytes()).map_err(bad)?;
    let request = explain::Request { method, target, model, client };
    let text = explain::explain(&checked.config, &request, background()?.handle())?;
    write!(io::stdout(), "{text}")?;
    Ok(())
}

/// Reads the file; warnings go to standard error at once.
fn load(path: &Path) -> Result<Checked, Failure> {
    let checked = config::load(path, &config::environment);
    let warnings = match &checked {
        Ok(Checked { warnings, .. }) => warnings,
        Err(problems) => &problems.warnings,
    };
    for warning in warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    Ok(checked?)
}

/// The runtime of everything that is not a request: look-ups, simulated resources.
fn background() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("background")
        .enable_all()
        .build();
    runtime.map_err(|problem| Failure::from(server::StartError::Runtime(problem)))
}

fn simulate(path: &Path) -> Result<(), Failure> {
    logging::start();
    let resources = crate::demo::load(path)?;
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let simulator = Simulator::start(resources).await?;
        for name in simulator.names() {
            let resource = simulator.resource(name);
            let deployments: Vec<&str> =
                resource.deployments.iter().map(|deployment| deployment.name.as_str()).collect();
            let address = simulator.address(name);
            writeln!(io::stdout(), "{name}: http://{address}  deployments: {}", deployments.join(", "))?;
        }
        writeln!(io::stdout(), "Simulated resources are running; end with Ctrl-C.")?;
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = terminate.recv() => {}
        }
        simulator.stop().await;
        Ok(())
    })
}

fn new_key(client: &str) -> Result<(), Failure> {
    let name = client.replace(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)), "");
    if name != client || name.is_empty() || name.len() > 64 {
        return Err(Failure("a client's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -".to_owned()));
    }
    let key = keys::new_key()?;
    let digest = keys::sha256_hex(&key);
    let mut out = io::stdout();
    writeln!(out, "Key of {client}, shown only this once:\n\n  {key}\n")?;
    writeln!(out, "For the configuration, under `clients:`\n")?;
    writeln!(out, "  - name: {client}\n    keys:\n      - sha256: \"{digest}\"")?;
    Ok(())
}
