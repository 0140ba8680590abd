//! The runtime of everything that is not a request.

use tokio::runtime::{Builder, Runtime};

use super::cli_error::CliError;
use crate::server::StartError;

/// The runtime of everything that is not a request: look-ups, simulated resources.
pub(super) fn background_runtime() -> Result<Runtime, CliError> {
    let runtime =
        Builder::new_multi_thread().worker_threads(1).thread_name("background").enable_all().build();
    runtime.map_err(|error| CliError::from(StartError::BackgroundRuntime(error)))
}
