//! `aoai-lb demo`: simulated resources with the load balancer in front, some traffic for the status page, and a
//! story that says what to look at.

mod caller;
mod configuration;
mod introduction;
mod places;
mod printer;
mod scenes;
mod story;
mod traffic;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use log::LevelFilter;
use tokio::runtime::Runtime;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

use self::caller::Caller;
use self::configuration::{ClientKeys, demo_config_yaml};
use self::introduction::{closing_words, introduction};
use self::places::Places;
use self::printer::Printer;
use self::scenes::Scenes;
use super::cli_error::CliError;
use super::keys::KeyGenerationError;
use super::logging::init_logging_with_filter;
use super::output::palette;
use super::runtime::start_background_runtime;
use crate::config::{self, ConfigError};
use crate::demo::{self, Simulator};
use crate::server::{self, StartError};
use crate::system_error::describe;

/// The filter of the log if `RUST_LOG` is not set: the story says what goes on.
const LOG_FILTER: &str = "warn";
/// How long a step of the story may last.
const MIN_STEP: Duration = Duration::from_secs(1);
const MAX_STEP: Duration = Duration::from_secs(600);

/// The arguments of `aoai-lb demo`.
#[derive(Clone, Copy, Args)]
pub(super) struct DemoArguments {
    /// The address of the load balancer
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The address of the status page
    #[arg(long, default_value = "127.0.0.1:9901")]
    admin: SocketAddr,
    /// How long each of the five steps of the story lasts
    #[arg(long, value_name = "TIME", default_value = "24s", value_parser = parse_step)]
    step: Duration,
}

/// Why the demo cannot run.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    /// The simulated resources cannot listen.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The directory or the configuration of the demo cannot be written.
    #[error("{}: {}", path.display(), describe(problem))]
    File { path: PathBuf, problem: io::Error },
    /// The configuration of the demo is invalid, which is a fault of aoai-lb.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address is in use.
    #[error("{0}. --listen and --admin choose other addresses")]
    Address(StartError),
    /// The load balancer cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No key can be generated.
    #[error(transparent)]
    Key(#[from] KeyGenerationError),
}

/// Runs the demo until it is interrupted.
pub(super) fn run(arguments: DemoArguments) -> Result<(), CliError> {
    Ok(run_demo(arguments, &start_background_runtime()?)?)
}

fn run_demo(arguments: DemoArguments, background: &Runtime) -> Result<(), DemoError> {
    let DemoArguments { listen, admin, step } = arguments;
    init_logging_with_filter(LOG_FILTER);
    let simulator = background.block_on(Simulator::start(demo::demo_resources()))?;
    let keys = ClientKeys::generate()?;
    let places =
        Places::create(listen, admin).map_err(|(path, problem)| DemoError::File { path, problem })?;
    let yaml = demo_config_yaml(&places, &simulator, &keys);
    let checked = config::parse_and_check_yaml(&yaml, Path::new(""), &|_| None)?;
    if let Err(error) = server::check_addresses_are_free(&checked.config, &[]) {
        // Nothing is in it yet.
        let _ = std::fs::remove_dir(&places.directory);
        return Err(DemoError::Address(error));
    }
    std::fs::write(places.config_file(), &yaml)
        .map_err(|problem| DemoError::File { path: places.config_file(), problem })?;
    let printer = Printer::start();
    printer.print(introduction(&places, &keys.user, step));
    let closing_words = closing_words(&places);
    let caller = Caller::new(listen, admin);
    background.spawn(traffic::generate_traffic(caller.clone(), keys.traffic.clone()));
    let story = story::tell_story(Scenes { caller, keys, places }, step, palette(), printer.clone());
    background.spawn(run_until_stopped(story));
    server::run(checked, None, false, background)?;
    printer.finish(closing_words);
    Ok(())
}

/// Runs the story until a signal stops the process. The requests that the stop breaks off are no part of it, and
/// are not logged as failures of backends.
async fn run_until_stopped(story: impl Future<Output = ()>) {
    let stopped = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                _ = ctrl_c() => {}
                _ = terminate.recv() => {}
            },
            Err(_) => drop(ctrl_c().await),
        }
    };
    tokio::select! {
        biased;
        () = stopped => log::set_max_level(LevelFilter::Off),
        () = story => {}
    }
}

/// Parses the duration of a step.
fn parse_step(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(step) if (MIN_STEP..=MAX_STEP).contains(&step) => Ok(step),
        _ => Err("expected a duration from 1s to 10m".to_owned()),
    }
}
