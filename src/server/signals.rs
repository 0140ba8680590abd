//! What signals, and commands at the control socket, mean; and the end of a process.
//!
//! SIGTERM: readiness fails, listeners stay for a while, what is in flight is finished. SIGINT: now.
//! SIGUSR2: another process takes over, what is in flight is finished. SIGHUP: the file again.
//! SIGUSR1: as SIGTERM, from the process before this one, which waits for it and not the other way
//! round.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use log::{info, warn};
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use rustix::process::{Pid, Signal as ProcessSignal, kill_process};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::config_manager::ConfigManager;
use super::notify;
use super::shutdown::RelatedProcesses;
use super::upgrade::{
    ControlChannel, ControlCommand, HandoverError, Predecessor, ProcessSet, report_outcome,
};
use crate::gateway::ProcessState;

/// How long after another process has taken over the service manager may not have heard of it.
const STOP_FORWARDING_WINDOW: Duration = Duration::from_secs(1);

/// Waits for whatever ends this process.
pub(super) struct SignalHandler {
    pub(super) process: Arc<ProcessState>,
    pub(super) drain_delay: Duration,
    /// `None`: nobody can take over.
    pub(super) predecessor: Option<Predecessor>,
    pub(super) control_commands: Mutex<mpsc::Receiver<ControlCommand>>,
    pub(super) background: Handle,
    pub(super) related_processes: Arc<RelatedProcesses>,
}

#[async_trait]
impl ShutdownSignalWatch for SignalHandler {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt), Ok(mut quit), Ok(mut upgrade), Ok(mut stop_first)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
            signal(SignalKind::quit()),
            signal(SignalKind::user_defined2()),
            signal(SignalKind::user_defined1()),
        ) else {
            warn!("signals cannot be watched");
            return std::future::pending().await;
        };
        let mut control_commands = self.control_commands.lock().await;
        loop {
            let command = tokio::select! {
                _ = terminate.recv() => return self.begin_stop(&mut interrupt).await,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                _ = stop_first.recv() => {
                    self.related_processes.ignores_earlier_processes.store(true, Ordering::Release);
                    return self.begin_stop(&mut interrupt).await;
                }
                _ = upgrade.recv() => None,
                _ = quit.recv() => {
                    warn!("SIGQUIT is ignored: nobody waits for the sockets; aoai-lb upgrade has a new process take over");
                    continue;
                }
                Some(command) = control_commands.recv() => Some(command),
            };
            let Some(predecessor) = &self.predecessor else {
                warn!("SIGUSR2 is ignored: this process was not started with a file");
                continue;
            };
            let mut requester = None;
            let outcome = tokio::select! {
                outcome = perform_handover(predecessor, command, &mut requester, &mut control_commands) => outcome,
                _ = terminate.recv() => return self.begin_stop(&mut interrupt).await,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
            };
            let has_handed_over = outcome.is_ok();
            self.process.is_draining_connections.fetch_or(has_handed_over, Ordering::AcqRel);
            if has_handed_over {
                let (process, related_processes) =
                    (Arc::clone(&self.process), Arc::clone(&self.related_processes));
                self.background.spawn(forward_stop_to_successor(
                    requester,
                    outcome,
                    terminate,
                    process,
                    related_processes,
                ));
                return ShutdownSignal::GracefulUpgrade;
            }
            self.background.spawn(report_outcome(requester, outcome));
        }
    }
}

impl SignalHandler {
    async fn begin_stop(&self, interrupt: &mut Signal) -> ShutdownSignal {
        self.process.is_stopping.store(true, Ordering::Release);
        self.process.is_draining_connections.store(true, Ordering::Release);
        notify::notify_stopping();
        info!("stopping: not ready any more, listening for another {:?}", self.drain_delay);
        tokio::select! {
            () = tokio::time::sleep(self.drain_delay) => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
        }
    }
}

/// Sees to it that a stop that comes while another process takes over reaches that one: the service
/// manager has told the one that it knew, and waits for its end.
async fn forward_stop_to_successor(
    requester: Option<ControlChannel>,
    outcome: Result<ControlChannel, HandoverError>,
    mut terminate: Signal,
    process: Arc<ProcessState>,
    related_processes: Arc<RelatedProcesses>,
) {
    let Some(pid) = report_outcome(requester, outcome).await else { return };
    if timeout(STOP_FORWARDING_WINDOW, terminate.recv()).await.is_err() {
        return;
    }
    info!("stopping process {pid}, which has just taken over, as well");
    let successor = ProcessSet::from_pids(&[pid]);
    let raw_pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if raw_pid.is_some_and(|pid| kill_process(pid, ProcessSignal::USR1).is_ok())
        && related_processes.stopped_successor.set(successor).is_ok()
    {
        process.is_stopping.store(true, Ordering::Release);
    }
}

async fn perform_handover(
    predecessor: &Predecessor,
    command: Option<ControlCommand>,
    requester: &mut Option<ControlChannel>,
    control_commands: &mut mpsc::Receiver<ControlCommand>,
) -> Result<ControlChannel, HandoverError> {
    match command {
        Some(ControlCommand::TakeOver { channel, .. }) => {
            return predecessor.hand_over(channel, requester).await;
        }
        Some(ControlCommand::Upgrade(channel)) => *requester = Some(channel),
        None => {}
    }
    predecessor.start_successor(requester, control_commands).await
}

/// SIGHUP reads the file again and begins a new file of records, so that what rotates files by name
/// gets along.
pub(super) async fn reload_on_sighup(config_manager: Arc<ConfigManager>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(problem) => return warn!("SIGHUP is not listened to: {problem}"),
    };
    while hangup.recv().await.is_some() {
        let process = config_manager.process();
        process.recorder.request_jsonl_rotation();
        if process.is_draining_connections.load(Ordering::Acquire) {
            continue;
        }
        notify::notify_reloading();
        // It is logged there.
        let _ = config_manager.reload().await;
        notify::notify_ready(&config_manager);
    }
}
