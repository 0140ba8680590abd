//! The running process's side: it checks binary and file, starts its successor, and tells it what
//! it remembers. Until the successor waits for the sockets everything can still fail without harm.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Channel, Message, PREPARING, Predecessors, STEP, Wish};
use crate::routing::handover::Remembered;
use crate::server::reload::Live;

/// How often the successor and its socket are looked for.
const LOOK: Duration = Duration::from_millis(10);

/// What is started in place of this process.
#[derive(Clone, Debug)]
pub struct Program {
    /// The installed binary, as this process was started.
    pub binary: PathBuf,
    /// The file.
    pub file: PathBuf,
}

/// The running process, as far as an upgrade goes.
pub struct Running {
    /// What it would start.
    pub program: Program,
    /// What it serves.
    pub live: Arc<Live>,
    /// The addresses that it listens on, as the engine spells them.
    pub addresses: Vec<String>,
    /// Those before it that are still there.
    pub predecessors: Arc<Predecessors>,
    /// Where the successor will wait for the sockets.
    pub upgrade_socket: PathBuf,
}

/// Why this process goes on as it is.
#[derive(Debug, thiserror::Error)]
pub enum NotUpgraded {
    /// The binary cannot be started.
    #[error("{binary} cannot be started: {problem}")]
    NoBinary {
        /// Its path.
        binary: PathBuf,
        /// The system's reason.
        problem: io::Error,
    },
    /// The new binary does not take the file.
    #[error("{binary} check -c {file} says: {says}")]
    Refused {
        /// The binary.
        binary: PathBuf,
        /// The file.
        file: PathBuf,
        /// What it said.
        says: String,
    },
    /// It was started and ended.
    #[error("the new process ended before it was ready; its log has more")]
    Ended,
    /// It says why it cannot serve.
    #[error("the new process cannot serve: {0}")]
    Unable(String),
    /// It does not say anything.
    #[error("the new process is not ready: {0}")]
    Silent(io::Error),
}

impl Running {
    /// Replaces this process as far as that can fail: afterwards a successor waits for the sockets.
    /// `wishes` are those at the control socket, `asker` is told how it goes.
    ///
    /// # Errors
    /// [`NotUpgraded`]; nothing has changed then.
    pub async fn upgrade(
        &self,
        asker: &mut Option<Channel>,
        wishes: &mut mpsc::Receiver<Wish>,
    ) -> Result<Channel, NotUpgraded> {
        let Program { binary, file } = &self.program;
        progress(asker, format!("checking {} with {}", file.display(), binary.display())).await;
        self.check().await?;
        progress(asker, "starting the new process".to_owned()).await;
        let pid = self.launch().await?;
        let successor = timeout(PREPARING, self.introduced(pid, wishes)).await;
        let too_late = || NotUpgraded::Silent(io::ErrorKind::TimedOut.into());
        let successor = successor.map_err(|_| too_late())??;
        self.hand_over(successor, asker).await
    }

    /// Hands over to a process that introduced itself as the successor.
    ///
    /// # Errors
    /// [`NotUpgraded`]; nothing has changed then.
    pub async fn hand_over(
        &self,
        mut successor: Channel,
        asker: &mut Option<Channel>,
    ) -> Result<Channel, NotUpgraded> {
        let mut predecessors = self.predecessors.pids();
        predecessors.push(std::process::id());
        let welcome = Message::Welcome { addresses: self.addresses.clone(), predecessors };
        successor.say(&welcome).await.map_err(NotUpgraded::Silent)?;
        progress(asker, "the new process prepares".to_owned()).await;
        expect(&mut successor, PREPARING, |message| matches!(message, Message::Prepared)).await?;
        let now = Instant::now();
        let remembered = Remembered::of(&self.live.process().memory, now);
        let learned = self.live.serving.load().gateway.learned();
        let learned = learned.iter().map(ToString::to_string).collect();
        let inheritance = Message::Inheritance { remembered, learned };
        successor.say(&inheritance).await.map_err(NotUpgraded::Silent)?;
        expect(&mut successor, STEP, |message| matches!(message, Message::Ready)).await?;
        progress(asker, "handing the sockets over".to_owned()).await;
        let waits = async {
            while !self.upgrade_socket.exists() {
                sleep(LOOK).await;
            }
        };
        let waits = timeout(STEP, waits).await;
        waits.map_err(|_| NotUpgraded::Silent(io::Error::other("it does not wait for the sockets")))?;
        Ok(successor)
    }

    /// Whether the installed binary takes the file.
    async fn check(&self) -> Result<(), NotUpgraded> {
        let Program { binary, file } = &self.program;
        let mut command = Command::new(binary);
        command.arg("check").arg("-c").arg(file).stdin(Stdio::null()).kill_on_drop(true);
        let no_binary = |problem| NotUpgraded::NoBinary { binary: binary.clone(), problem };
        let checked = timeout(PREPARING, command.output()).await;
        let checked = checked.map_err(|_| no_binary(io::ErrorKind::TimedOut.into()))?.map_err(no_binary)?;
        if checked.status.success() {
            return Ok(());
        }
        let mut says = String::from_utf8_lossy(&checked.stderr).trim().to_owned();
        if says.is_empty() {
            says = checked.status.to_string();
        }
        Err(NotUpgraded::Refused { binary: binary.clone(), file: file.clone(), says })
    }

    /// Starts the successor by way of a process that ends at once: systemd wants to be the parent of
    /// what it supervises. Returns its id.
    async fn launch(&self) -> Result<u32, NotUpgraded> {
        let Program { binary, file } = &self.program;
        let mut command = Command::new("/proc/self/exe");
        command.arg("launch").arg(binary).arg("run").arg("--upgrade").arg("-c").arg(file);
        // That was about this process.
        command.env_remove("WATCHDOG_PID").stdin(Stdio::null()).stdout(Stdio::piped());
        let no_binary = |problem| NotUpgraded::NoBinary { binary: binary.clone(), problem };
        // Only its standard output is ours: the new process logs where this one does.
        let launched = command.spawn().map_err(no_binary)?.wait_with_output().await.map_err(no_binary)?;
        let says = String::from_utf8_lossy(&launched.stdout);
        says.trim().parse().map_err(|_| no_binary(io::Error::other("it could not be launched")))
    }

    /// Waits for the process of this id to introduce itself.
    async fn introduced(&self, pid: u32, wishes: &mut mpsc::Receiver<Wish>) -> Result<Channel, NotUpgraded> {
        let ended = ended(pid);
        tokio::pin!(ended);
        loop {
            tokio::select! {
                wish = wishes.recv() => match wish {
                    Some(Wish::Succeed(channel, who)) if who == pid => return Ok(channel),
                    Some(Wish::Succeed(mut channel, _) | Wish::Upgrade(mut channel)) => {
                        let why = "an upgrade is under way".to_owned();
                        let _ = channel.say(&Message::Failed { why }).await;
                    }
                    None => return Err(NotUpgraded::Ended),
                },
                () = &mut ended => return Err(NotUpgraded::Ended),
            }
        }
    }
}

/// The next message, which has to be this one.
async fn expect(
    successor: &mut Channel,
    patience: Duration,
    is_it: impl Fn(&Message) -> bool,
) -> Result<(), NotUpgraded> {
    match successor.hear(patience).await {
        Ok(message) if is_it(&message) => Ok(()),
        Ok(Message::Failed { why }) => Err(NotUpgraded::Unable(why)),
        Ok(other) => Err(NotUpgraded::Silent(io::Error::other(format!("it said {other:?}")))),
        Err(problem) if problem.kind() == io::ErrorKind::UnexpectedEof => Err(NotUpgraded::Ended),
        Err(problem) => Err(NotUpgraded::Silent(problem)),
    }
}

/// Tells whoever asked; where nobody is, it is in the log.
async fn progress(asker: &mut Option<Channel>, what: String) {
    info!("upgrade: {what}");
    if let Some(channel) = asker {
        let _ = channel.say(&Message::Progress { what }).await;
    }
}

/// Tells whoever asked what came of it. Returns the id of the process that serves now.
pub async fn report(asker: Option<Channel>, outcome: Result<Channel, NotUpgraded>) -> Option<u32> {
    let mut serving = None;
    let message = match outcome {
        Ok(mut successor) => match successor.hear(PREPARING).await {
            Ok(Message::Serving { pid }) => {
                info!("upgrade: process {pid} serves; this one finishes what it has begun");
                serving = Some(pid);
                Message::Done { pid }
            }
            other => {
                let why =
                    format!("the new process has the sockets and does not say that it serves: {other:?}");
                error!("upgrade: {why}");
                Message::Failed { why }
            }
        },
        Err(problem) => {
            let why = problem.to_string();
            error!("upgrade: this process goes on as it is: {}", why.replace('\n', "; "));
            Message::Failed { why }
        }
    };
    if let Some(mut channel) = asker {
        let _ = channel.say(&message).await;
    }
    serving
}

/// Until the process of this id, which is no child of this one, is gone.
async fn ended(pid: u32) {
    let process = Predecessors::new(&[pid]);
    while !process.pids().is_empty() {
        sleep(LOOK).await;
    }
}
