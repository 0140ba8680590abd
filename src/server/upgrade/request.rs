//! `aoai-lb upgrade`: asks the running process, and waits.

use std::io;
use std::path::{Path, PathBuf};

use super::channel::ControlChannel;
use super::control_socket::control_socket_path;
use super::protocol::{ControlMessage, PREPARATION_TIMEOUT, REPLY_TIMEOUT};

/// Why there is no new process.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeRequestError {
    /// Nobody listens.
    #[error("no running process is reached at {path} (the same user or root has to ask): {problem}")]
    Unreachable {
        /// Its control socket.
        path: PathBuf,
        /// The system's reason.
        problem: io::Error,
    },
    /// It hung up.
    #[error("the running process broke off; its log has more: {0}")]
    Disconnected(io::Error),
    /// It goes on as it is.
    #[error("{0}")]
    Failed(String),
}

/// Asks the process of this socket to replace itself; `on_progress` is told how it goes. Returns the new
/// process's id.
///
/// # Errors
/// [`UpgradeRequestError`].
pub async fn request_upgrade(
    upgrade_socket_path: &Path,
    on_progress: impl Fn(&str),
) -> Result<u32, UpgradeRequestError> {
    let path = control_socket_path(upgrade_socket_path);
    let mut channel = ControlChannel::connect(&path)
        .await
        .map_err(|problem| UpgradeRequestError::Unreachable { path, problem })?;
    channel.send(&ControlMessage::Upgrade).await.map_err(UpgradeRequestError::Disconnected)?;
    loop {
        match channel
            .receive(2 * PREPARATION_TIMEOUT + REPLY_TIMEOUT)
            .await
            .map_err(UpgradeRequestError::Disconnected)?
        {
            ControlMessage::Progress { step } => on_progress(&step),
            ControlMessage::Done { pid } => return Ok(pid),
            ControlMessage::Failed { reason } => return Err(UpgradeRequestError::Failed(reason)),
            other => {
                return Err(UpgradeRequestError::Disconnected(io::Error::other(format!(
                    "it said {other:?}"
                ))));
            }
        }
    }
}
