//! What happens once Pingora runs: opens the control socket and reports to the service manager and the
//! predecessor that this process serves.

use std::sync::Arc;

use log::{error, info, warn};
use pingora::server::ExecutionPhase;
use tokio::sync::{broadcast, mpsc};

use super::config_manager::ConfigManager;
use super::drained_backends::log_drained_backends;
use super::listen_addresses::{listen_addresses, wait_until_listening};
use super::listeners::ListenerRuntimeHandle;
use super::notify;
use super::shutdown::close_recorder_and_exit;
use super::startup_summary::describe_start;
use super::upgrade::{ControlCommand, ControlSocket, SuccessorRole};
use crate::config::Config;
use crate::system_error::describe;

/// The task that completes the start.
pub(super) struct StartupTask {
    pub(super) config: Config,
    pub(super) config_manager: Arc<ConfigManager>,
    /// The connection to the predecessor, if this process takes over.
    pub(super) successor_role: Option<SuccessorRole>,
    /// Where the control socket sends its commands; `None` if this process cannot be upgraded.
    pub(super) command_sender: Option<mpsc::Sender<ControlCommand>>,
    pub(super) watched_runtime_handles: Vec<ListenerRuntimeHandle>,
}

impl StartupTask {
    /// Completes the start, then keeps the service manager informed for as long as the process serves.
    pub(super) async fn run(self, mut phases: broadcast::Receiver<ExecutionPhase>) {
        while !matches!(phases.recv().await, Ok(ExecutionPhase::Running) | Err(_)) {}
        let Self { config, config_manager, successor_role, command_sender, watched_runtime_handles } = self;
        // Pingora reports `Running` before its services listen.
        if let Err(error) = wait_until_listening(&config).await {
            error!("{error}");
            close_recorder_and_exit(config_manager.process_state(), 1);
        }
        if let Some(commands) = command_sender {
            let bound =
                ControlSocket::bind(&config.server.upgrade_socket_path, successor_role.is_some()).await;
            match bound {
                Ok(socket) => {
                    let process = Arc::clone(config_manager.process_state());
                    drop(tokio::spawn(socket.run(commands, process)));
                }
                Err(error) => {
                    let error = describe(&error);
                    warn!("server.upgrade_socket: {error}; `aoai-lb upgrade` will not work, only a restart");
                }
            }
        }
        notify::notify_ready(&config_manager);
        for line in describe_start(&config, &config_manager.config_status().load()) {
            info!("{line}");
        }
        info!(
            "process {} serves on {}; backends: {}",
            std::process::id(),
            listen_addresses(&config).join(", "),
            config.backends.len()
        );
        log_drained_backends(&config_manager.active_config().load().gateway, |_| true);
        // After `notify_ready`: the predecessor forwards a stop only for a short time from now on, so
        // the service manager has to know its new main process.
        if let Some(successor) = successor_role {
            successor.report_serving().await;
        }
        tokio::spawn(notify::ping_watchdog(
            Arc::clone(config_manager.process_state()),
            watched_runtime_handles,
        ));
        notify::update_status_line(config_manager).await;
    }
}
