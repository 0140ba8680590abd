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

use super::channel::ControlChannel;
use super::control_socket::ControlCommand;
use super::process_set::ProcessSet;
use super::protocol::{ControlMessage, PREPARATION_TIMEOUT, REPLY_TIMEOUT};
use crate::routing::health_snapshot::HealthSnapshot;
use crate::server::config_manager::ConfigManager;

/// How often the successor and its socket are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What is started in place of this process.
#[derive(Clone, Debug)]
pub struct Program {
    /// The installed binary, as this process was started.
    pub binary: PathBuf,
    /// The file.
    pub config_file: PathBuf,
}

/// The running process, as far as an upgrade goes.
pub struct Predecessor {
    /// What it would start.
    pub program: Program,
    /// What it serves.
    pub config_manager: Arc<ConfigManager>,
    /// The addresses that it listens on, as the engine spells them.
    pub listen_addresses: Vec<String>,
    /// Those before it that are still there.
    pub earlier_processes: Arc<ProcessSet>,
    /// Where the successor will wait for the sockets.
    pub upgrade_socket_path: PathBuf,
}

/// Why this process goes on as it is.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The binary cannot be started.
    #[error("{binary} cannot be started: {problem}")]
    CannotStart {
        /// Its path.
        binary: PathBuf,
        /// The system's reason.
        problem: io::Error,
    },
    /// The new binary does not take the file.
    #[error("{binary} check -c {config_file} says: {output}")]
    ConfigRejected {
        /// The binary.
        binary: PathBuf,
        /// The file.
        config_file: PathBuf,
        /// What it said.
        output: String,
    },
    /// It was started and ended.
    #[error("the new process ended before it was ready; its log has more")]
    Exited,
    /// It says why it cannot serve.
    #[error("the new process cannot serve: {0}")]
    CannotServe(String),
    /// It does not say anything.
    #[error("the new process is not ready: {0}")]
    NotReady(io::Error),
}

impl Predecessor {
    /// Replaces this process as far as that can fail: afterwards a successor waits for the sockets.
    /// `commands` are those at the control socket, `requester` is told how it goes.
    ///
    /// # Errors
    /// [`HandoverError`]; nothing has changed then.
    pub async fn start_successor(
        &self,
        requester: &mut Option<ControlChannel>,
        commands: &mut mpsc::Receiver<ControlCommand>,
    ) -> Result<ControlChannel, HandoverError> {
        let Program { binary, config_file } = &self.program;
        report_progress(requester, format!("checking {} with {}", config_file.display(), binary.display()))
            .await;
        self.check_config().await?;
        report_progress(requester, "starting the new process".to_owned()).await;
        let pid = self.launch_successor().await?;
        let successor = timeout(PREPARATION_TIMEOUT, self.wait_for_introduction(pid, commands)).await;
        let too_late = || HandoverError::NotReady(io::ErrorKind::TimedOut.into());
        let successor = successor.map_err(|_| too_late())??;
        self.hand_over(successor, requester).await
    }

    /// Hands over to a process that introduced itself as the successor.
    ///
    /// # Errors
    /// [`HandoverError`]; nothing has changed then.
    pub async fn hand_over(
        &self,
        mut successor: ControlChannel,
        requester: &mut Option<ControlChannel>,
    ) -> Result<ControlChannel, HandoverError> {
        let mut predecessors = self.earlier_processes.running_pids();
        predecessors.push(std::process::id());
        let welcome = ControlMessage::Welcome { addresses: self.listen_addresses.clone(), predecessors };
        successor.send(&welcome).await.map_err(HandoverError::NotReady)?;
        report_progress(requester, "the new process prepares".to_owned()).await;
        expect_message(&mut successor, PREPARATION_TIMEOUT, |message| {
            matches!(message, ControlMessage::Prepared)
        })
        .await?;
        let now = Instant::now();
        let health = HealthSnapshot::capture(&self.config_manager.process().health_registry, now);
        let deployments = self.config_manager.active_config().load().gateway.learned_deployments();
        let deployments = deployments.iter().map(ToString::to_string).collect();
        let state = ControlMessage::State { health, deployments };
        successor.send(&state).await.map_err(HandoverError::NotReady)?;
        expect_message(&mut successor, REPLY_TIMEOUT, |message| {
            matches!(message, ControlMessage::ReadyForSockets)
        })
        .await?;
        report_progress(requester, "handing the sockets over".to_owned()).await;
        let socket_exists = async {
            while !self.upgrade_socket_path.exists() {
                sleep(POLL_INTERVAL).await;
            }
        };
        let exists = timeout(REPLY_TIMEOUT, socket_exists).await;
        exists.map_err(|_| HandoverError::NotReady(io::Error::other("it does not wait for the sockets")))?;
        Ok(successor)
    }

    /// Whether the installed binary takes the file.
    async fn check_config(&self) -> Result<(), HandoverError> {
        let Program { binary, config_file } = &self.program;
        let mut command = Command::new(binary);
        command.arg("check").arg("-c").arg(config_file).stdin(Stdio::null()).kill_on_drop(true);
        let cannot_start = |problem| HandoverError::CannotStart { binary: binary.clone(), problem };
        let checked = timeout(PREPARATION_TIMEOUT, command.output()).await;
        let checked =
            checked.map_err(|_| cannot_start(io::ErrorKind::TimedOut.into()))?.map_err(cannot_start)?;
        if checked.status.success() {
            return Ok(());
        }
        let mut output = String::from_utf8_lossy(&checked.stderr).trim().to_owned();
        if output.is_empty() {
            output = checked.status.to_string();
        }
        Err(HandoverError::ConfigRejected {
            binary: binary.clone(),
            config_file: config_file.clone(),
            output,
        })
    }

    /// Starts the successor by way of a process that ends at once: systemd wants to be the parent of
    /// what it supervises. Returns its id.
    async fn launch_successor(&self) -> Result<u32, HandoverError> {
        let Program { binary, config_file } = &self.program;
        let mut command = Command::new("/proc/self/exe");
        command.arg("launch").arg(binary).arg("run").arg("--upgrade").arg("-c").arg(config_file);
        // That was about this process.
        command.env_remove("WATCHDOG_PID").stdin(Stdio::null()).stdout(Stdio::piped());
        let cannot_start = |problem| HandoverError::CannotStart { binary: binary.clone(), problem };
        // Only its standard output is ours: the new process logs where this one does.
        let launched =
            command.spawn().map_err(cannot_start)?.wait_with_output().await.map_err(cannot_start)?;
        let output = String::from_utf8_lossy(&launched.stdout);
        output.trim().parse().map_err(|_| cannot_start(io::Error::other("it could not be launched")))
    }

    /// Waits for the process of this id to introduce itself.
    async fn wait_for_introduction(
        &self,
        pid: u32,
        commands: &mut mpsc::Receiver<ControlCommand>,
    ) -> Result<ControlChannel, HandoverError> {
        let exited = wait_for_exit(pid);
        tokio::pin!(exited);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(ControlCommand::TakeOver { channel, pid: sender }) if sender == pid => return Ok(channel),
                    Some(ControlCommand::TakeOver { mut channel, .. } | ControlCommand::Upgrade(mut channel)) => {
                        let reason = "an upgrade is under way".to_owned();
                        let _ = channel.send(&ControlMessage::Failed { reason }).await;
                    }
                    None => return Err(HandoverError::Exited),
                },
                () = &mut exited => return Err(HandoverError::Exited),
            }
        }
    }
}

/// The next message, which has to be this one.
async fn expect_message(
    successor: &mut ControlChannel,
    time_limit: Duration,
    is_expected: impl Fn(&ControlMessage) -> bool,
) -> Result<(), HandoverError> {
    match successor.receive(time_limit).await {
        Ok(message) if is_expected(&message) => Ok(()),
        Ok(ControlMessage::Failed { reason }) => Err(HandoverError::CannotServe(reason)),
        Ok(other) => Err(HandoverError::NotReady(io::Error::other(format!("it said {other:?}")))),
        Err(problem) if problem.kind() == io::ErrorKind::UnexpectedEof => Err(HandoverError::Exited),
        Err(problem) => Err(HandoverError::NotReady(problem)),
    }
}

/// Tells whoever asked; where nobody is, it is in the log.
async fn report_progress(requester: &mut Option<ControlChannel>, step: String) {
    info!("upgrade: {step}");
    if let Some(channel) = requester {
        let _ = channel.send(&ControlMessage::Progress { step }).await;
    }
}

/// Tells whoever asked what came of it. Returns the id of the process that serves now.
pub async fn report_outcome(
    requester: Option<ControlChannel>,
    outcome: Result<ControlChannel, HandoverError>,
) -> Option<u32> {
    let mut serving_pid = None;
    let message = match outcome {
        Ok(mut successor) => match successor.receive(PREPARATION_TIMEOUT).await {
            Ok(ControlMessage::Serving { pid }) => {
                info!("upgrade: process {pid} serves; this one finishes what it has begun");
                serving_pid = Some(pid);
                ControlMessage::Done { pid }
            }
            other => {
                let reason =
                    format!("the new process has the sockets and does not say that it serves: {other:?}");
                error!("upgrade: {reason}");
                ControlMessage::Failed { reason }
            }
        },
        Err(problem) => {
            let reason = problem.to_string();
            error!("upgrade: this process goes on as it is: {}", reason.replace('\n', "; "));
            ControlMessage::Failed { reason }
        }
    };
    if let Some(mut channel) = requester {
        let _ = channel.send(&message).await;
    }
    serving_pid
}

/// Until the process of this id, which is no child of this one, is gone.
async fn wait_for_exit(pid: u32) {
    let process = ProcessSet::from_pids(&[pid]);
    while !process.running_pids().is_empty() {
        sleep(POLL_INTERVAL).await;
    }
}
