//! The new process's side: everything that can fail is done before the sockets are taken.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::channel::ControlChannel;
use super::control_socket::control_socket_path;
use super::process_set::ProcessSet;
use super::protocol::{ControlMessage, REPLY_TIMEOUT};
use crate::names::DeploymentName;
use crate::server::config_manager::ConfigManager;

/// Why nobody's sockets can be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// Nobody is there.
    #[error("--upgrade: no running process is reached at {path}; start without --upgrade: {problem}")]
    Unreachable {
        /// Its control socket.
        path: PathBuf,
        /// The system's reason.
        problem: io::Error,
    },
    /// It did not go on.
    #[error("--upgrade: the running process broke off: {0}")]
    Disconnected(io::Error),
    /// It does not want to.
    #[error("--upgrade: the running process goes on: {0}")]
    Declined(String),
}

/// A process that is about to take over.
#[derive(Debug)]
pub struct Successor {
    channel: ControlChannel,
    /// The addresses that it will get sockets of.
    pub addresses: Vec<String>,
    earlier_processes: Vec<u32>,
}

impl Successor {
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
            ControlMessage::Welcome { addresses, predecessors: earlier_processes } => {
                Ok(Self { channel, addresses, earlier_processes })
            }
            ControlMessage::Failed { reason } => Err(TakeoverError::Declined(reason)),
            other => Err(TakeoverError::Disconnected(io::Error::other(format!("it said {other:?}")))),
        }
    }

    /// Says that this process cannot serve.
    pub async fn report_failure(mut self, reason: String) {
        let _ = self.channel.send(&ControlMessage::Failed { reason }).await;
    }

    /// Takes over what is remembered; from then on the sockets may come.
    ///
    /// # Errors
    /// [`TakeoverError`].
    pub async fn receive_state(&mut self, config_manager: &ConfigManager) -> Result<(), TakeoverError> {
        self.channel.send(&ControlMessage::Prepared).await.map_err(TakeoverError::Disconnected)?;
        match self.channel.receive(REPLY_TIMEOUT).await.map_err(TakeoverError::Disconnected)? {
            ControlMessage::State { health, deployments } => {
                let now = Instant::now();
                health.restore(&config_manager.process().health_registry, now);
                let deployments: Vec<_> =
                    deployments.iter().filter_map(|name| DeploymentName::parse(name).ok()).collect();
                config_manager.learn_deployments(&deployments, now);
            }
            ControlMessage::Failed { reason } => return Err(TakeoverError::Declined(reason)),
            other => {
                return Err(TakeoverError::Disconnected(io::Error::other(format!("it said {other:?}"))));
            }
        }
        self.channel.send(&ControlMessage::ReadyForSockets).await.map_err(TakeoverError::Disconnected)
    }

    /// Those before this one.
    pub fn earlier_processes(&self) -> ProcessSet {
        ProcessSet::from_pids(&self.earlier_processes)
    }

    /// Says that this process serves.
    pub async fn report_serving(mut self) {
        let _ = self.channel.send(&ControlMessage::Serving { pid: std::process::id() }).await;
    }
}
