//! The Tokio runtime of background work. Requests run on the runtimes of Pingora.

use tokio::runtime::{Builder, Runtime};

use super::cli_error::CliError;
use crate::server::StartError;

/// The runtime of background work: look-ups, secrets, reloads, the simulated resources of the demo.
pub(super) fn start_background_runtime() -> Result<Runtime, CliError> {
    let runtime =
        Builder::new_multi_thread().worker_threads(1).thread_name("background").enable_all().build();
    runtime.map_err(|error| CliError::from(StartError::BackgroundRuntime(error)))
}
