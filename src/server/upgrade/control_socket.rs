//! The control socket of the running process, which only its own user and root can open.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::{debug, info};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::budgets::accept_additions;
use super::channel::ControlChannel;
use super::control_socket_path::control_socket_path;
use super::homes::{accept_homes, tell_homes};
use super::limits::tell_limits;
use super::protocol::ControlMessage;
use super::unfinished_objects::accept_objects;
use crate::gateway::ProcessState;

/// How long a client of the socket may take to send its first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a connection could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(5);
/// How many commands may wait while one is carried out.
const MAX_QUEUED_COMMANDS: usize = 4;

/// A command to the running process.
#[derive(Debug)]
pub enum ControlCommand {
    /// Upgrade; progress and result go to the channel.
    Upgrade(ControlChannel),
    /// Hand over to the sender, which is ready to take over.
    HandOver {
        /// The connection to the sender.
        channel: ControlChannel,
        /// Its process id.
        pid: u32,
    },
    /// Stop, without waiting for the sender, which waits for this process.
    Stop(ControlChannel),
}

/// The control socket of this process.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
}

impl ControlSocket {
    /// Listens. Replaces the socket of a process that has exited, and that of the predecessor.
    ///
    /// # Errors
    /// If the directory is not private to this user, or another process listens there.
    pub async fn bind(upgrade_socket_path: &Path, is_successor: bool) -> io::Result<Self> {
        ensure_private_directory(upgrade_socket_path)?;
        let path = control_socket_path(upgrade_socket_path);
        if !is_successor && UnixStream::connect(&path).await.is_ok() {
            let message = format!("another aoai-lb process listens on {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        // Renamed into place, so that the path always leads to a listening socket.
        let temporary = PathBuf::from(format!("{}~", path.display()));
        let _ = fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary)?;
        fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
        fs::rename(&temporary, &path)?;
        Ok(Self { listener })
    }

    /// Sends the commands to `commands` until its receiver is dropped. What concerns the memory of homes,
    /// budgets or limits is answered at once, since a command may be waiting for it.
    pub async fn run(self, commands: mpsc::Sender<ControlCommand>, process: Arc<ProcessState>) {
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        debug!("control socket: cannot accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                        continue;
                    }
                },
                () = commands.closed() => return,
            };
            let (commands, process) = (commands.clone(), Arc::clone(&process));
            tokio::spawn(async move {
                let mut channel = ControlChannel::new(stream);
                let command = match channel.receive(FIRST_MESSAGE_TIMEOUT).await {
                    Ok(ControlMessage::Upgrade) => ControlCommand::Upgrade(channel),
                    Ok(ControlMessage::Introduction { pid }) => ControlCommand::HandOver { channel, pid },
                    Ok(ControlMessage::Stop) => ControlCommand::Stop(channel),
                    Ok(ControlMessage::FollowHomes) => return tell_homes(channel, &process),
                    Ok(ControlMessage::ReportBudgets { additions }) => {
                        return accept_additions(channel, &process.budgets, &additions).await;
                    }
                    Ok(ControlMessage::ReportCosts { additions }) => {
                        return accept_additions(channel, &process.costs, &additions).await;
                    }
                    Ok(ControlMessage::ReportObjects { report }) => {
                        return accept_objects(channel, &process.unfinished_objects, report).await;
                    }
                    Ok(ControlMessage::FollowLimits) => return tell_limits(channel, process).await,
                    Ok(ControlMessage::ReportHomes) => return accept_homes(channel, process).await,
                    other => return debug!("control socket: no command: {other:?}"),
                };
                // If the queue is full, the connection is closed, and the client sees that.
                let _ = commands.try_send(command);
            });
        }
    }

    /// The queue between the control socket and what carries out its commands.
    pub fn command_queue() -> (mpsc::Sender<ControlCommand>, mpsc::Receiver<ControlCommand>) {
        mpsc::channel(MAX_QUEUED_COMMANDS)
    }
}

/// Creates the directory of the socket, or checks that only this user can write there. Any other user
/// who could would be able to take the listening sockets.
fn ensure_private_directory(socket: &Path) -> io::Result<()> {
    let directory = socket.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refused = |what: &str| {
        let message = format!(
            "{} {what}; it must be owned by the user of aoai-lb and have mode 0700",
            directory.display()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    };
    let metadata = match fs::metadata(directory) {
        Ok(metadata) => metadata,
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().mode(0o700).create(directory)?;
            info!("created {} for the upgrade sockets", directory.display());
            fs::metadata(directory)?
        }
        Err(problem) => return Err(problem),
    };
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refused("belongs to another user");
    }
    if metadata.mode() & 0o077 != 0 {
        return refused("is accessible to other users");
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
        assert!(problem.contains("is accessible to other users"), "{problem}");
    }
}
