//! What is done once Pingora runs: the control socket, the service manager, the predecessor.

use std::sync::Arc;

use log::{error, info, warn};
use pingora::server::ExecutionPhase;
use tokio::sync::{broadcast, mpsc};

use super::config_manager::ConfigManager;
use super::listen_addresses::{listen_addresses, wait_until_listening};
use super::listeners::ListenerRuntime;
use super::notify;
use super::shutdown::exit_process;
use super::upgrade::{ControlCommand, ControlSocket, Successor};
use crate::config::Config;

/// What is done once Pingora runs.
pub(super) struct StartupTask {
    pub(super) config: Config,
    pub(super) config_manager: Arc<ConfigManager>,
    /// This process as the successor of another.
    pub(super) successor: Option<Successor>,
    /// Where commands of the control socket go, if there can be an upgrade.
    pub(super) control_commands: Option<mpsc::Sender<ControlCommand>>,
    pub(super) listener_runtimes: Vec<ListenerRuntime>,
}

impl StartupTask {
    /// Does it, and then keeps the service manager informed for as long as the process serves.
    pub(super) async fn run(self, mut phases: broadcast::Receiver<ExecutionPhase>) {
        while !matches!(phases.recv().await, Ok(ExecutionPhase::Running) | Err(_)) {}
        let Self { config, config_manager, successor, control_commands, listener_runtimes } = self;
        if let Err(problem) = wait_until_listening(&config).await {
            error!("{problem}");
            exit_process(config_manager.process(), 1);
        }
        if let Some(commands) = control_commands {
            let bound = ControlSocket::bind(&config.server.upgrade_socket_path, successor.is_some()).await;
            match bound {
                Ok(socket) => drop(tokio::spawn(socket.run(commands))),
                Err(problem) => warn!("an upgrade would need a restart: server.upgrade_socket: {problem}"),
            }
        }
        notify::notify_ready(&config_manager);
        info!(
            "process {} serves on {}; backends: {}",
            std::process::id(),
            listen_addresses(&config).join(", "),
            config.backends.len()
        );
        if let Some(successor) = successor {
            successor.report_serving().await;
        }
        tokio::spawn(notify::ping_watchdog(Arc::clone(config_manager.process()), listener_runtimes));
        notify::update_status_line(config_manager).await;
    }
}
