//! The running process's ear: a socket that only its own user, and root, can reach.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::{debug, info};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::channel::ControlChannel;
use super::protocol::ControlMessage;

/// The most that somebody may take to say what it wants.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it waits after it could not accept a connection.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(5);
/// Commands that may wait.
const MAX_QUEUED_COMMANDS: usize = 4;

/// What somebody wants of the running process.
#[derive(Debug)]
pub enum ControlCommand {
    /// That it replaces itself; the channel is to be told how that goes.
    Upgrade(ControlChannel),
    /// To succeed it.
    TakeOver {
        /// The connection to it.
        channel: ControlChannel,
        /// Its process id.
        pid: u32,
    },
}

/// The control socket of this process.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
}

impl ControlSocket {
    /// Listens. The socket of a process that is gone, or is about to be, is replaced.
    ///
    /// # Errors
    /// When the directory is not this user's own, or another process serves there.
    pub async fn bind(upgrade_socket_path: &Path, is_successor: bool) -> io::Result<Self> {
        ensure_private_directory(upgrade_socket_path)?;
        let path = control_socket_path(upgrade_socket_path);
        if !is_successor && UnixStream::connect(&path).await.is_ok() {
            let message = format!("another process of aoai-lb listens at {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        // Renamed into place, so that there is one at any moment.
        let temporary = PathBuf::from(format!("{}~", path.display()));
        let _ = fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary)?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
        fs::rename(&temporary, &path)?;
        Ok(Self { listener })
    }

    /// Passes commands on, for as long as somebody takes them.
    pub async fn run(self, commands: mpsc::Sender<ControlCommand>) {
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(problem) => {
                        debug!("the control socket: {problem}");
                        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                        continue;
                    }
                },
                () = commands.closed() => return,
            };
            let commands = commands.clone();
            tokio::spawn(async move {
                let mut channel = ControlChannel::new(stream);
                let command = match channel.receive(FIRST_MESSAGE_TIMEOUT).await {
                    Ok(ControlMessage::Upgrade) => ControlCommand::Upgrade(channel),
                    Ok(ControlMessage::Introduction { pid }) => ControlCommand::TakeOver { channel, pid },
                    other => return debug!("the control socket: {other:?}"),
                };
                // Whoever is not heard sees the end of the connection.
                let _ = commands.try_send(command);
            });
        }
    }

    /// A place for commands.
    pub fn command_queue() -> (mpsc::Sender<ControlCommand>, mpsc::Receiver<ControlCommand>) {
        mpsc::channel(MAX_QUEUED_COMMANDS)
    }
}

/// The path of the control socket.
pub(super) fn control_socket_path(upgrade_socket_path: &Path) -> PathBuf {
    let mut path = upgrade_socket_path.as_os_str().to_owned();
    path.push(".control");
    PathBuf::from(path)
}

/// Makes the directory of a socket, or finds that it is this user's own: whoever else may write
/// there could take the listening sockets.
fn ensure_private_directory(socket: &Path) -> io::Result<()> {
    let directory = socket.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refused = |what: &str| {
        let message = format!(
            "{} {what}; it has to be a directory of the balancer's own user with mode 0700",
            directory.display()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    };
    let metadata = match fs::metadata(directory) {
        Ok(metadata) => metadata,
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().mode(0o700).create(directory)?;
            info!("made {} for the sockets of upgrades", directory.display());
            fs::metadata(directory)?
        }
        Err(problem) => return Err(problem),
    };
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refused("is another user's");
    }
    if metadata.mode() & 0o077 != 0 {
        return refused("is open to others");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_directory_of_the_socket_must_be_private_to_its_user() {
        let parent = tempfile::tempdir().unwrap();
        let own = parent.path().join("own");
        let socket = own.join("upgrade.sock");
        let control = ControlSocket::bind(&socket, false).await.unwrap();
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
        let taken = ControlSocket::bind(&socket, false).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(control);
        drop(ControlSocket::bind(&socket, false).await.unwrap());
        fs::set_permissions(&own, Permissions::from_mode(0o750)).unwrap();
        let problem = ControlSocket::bind(&socket, false).await.unwrap_err().to_string();
        assert!(problem.contains("is open to others"), "{problem}");
    }
}
