//! The side of the running process. It checks the installed binary and the file, starts the successor
//! and sends it the health of the backends. Until the successor waits for the sockets, any step may fail
//! and this process keeps serving.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use log::{error, info};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::channel::ControlChannel;
use super::control_socket::ControlCommand;
use super::process_set::ProcessSet;
use super::protocol::{ControlMessage, PREPARATION_TIMEOUT, REPLY_TIMEOUT};
use crate::config::{Environment, VariableChange};
use crate::routing::health::snapshot::HealthSnapshot;
use crate::server::config_manager::ConfigManager;
use crate::system_error::describe;

/// How often the successor and its socket are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What an upgrade starts in place of this process.
#[derive(Clone, Debug)]
pub struct Program {
    /// The path of the installed binary, as this process was started.
    pub binary: PathBuf,
    /// The configuration file.
    pub config_file: PathBuf,
    /// The environment that the file is expanded with.
    pub environment: Environment,
}

impl Program {
    /// Adds what the program needs to find its files, and the variables of the environment file as they are now.
    fn add_config_arguments(&self, command: &mut Command) {
        command.arg("-c").arg(&self.config_file);
        if let Some(file) = self.environment.explicit_file_path() {
            command.arg("--environment").arg(file);
        }
    }

    /// Lets new values in the environment file replace those that this process has from it.
    fn update_environment(&self, command: &mut Command) {
        for VariableChange { name, value } in self.environment.changes_for_successor() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }
}

/// This process as the one that hands over.
pub struct PredecessorRole {
    /// What an upgrade starts.
    pub program: Program,
    /// The configuration, for what has been learned.
    pub config_manager: Arc<ConfigManager>,
    /// The addresses whose sockets it hands over, in the spelling of Pingora.
    pub listen_addresses: Vec<String>,
    /// Its own predecessors, which may still finish requests.
    pub earlier_processes: Arc<ProcessSet>,
    /// Where the successor waits for the sockets.
    pub upgrade_socket_path: PathBuf,
    /// The id of the process that was started last; 0 if none was.
    pub started_pid: AtomicU32,
}

/// Why the upgrade failed and this process keeps serving.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The binary cannot be started.
    #[error("cannot start {}: {}", binary.display(), describe(problem))]
    CannotStart {
        /// Its path.
        binary: PathBuf,
        /// The error of the system.
        problem: io::Error,
    },
    /// The new binary reports problems of the file.
    #[error("{binary} check -c {config_file} failed: {output}")]
    ConfigRejected {
        /// The binary.
        binary: PathBuf,
        /// The configuration file.
        config_file: PathBuf,
        /// What it printed.
        output: String,
    },
    /// The new process exited.
    #[error("the new process exited before it was ready; see its log")]
    Exited,
    /// The new process reports why it cannot serve.
    #[error("the new process cannot serve: {0}")]
    CannotServe(String),
    /// The new process did not respond as expected, or not in time.
    #[error("the new process did not become ready: {}", describe(.0))]
    NotReady(io::Error),
}

impl PredecessorRole {
    /// The id of the successor that was started last, if any.
    pub fn started_pid(&self) -> Option<u32> {
        Some(self.started_pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Forgets the successor that was started last: it has not become one, and its id may soon be that of another
    /// process.
    pub fn forget_started_pid(&self) {
        self.started_pid.store(0, Ordering::Relaxed);
    }

    /// Starts a successor and hands over to it. Afterwards the successor waits for the sockets.
    /// It introduces itself through `commands`; progress is reported to `requester`.
    ///
    /// # Errors
    /// [`HandoverError`]; this process keeps serving then.
    pub async fn start_and_prepare_successor(
        &self,
        requester: &mut Option<ControlChannel>,
        commands: &mut mpsc::Receiver<ControlCommand>,
    ) -> Result<ControlChannel, HandoverError> {
        let Program { binary, config_file, .. } = &self.program;
        report_progress(requester, format!("checking {} with {}", config_file.display(), binary.display()))
            .await;
        self.check_config().await?;
        report_progress(requester, "starting the new process".to_owned()).await;
        let pid = self.launch_successor().await?;
        self.started_pid.store(pid, Ordering::Relaxed);
        let successor = timeout(PREPARATION_TIMEOUT, self.wait_for_introduction(pid, commands)).await;
        let too_late = || HandoverError::NotReady(io::ErrorKind::TimedOut.into());
        let successor = successor.map_err(|_| too_late())??;
        self.prepare_socket_handover(successor, requester).await
    }

    /// Hands over to a process that has introduced itself as the successor.
    ///
    /// # Errors
    /// [`HandoverError`]; this process keeps serving then.
    pub async fn prepare_socket_handover(
        &self,
        mut successor: ControlChannel,
        requester: &mut Option<ControlChannel>,
    ) -> Result<ControlChannel, HandoverError> {
        let mut earlier_pids = self.earlier_processes.running_pids();
        earlier_pids.push(std::process::id());
        let addresses = self.listen_addresses.clone();
        let welcome =
            ControlMessage::Welcome { addresses, earlier_pids, tells_homes: true, tells_limits: true };
        successor.send(&welcome).await.map_err(HandoverError::NotReady)?;
        report_progress(requester, "the new process is preparing".to_owned()).await;
        expect_message(&mut successor, PREPARATION_TIMEOUT, |message| {
            matches!(message, ControlMessage::Prepared)
        })
        .await?;
        let process = Arc::clone(self.config_manager.process_state());
        // It may wait for a file that is being written.
        let _ = spawn_blocking(move || process.drains.begin_handover()).await;
        let now = Instant::now();
        let health = HealthSnapshot::capture(&self.config_manager.process_state().health_registry, now);
        let deployments = self.config_manager.active_config().load().gateway.learned_deployments();
        let deployments = deployments.iter().map(ToString::to_string).collect();
        let unfinished_objects = self.config_manager.process_state().unfinished_objects.begin_handover();
        let rates = self.config_manager.process_state().client_accounts.capture(now);
        let state = ControlMessage::LearnedState { health, deployments, unfinished_objects, rates };
        successor.send(&state).await.map_err(HandoverError::NotReady)?;
        expect_message(&mut successor, REPLY_TIMEOUT, |message| {
            matches!(message, ControlMessage::ReadyForSockets)
        })
        .await?;
        report_progress(requester, "handing over the listening sockets".to_owned()).await;
        // Pingora ends this process even if nobody receives the sockets.
        let socket_exists = async {
            while !self.upgrade_socket_path.exists() {
                sleep(POLL_INTERVAL).await;
            }
        };
        let exists = timeout(REPLY_TIMEOUT, socket_exists).await;
        exists.map_err(|_| {
            HandoverError::NotReady(io::Error::other("it does not listen on the upgrade socket"))
        })?;
        Ok(successor)
    }

    /// Has the installed binary check the file.
    async fn check_config(&self) -> Result<(), HandoverError> {
        let Program { binary, config_file, .. } = &self.program;
        let mut command = Command::new(binary);
        command.arg("check").stdin(Stdio::null()).kill_on_drop(true);
        self.program.add_config_arguments(&mut command);
        self.program.update_environment(&mut command);
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

    /// Starts the successor through a process that exits at once (`aoai-lb launch`), so that the parent of
    /// the successor is systemd. If the main process is not its child, systemd kills the service at once
    /// on a later stop. Returns the process id of the successor.
    async fn launch_successor(&self) -> Result<u32, HandoverError> {
        let binary = &self.program.binary;
        let mut command = Command::new("/proc/self/exe");
        command.arg("launch").arg(binary).arg("run").arg("--upgrade");
        self.program.add_config_arguments(&mut command);
        self.program.update_environment(&mut command);
        // It names this process; with it, the successor would not ping the watchdog.
        command.env_remove("WATCHDOG_PID").stdin(Stdio::null()).stdout(Stdio::piped());
        let cannot_start = |problem| HandoverError::CannotStart { binary: binary.clone(), problem };
        // Only standard output is piped: the successor logs to the same standard error as this process.
        let child = command.spawn().map_err(cannot_start)?;
        let launched = timeout(REPLY_TIMEOUT, child.wait_with_output()).await;
        let launched =
            launched.map_err(|_| cannot_start(io::ErrorKind::TimedOut.into()))?.map_err(cannot_start)?;
        let output = String::from_utf8_lossy(&launched.stdout);
        output
            .trim()
            .parse()
            .map_err(|_| cannot_start(io::Error::other("`aoai-lb launch` printed no process id")))
    }

    /// Waits until the process of this id introduces itself.
    async fn wait_for_introduction(
        &self,
        pid: u32,
        commands: &mut mpsc::Receiver<ControlCommand>,
    ) -> Result<ControlChannel, HandoverError> {
        let exited = wait_for_successor_exit(pid);
        tokio::pin!(exited);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(ControlCommand::HandOver { channel, pid: sender }) if sender == pid => return Ok(channel),
                    Some(
                        ControlCommand::HandOver { mut channel, .. }
                        | ControlCommand::Upgrade(mut channel)
                        | ControlCommand::Stop(mut channel),
                    ) => {
                        let reason = "an upgrade is already in progress".to_owned();
                        let _ = channel.send(&ControlMessage::Failed { reason }).await;
                    }
                    None => return Err(HandoverError::Exited),
                },
                () = &mut exited => return Err(HandoverError::Exited),
            }
        }
    }
}

/// Receives a message, which has to be the expected one.
async fn expect_message(
    successor: &mut ControlChannel,
    time_limit: Duration,
    is_expected: impl Fn(&ControlMessage) -> bool,
) -> Result<(), HandoverError> {
    match successor.receive(time_limit).await {
        Ok(message) if is_expected(&message) => Ok(()),
        Ok(ControlMessage::Failed { reason }) => Err(HandoverError::CannotServe(reason)),
        Ok(other) => Err(HandoverError::NotReady(io::Error::other(format!("unexpected message {other:?}")))),
        Err(problem) if problem.kind() == io::ErrorKind::UnexpectedEof => Err(HandoverError::Exited),
        Err(problem) => Err(HandoverError::NotReady(problem)),
    }
}

/// Reports a step to the log and to the requester, if there is one.
async fn report_progress(requester: &mut Option<ControlChannel>, step: String) {
    info!("upgrade: {step}");
    if let Some(channel) = requester {
        let _ = channel.send(&ControlMessage::Progress { step }).await;
    }
}

/// Reports the outcome of an upgrade to the log and to the requester. Waits until the successor is
/// serving, and returns its process id then.
pub async fn wait_for_serving_and_report(
    requester: Option<ControlChannel>,
    outcome: Result<ControlChannel, HandoverError>,
) -> Option<u32> {
    let mut serving_pid = None;
    let message = match outcome {
        Ok(mut successor) => match successor.receive(PREPARATION_TIMEOUT).await {
            Ok(ControlMessage::Serving { pid }) => {
                info!("upgrade: process {pid} is serving; this process exits when its requests are finished");
                serving_pid = Some(pid);
                ControlMessage::Done { pid }
            }
            other => {
                let reason = format!(
                    "the new process has the listening sockets but did not report that it is serving: {other:?}"
                );
                error!("upgrade: {reason}");
                ControlMessage::Failed { reason }
            }
        },
        Err(problem) => {
            let reason = problem.to_string();
            error!("upgrade failed, this process keeps serving: {}", reason.replace('\n', "; "));
            ControlMessage::Failed { reason }
        }
    };
    if let Some(mut channel) = requester {
        let _ = channel.send(&message).await;
    }
    serving_pid
}

/// Waits until the process of this id has exited. It is no child of this one, so it cannot be waited for
/// otherwise.
async fn wait_for_successor_exit(pid: u32) {
    let process = ProcessSet::from_pids(&[pid]);
    while !process.running_pids().is_empty() {
        sleep(POLL_INTERVAL).await;
    }
}
