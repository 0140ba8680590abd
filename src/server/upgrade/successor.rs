//! The side of the new process. It does every step that can fail before it takes the sockets.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::channel::ControlChannel;
use super::control_socket::control_socket_path;
use super::process_set::ProcessSet;
use super::protocol::{ControlMessage, REPLY_TIMEOUT};
use crate::names::DeploymentName;
use crate::server::config_manager::ConfigManager;
use crate::system_error::describe;

/// Why this process cannot take over.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// No process listens on the control socket.
    #[error(
        "--upgrade: cannot reach a running process at {}: {}. If none is running, start without --upgrade",
        path.display(), describe(problem)
    )]
    Unreachable {
        /// The path of the control socket.
        path: PathBuf,
        /// The error of the system.
        problem: io::Error,
    },
    /// The connection was lost.
    #[error("--upgrade: lost the connection to the running process: {}", describe(.0))]
    Disconnected(io::Error),
    /// The running process does not hand over.
    #[error("--upgrade: the running process refused to hand over: {0}")]
    Declined(String),
}

/// This process as the successor of the running one.
#[derive(Debug)]
pub struct SuccessorRole {
    channel: ControlChannel,
    /// The addresses whose sockets it will get.
    pub inherited_addresses: Vec<String>,
    earlier_pids: Vec<u32>,
}

impl SuccessorRole {
    /// Introduces this process to the running one.
    ///
    /// # Errors
    /// [`TakeoverError`].
    pub async fn introduce(upgrade_socket_path: &Path) -> Result<Self, TakeoverError> {
        let path = control_socket_path(upgrade_socket_path);
        let mut channel = ControlChannel::connect(&path)
            .await
            .map_err(|problem| TakeoverError::Unreachable { path, problem })?;
        let pid = std::process::id();
        channel.send(&ControlMessage::Introduction { pid }).await.map_err(TakeoverError::Disconnected)?;
        match channel.receive(REPLY_TIMEOUT).await.map_err(TakeoverError::Disconnected)? {
            ControlMessage::Welcome { addresses, earlier_pids } => {
                Ok(Self { channel, inherited_addresses: addresses, earlier_pids })
            }
            ControlMessage::Failed { reason } => Err(TakeoverError::Declined(reason)),
            other => {
                Err(TakeoverError::Disconnected(io::Error::other(format!("unexpected message {other:?}"))))
            }
        }
    }

    /// Reports that this process cannot serve.
    pub async fn report_failure(mut self, reason: String) {
        let _ = self.channel.send(&ControlMessage::Failed { reason }).await;
    }

    /// Receives the health of the backends and the learned deployments, and reports that this process is
    /// ready for the sockets.
    ///
    /// # Errors
    /// [`TakeoverError`].
    pub async fn adopt_state_and_report_ready(
        &mut self,
        config_manager: &ConfigManager,
    ) -> Result<(), TakeoverError> {
        self.channel.send(&ControlMessage::Prepared).await.map_err(TakeoverError::Disconnected)?;
        match self.channel.receive(REPLY_TIMEOUT).await.map_err(TakeoverError::Disconnected)? {
            ControlMessage::LearnedState { health, deployments, uncounted } => {
                let now = Instant::now();
                health.restore(&config_manager.process_state().health_registry, now);
                let deployments: Vec<_> =
                    deployments.iter().filter_map(|name| DeploymentName::parse(name).ok()).collect();
                config_manager.learn_deployments(&deployments, now);
                config_manager.process_state().recorder.stored_usage().adopt(&uncounted);
            }
            ControlMessage::Failed { reason } => return Err(TakeoverError::Declined(reason)),
            other => {
                return Err(TakeoverError::Disconnected(io::Error::other(format!(
                    "unexpected message {other:?}"
                ))));
            }
        }
        self.channel.send(&ControlMessage::ReadyForSockets).await.map_err(TakeoverError::Disconnected)
    }

    /// The processes before this one.
    pub fn earlier_processes(&self) -> ProcessSet {
        ProcessSet::from_pids(&self.earlier_pids)
    }

    /// Reports that this process is serving.
    pub async fn report_serving(mut self) {
        let _ = self.channel.send(&ControlMessage::Serving { pid: std::process::id() }).await;
    }
}
