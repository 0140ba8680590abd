//! Handles signals and the commands of the control socket. `shutdown.rs` ends the process.
//!
//! - SIGTERM stops: readiness fails, listeners close after `server.drain_delay`, requests in flight
//!   finish.
//! - SIGINT exits at once.
//! - SIGUSR2 upgrades: a new process takes over, and this one finishes its requests.
//! - SIGHUP reloads the configuration and rotates the record file.
//! - SIGUSR1 opens the record file again, after logrotate has renamed it.
//!
//! A predecessor passes a late stop on through the control socket and waits for this process; with SIGTERM this
//! process would wait for its predecessors.

use std::path::{Path, PathBuf};
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
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::config_manager::ConfigManager;
use super::notify;
use super::shutdown::RelatedProcesses;
use super::upgrade::{
    ControlChannel, ControlCommand, HandoverError, PredecessorRole, ProcessSet, accept_stop, report_budgets,
    report_costs, report_homes, report_objects, tell_successor_to_stop, wait_for_serving_and_report,
};
use crate::gateway::ProcessState;
use crate::gateway::unfinished_objects::ObjectReport;
use crate::state::budget_log::BudgetEntry;
use crate::system_error::describe;

/// How long after a handover the service manager may still send a stop to this process, because it has
/// not yet processed the `MAINPID` of the successor.
const STOP_FORWARDING_WINDOW: Duration = Duration::from_secs(1);

/// Waits for the signal or command that ends this process.
pub(super) struct SignalHandler {
    pub(super) process_state: Arc<ProcessState>,
    pub(super) drain_delay: Duration,
    /// `None` if this process cannot be upgraded.
    pub(super) predecessor_role: Option<PredecessorRole>,
    pub(super) command_receiver: Mutex<mpsc::Receiver<ControlCommand>>,
    pub(super) background_runtime: Handle,
    pub(super) related_processes: Arc<RelatedProcesses>,
}

/// What asks for an upgrade.
enum UpgradeTrigger {
    Signal,
    /// `aoai-lb upgrade`; progress and result go to the channel.
    Requester(ControlChannel),
    /// A process that introduces itself as the successor.
    Successor(ControlChannel),
}

#[async_trait]
impl ShutdownSignalWatch for SignalHandler {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt), Ok(mut quit), Ok(mut upgrade)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
            signal(SignalKind::quit()),
            signal(SignalKind::user_defined2()),
        ) else {
            warn!("cannot install the signal handlers");
            return std::future::pending().await;
        };
        let mut control_commands = self.command_receiver.lock().await;
        loop {
            let trigger = tokio::select! {
                _ = terminate.recv() => return self.announce_stop_and_wait(&mut interrupt).await,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                _ = upgrade.recv() => UpgradeTrigger::Signal,
                _ = quit.recv() => {
                    // Pingora's own upgrade signal. It would end this process although no successor
                    // waits for the sockets.
                    warn!("SIGQUIT is ignored; `aoai-lb upgrade` or SIGUSR2 upgrades this process");
                    continue;
                }
                Some(command) = control_commands.recv() => match command {
                    ControlCommand::Stop(channel) => {
                        self.related_processes.exits_before_earlier_processes.store(true, Ordering::Release);
                        self.background_runtime.spawn(accept_stop(channel));
                        return self.announce_stop_and_wait(&mut interrupt).await;
                    }
                    ControlCommand::Upgrade(channel) => UpgradeTrigger::Requester(channel),
                    ControlCommand::HandOver { channel, .. } => UpgradeTrigger::Successor(channel),
                },
            };
            let Some(predecessor) = &self.predecessor_role else {
                warn!("SIGUSR2 is ignored: this process was started without a configuration file");
                continue;
            };
            let mut requester = None;
            let outcome = tokio::select! {
                outcome = prepare_handover(predecessor, trigger, &mut requester, &mut control_commands) => outcome,
                _ = terminate.recv() => {
                    if let Some(pid) = predecessor.started_pid() {
                        self.abandon_successor(pid);
                    }
                    return self.announce_stop_and_wait(&mut interrupt).await;
                }
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
            };
            let has_handed_over = outcome.is_ok();
            // Before the sockets are sent: clients on open connections move to the successor.
            self.process_state.is_draining_connections.fetch_or(has_handed_over, Ordering::AcqRel);
            if has_handed_over {
                self.hand_over_limits();
                self.release_state(&predecessor.upgrade_socket_path).await;
                let (process, related_processes) =
                    (Arc::clone(&self.process_state), Arc::clone(&self.related_processes));
                self.background_runtime.spawn(report_and_forward_late_stop(
                    requester,
                    outcome,
                    terminate,
                    predecessor.upgrade_socket_path.clone(),
                    process,
                    related_processes,
                ));
                return ShutdownSignal::GracefulUpgrade;
            }
            predecessor.forget_started_pid();
            self.process_state.drains.cancel_handover();
            self.process_state.client_accounts.cancel_handover();
            self.process_state.unfinished_objects.cancel_handover();
            self.background_runtime.spawn(wait_for_serving_and_report(requester, outcome));
        }
    }
}

impl SignalHandler {
    /// Before the successor accepts requests: from now on it decides which ones are within limits.
    fn hand_over_limits(&self) {
        let accounts = &self.process_state.client_accounts;
        if !accounts.begin_asking() && !accounts.is_empty() {
            info!(
                "upgrade: the new process does not keep limits for this one: what this one still admits counts here only"
            );
        }
    }

    /// Gives the state directory up for the successor.
    async fn release_state(&self, upgrade_socket_path: &Path) {
        let process = Arc::clone(&self.process_state);
        let homes_path = upgrade_socket_path.to_owned();
        let budgets_path = homes_path.clone();
        let report_homes = Box::new(move |homes: &[u8]| report_homes(&homes_path, homes));
        let costs_path = upgrade_socket_path.to_owned();
        let report_budgets =
            Box::new(move |additions: &[BudgetEntry]| report_budgets(&budgets_path, additions));
        let report_costs = Box::new(move |additions: &[BudgetEntry]| report_costs(&costs_path, additions));
        let objects_path = upgrade_socket_path.to_owned();
        let report_objects = Box::new(move |report: &ObjectReport| report_objects(&objects_path, report));
        // It may wait for a file that is being written.
        let release =
            move || process.release_state(report_homes, report_budgets, report_costs, report_objects);
        let _ = spawn_blocking(release).await;
    }

    /// Ends a successor that does not serve yet, and has the exit of this process wait for that.
    fn abandon_successor(&self, pid: u32) {
        let _ = self.related_processes.abandoned_successor.set(ProcessSet::from_pids(&[pid]));
        // It may be waiting for an answer of this process.
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, ProcessSignal::TERM);
        }
    }

    /// Makes readiness probes fail, and waits for the drain delay.
    async fn announce_stop_and_wait(&self, interrupt: &mut Signal) -> ShutdownSignal {
        self.process_state.is_stopping.store(true, Ordering::Release);
        self.process_state.is_draining_connections.store(true, Ordering::Release);
        notify::notify_stopping();
        info!(
            "stopping: readiness probes fail from now on, listeners close in {}",
            humantime::format_duration(self.drain_delay)
        );
        tokio::select! {
            () = tokio::time::sleep(self.drain_delay) => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
        }
    }
}

/// Forwards a stop that arrives just after the handover to the successor. The service manager has sent
/// it to the main process that it knew, and waits for the exit of that one.
async fn report_and_forward_late_stop(
    requester: Option<ControlChannel>,
    outcome: Result<ControlChannel, HandoverError>,
    mut terminate: Signal,
    upgrade_socket_path: PathBuf,
    process: Arc<ProcessState>,
    related_processes: Arc<RelatedProcesses>,
) {
    let serving_pid = wait_for_serving_and_report(requester, outcome).await;
    // Without a successor that serves they have to close as well, because this process ends.
    process.is_handover_over.store(true, Ordering::Release);
    let Some(pid) = serving_pid else { return };
    if timeout(STOP_FORWARDING_WINDOW, terminate.recv()).await.is_err() {
        return;
    }
    info!("forwarding the stop to process {pid}, which has just taken over");
    let successor = ProcessSet::from_pids(&[pid]);
    match tell_successor_to_stop(&upgrade_socket_path).await {
        Ok(()) if related_processes.successor_told_to_stop.set(successor).is_ok() => {
            process.is_stopping.store(true, Ordering::Release);
        }
        Ok(()) => {}
        Err(error) => {
            // It waits for this process then, which must not wait for it.
            warn!("process {pid} does not accept the stop ({error}): it is sent SIGTERM");
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, ProcessSignal::TERM);
            }
        }
    }
}

/// Hands over to a process that introduced itself, or starts one.
async fn prepare_handover(
    predecessor: &PredecessorRole,
    trigger: UpgradeTrigger,
    requester: &mut Option<ControlChannel>,
    control_commands: &mut mpsc::Receiver<ControlCommand>,
) -> Result<ControlChannel, HandoverError> {
    match trigger {
        UpgradeTrigger::Successor(channel) => {
            return predecessor.prepare_socket_handover(channel, requester).await;
        }
        UpgradeTrigger::Requester(channel) => *requester = Some(channel),
        UpgradeTrigger::Signal => {}
    }
    predecessor.start_and_prepare_successor(requester, control_commands).await
}

/// Handles SIGHUP: reloads the configuration and starts a new record file, so that logrotate works.
pub(super) async fn reload_on_sighup(config_manager: Arc<ConfigManager>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return warn!("cannot handle SIGHUP: {}", describe(&error)),
    };
    while hangup.recv().await.is_some() {
        let process = config_manager.process_state();
        process.recorder.request_jsonl_rotation();
        if process.is_draining_connections.load(Ordering::Acquire) {
            // No new requests arrive, and `READY=1` would name this process as the main process.
            continue;
        }
        notify::notify_reloading();
        // `reload` logs its result.
        let _ = config_manager.reload().await;
        notify::notify_ready(&config_manager);
    }
}

/// Handles SIGUSR1: opens the record file again, which logrotate has renamed.
pub(super) async fn reopen_record_file_on_sigusr1(mut reopen: Signal, process: Arc<ProcessState>) {
    while reopen.recv().await.is_some() {
        if process.recorder.request_jsonl_reopening() {
            info!("SIGUSR1: the record file is opened again");
        } else {
            info!("SIGUSR1 is ignored: there is no record file");
        }
    }
}
