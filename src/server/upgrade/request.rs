//! Requests an upgrade from the running process and waits for its result.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::channel::ControlChannel;
use super::control_socket_path::control_socket_path;
use super::protocol::{ControlMessage, PREPARATION_TIMEOUT, REPLY_TIMEOUT};
use crate::system_error::describe;

/// Why the upgrade failed.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeRequestError {
    /// No process listens on the control socket.
    #[error(
        "cannot reach a running process at {}: {}. Is aoai-lb running, and is this command run by the same user or \
         root?",
        path.display(), describe(problem)
    )]
    Unreachable {
        /// The path of the control socket.
        path: PathBuf,
        /// The error of the system.
        problem: io::Error,
    },
    /// The connection was lost.
    #[error("lost the connection to the running process, see its log: {}", describe(.0))]
    Disconnected(io::Error),
    /// The running process reports that the upgrade failed.
    #[error("{0}")]
    Failed(String),
}

/// The id of the process that serves with this upgrade socket.
///
/// # Errors
/// `PermissionDenied` for another user than its own and root; otherwise, if there is none.
pub(in crate::server) async fn running_process_id(upgrade_socket_path: &Path) -> io::Result<u32> {
    let stream = UnixStream::connect(control_socket_path(upgrade_socket_path)).await?;
    let pid = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
    pid.ok_or_else(|| io::Error::other("the system does not tell the id of the process"))
}

/// Requests an upgrade from the process of this socket. `on_progress` gets each step. Returns the
/// process id of the successor.
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
                    "unexpected message {other:?}"
                ))));
            }
        }
    }
}
