//! The running process's ear: a socket that only its own user, and root, can reach.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::{debug, info};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::{Channel, Message, control_path};

/// The most that somebody may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// Wishes that may wait.
const WAITING: usize = 4;

/// What somebody wants of the running process.
#[derive(Debug)]
pub enum Wish {
    /// That it replaces itself; the channel is to be told how that goes.
    Upgrade(Channel),
    /// To succeed it.
    Succeed(Channel, u32),
}

/// The control socket of this process.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
}

impl Control {
    /// Listens. The socket of a process that is gone, or is about to be, is replaced.
    ///
    /// # Errors
    /// When the directory is not this user's own, or another process serves there.
    pub async fn open(upgrade_socket: &Path, replaces: bool) -> io::Result<Self> {
        own_directory(upgrade_socket)?;
        let path = control_path(upgrade_socket);
        if !replaces && UnixStream::connect(&path).await.is_ok() {
            let message = format!("another process of aoai-lb listens at {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        // Renamed into place, so that there is one at any moment.
        let new = PathBuf::from(format!("{}~", path.display()));
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        fs::rename(&new, &path)?;
        Ok(Self { listener })
    }

    /// Passes wishes on, for as long as somebody takes them.
    pub async fn run(self, wishes: mpsc::Sender<Wish>) {
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(problem) => {
                        debug!("the control socket: {problem}");
                        tokio::time::sleep(PATIENCE).await;
                        continue;
                    }
                },
                () = wishes.closed() => return,
            };
            let wishes = wishes.clone();
            tokio::spawn(async move {
                let mut channel = Channel::new(stream);
                let wish = match channel.hear(PATIENCE).await {
                    Ok(Message::Upgrade) => Wish::Upgrade(channel),
                    Ok(Message::Succeed { pid }) => Wish::Succeed(channel, pid),
                    other => return debug!("the control socket: {other:?}"),
                };
                // Whoever is not heard sees the end of the connection.
                let _ = wishes.try_send(wish);
            });
        }
    }

    /// A place for wishes.
    pub fn wishes() -> (mpsc::Sender<Wish>, mpsc::Receiver<Wish>) {
        mpsc::channel(WAITING)
    }
}

/// Makes the directory of a socket, or finds that it is this user's own: whoever else may write
/// there could take the listening sockets.
fn own_directory(socket: &Path) -> io::Result<()> {
    let directory = socket.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refused = |what: &str| {
        let message = format!(
            "{} {what}; it has to be a directory of the balancer's own user with mode 0700",
            directory.display()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    };
    let there = match fs::metadata(directory) {
        Ok(there) => there,
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().mode(0o700).create(directory)?;
            info!("made {} for the sockets of upgrades", directory.display());
            fs::metadata(directory)?
        }
        Err(problem) => return Err(problem),
    };
    if there.uid() != rustix::process::geteuid().as_raw() {
        return refused("is another user's");
    }
    if there.mode() & 0o077 != 0 {
        return refused("is open to others");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_directory_of_ones_own_will_do() {
        let parent = tempfile::tempdir().unwrap();
        let own = parent.path().join("own");
        let socket = own.join("upgrade.sock");
        let control = Control::open(&socket, false).await.unwrap();
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
        let taken = Control::open(&socket, false).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(control);
        drop(Control::open(&socket, false).await.unwrap());
        fs::set_permissions(&own, Permissions::from_mode(0o750)).unwrap();
        let problem = Control::open(&socket, false).await.unwrap_err().to_string();
        assert!(problem.contains("is open to others"), "{problem}");
    }
}
