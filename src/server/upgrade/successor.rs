//! The side of the new process. It does every step that can fail before it takes the sockets.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::channel::ControlChannel;
use super::control_socket_path::control_socket_path;
use super::homes::follow_homes;
use super::limits::LimitsSource;
use super::process_set::ProcessSet;
use super::protocol::{ControlMessage, REPLY_TIMEOUT};
use crate::gateway::homes_keeper::HomesSource;
use crate::names::DeploymentName;
use crate::routing::homes::{HashKey, Homes};
use crate::server::config_manager::ConfigManager;
use crate::system_error::describe;

/// How long the takeover waits for the homes that the predecessor remembers. Those that come later are learned
/// all the same, and until then found by asking.
const HOMES_TIMEOUT: Duration = Duration::from_millis(300);

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
    homes: HandedOverHomes,
    /// The connection for limits, until the state of the predecessor is adopted.
    limits: Option<LimitsSource>,
}

/// How far the homes that the predecessor remembers have come.
#[derive(Debug)]
enum HandedOverHomes {
    /// The predecessor does not tell them.
    None,
    /// They can be read from here.
    Offered(HomesSource),
    /// They are being read. The receiver is told when all of them are there.
    Coming(oneshot::Receiver<()>),
    /// All of them are there.
    Complete,
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
            ControlMessage::Welcome { addresses, earlier_pids, tells_homes, tells_limits } => {
                let source = if tells_homes { follow_homes(upgrade_socket_path).await } else { None };
                let homes = source.map_or(HandedOverHomes::None, HandedOverHomes::Offered);
                let limits = if tells_limits { LimitsSource::open(upgrade_socket_path).await } else { None };
                Ok(Self { channel, inherited_addresses: addresses, earlier_pids, homes, limits })
            }
            ControlMessage::Failed { reason } => Err(TakeoverError::Declined(reason)),
            other => {
                Err(TakeoverError::Disconnected(io::Error::other(format!("unexpected message {other:?}"))))
            }
        }
    }

    /// The secret that the predecessor hashes ids with, if it tells the homes that it remembers.
    pub fn homes_hash_key(&self) -> Option<HashKey> {
        match &self.homes {
            HandedOverHomes::Offered(source) => Some(source.hash_key()),
            _ => None,
        }
    }

    /// Begins to add the homes that the predecessor remembers and learns to this memory.
    pub fn copy_homes_into(&mut self, homes: &Arc<Homes>) {
        let HandedOverHomes::Offered(source) = std::mem::replace(&mut self.homes, HandedOverHomes::None)
        else {
            return;
        };
        match source.copy_into(Arc::clone(homes)) {
            Ok(complete) => self.homes = HandedOverHomes::Coming(complete),
            Err(problem) => {
                warn!("upgrade: cannot read the ids of stored objects from the predecessor: {problem}");
            }
        }
    }

    /// Whether all homes that the predecessor remembered are there.
    pub fn are_homes_complete(&self) -> bool {
        matches!(self.homes, HandedOverHomes::Complete)
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
        config_manager: &Arc<ConfigManager>,
    ) -> Result<(), TakeoverError> {
        self.channel.send(&ControlMessage::Prepared).await.map_err(TakeoverError::Disconnected)?;
        match self.channel.receive(REPLY_TIMEOUT).await.map_err(TakeoverError::Disconnected)? {
            ControlMessage::LearnedState { health, deployments, unfinished_objects, rates } => {
                let now = Instant::now();
                health.restore(&config_manager.process_state().health_registry, now);
                let deployments: Vec<_> =
                    deployments.iter().filter_map(|name| DeploymentName::parse(name).ok()).collect();
                config_manager.learn_deployments(&deployments, now);
                config_manager.process_state().unfinished_objects.adopt(unfinished_objects.into());
                let accounts = &config_manager.process_state().client_accounts;
                let mut share = accounts.restore(&rates, now);
                match self.limits.take() {
                    Some(source) => source.keep_limits(share, config_manager),
                    None => share.settle_all(accounts, now),
                }
            }
            ControlMessage::Failed { reason } => return Err(TakeoverError::Declined(reason)),
            other => {
                return Err(TakeoverError::Disconnected(io::Error::other(format!(
                    "unexpected message {other:?}"
                ))));
            }
        }
        if let HandedOverHomes::Coming(complete) = &mut self.homes
            && let Ok(Ok(())) = timeout(HOMES_TIMEOUT, complete).await
        {
            self.homes = HandedOverHomes::Complete;
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
