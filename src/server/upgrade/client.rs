//! `aoai-lb upgrade`: asks the running process, and waits.

use std::io;
use std::path::{Path, PathBuf};

use super::{Channel, Message, PREPARING, STEP, control_path};

/// Why there is no new process.
#[derive(Debug, thiserror::Error)]
pub enum NotAsked {
    /// Nobody listens.
    #[error("no running process is reached at {path} (the same user or root has to ask): {problem}")]
    Nobody {
        /// Its control socket.
        path: PathBuf,
        /// The system's reason.
        problem: io::Error,
    },
    /// It hung up.
    #[error("the running process broke off; its log has more: {0}")]
    Broken(io::Error),
    /// It goes on as it is.
    #[error("{0}")]
    Failed(String),
}

/// Asks the process of this socket to replace itself; `tell` is told how it goes. Returns the new
/// process's id.
///
/// # Errors
/// [`NotAsked`].
pub async fn ask(upgrade_socket: &Path, tell: impl Fn(&str)) -> Result<u32, NotAsked> {
    let path = control_path(upgrade_socket);
    let mut channel = Channel::connect(&path).await.map_err(|problem| NotAsked::Nobody { path, problem })?;
    channel.say(&Message::Upgrade).await.map_err(NotAsked::Broken)?;
    loop {
        match channel.hear(2 * PREPARING + STEP).await.map_err(NotAsked::Broken)? {
            Message::Progress { what } => tell(&what),
            Message::Done { pid } => return Ok(pid),
            Message::Failed { why } => return Err(NotAsked::Failed(why)),
            other => return Err(NotAsked::Broken(io::Error::other(format!("it said {other:?}")))),
        }
    }
}
