//! `aoai-lb simulate`: runs simulated Azure OpenAI resources.

use std::io::{self, Write};
use std::path::Path;

use tokio::runtime::Runtime;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

use super::cli_error::CliError;
use super::logging::init_logging;
use crate::demo::{self, Simulator};

pub(super) fn run(path: &Path) -> Result<(), CliError> {
    init_logging();
    let resources = demo::load_resources(path)?;
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let simulator = Simulator::start(resources).await?;
        for name in simulator.resource_names() {
            let resource = simulator.resource_definition(name);
            let deployments: Vec<&str> =
                resource.deployments.iter().map(|deployment| deployment.name.as_str()).collect();
            let address = simulator.address(name);
            writeln!(io::stdout(), "{name}: http://{address}  deployments: {}", deployments.join(", "))?;
        }
        writeln!(io::stdout(), "The simulated resources are running; stop them with Ctrl-C.")?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = ctrl_c() => interrupted?,
            _ = terminate.recv() => {}
        }
        simulator.shut_down().await;
        Ok(())
    })
}
