//! The end of the process: it exits as soon as its requests are finished.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use log::info;
use pingora::server::ExecutionPhase;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast;

use super::upgrade::ProcessSet;
use crate::gateway::ProcessState;
use crate::proxy::client::timeouts::{HANDOVER_LINGER, SHUTDOWN_LINGER};

/// How often [`exit_when_drained`] looks.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The processes before and after this one, for which its exit may have to wait.
#[derive(Debug, Default)]
pub(super) struct RelatedProcesses {
    /// Predecessors that still finish their requests. A stop waits for them, because systemd kills
    /// all processes of a service when its main process exits.
    earlier_processes: Arc<ProcessSet>,
    /// Set if a predecessor passed a stop on and waits for this process, so this one must not wait for it.
    pub(super) exits_before_earlier_processes: AtomicBool,
    /// The successor to which this process has forwarded a stop. It is waited for.
    pub(super) successor_told_to_stop: OnceLock<ProcessSet>,
}

impl RelatedProcesses {
    pub(super) fn new(earlier_processes: Arc<ProcessSet>) -> Self {
        Self { earlier_processes, ..Self::default() }
    }

    fn allow_own_exit(&self, is_stopping: bool) -> bool {
        if let Some(successor) = self.successor_told_to_stop.get() {
            return successor.running_pids().is_empty();
        }
        let waits_for_earlier = is_stopping && !self.exits_before_earlier_processes.load(Ordering::Acquire);
        !waits_for_earlier || self.earlier_processes.running_pids().is_empty()
    }
}

/// Exits the process as soon as its requests are finished. Pingora would sleep for the whole grace
/// period.
pub(super) fn exit_when_drained(
    mut phases: broadcast::Receiver<ExecutionPhase>,
    process: &Arc<ProcessState>,
    related_processes: &RelatedProcesses,
) {
    // Registered before the listeners close: a SIGINT that follows at once must not be lost.
    let interrupt = subscribe_to_sigint();
    loop {
        match phases.blocking_recv() {
            Ok(ExecutionPhase::GracefulTerminate | ExecutionPhase::ShutdownGracePeriod) => break,
            Err(broadcast::error::RecvError::Closed) => return,
            _ => {}
        }
    }
    if let Some((runtime, mut interrupt)) = interrupt {
        // Pingora calls the signal handler only once, so SIGINT is handled here from now on.
        let interrupted_process = Arc::clone(process);
        std::thread::spawn(move || {
            runtime.block_on(interrupt.recv());
            close_recorder_and_exit(&interrupted_process, 0);
        });
    }
    // The listeners are closed. Idle connections are kept for a moment, because a client may have
    // sent a request before it saw that its connection ends.
    let is_stopping = process.is_stopping.load(Ordering::Acquire);
    std::thread::sleep(if is_stopping { SHUTDOWN_LINGER } else { HANDOVER_LINGER });
    let mut idle_polls = 0;
    // Twice in a row: a request whose head has just been read may not be counted yet.
    while idle_polls < 2 {
        std::thread::sleep(DRAIN_POLL_INTERVAL);
        let is_idle = process.requests_in_flight.load(Ordering::Acquire) == 0
            && related_processes.allow_own_exit(is_stopping);
        idle_polls = if is_idle { idle_polls + 1 } else { 0 };
    }
    close_recorder_and_exit(process, 0);
}

/// Subscribes to SIGINT, which ends a stopping process at once, even if requests are in flight. Returns it
/// with the runtime that waits for it.
fn subscribe_to_sigint() -> Option<(Runtime, Signal)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let interrupt = runtime.block_on(async { signal(SignalKind::interrupt()) }).ok()?;
    Some((runtime, interrupt))
}

/// Writes the remaining records and exits.
pub(super) fn close_recorder_and_exit(process: &ProcessState, code: i32) -> ! {
    close_recorder(process);
    std::process::exit(code)
}

/// Writes the remaining records and stops the recorder.
pub(super) fn close_recorder(process: &ProcessState) {
    process.drains.save_pending(&process.health_registry, Instant::now());
    process.homes_keeper.close();
    process.recorder.shut_down();
    info!("stopped with {} requests in flight", process.requests_in_flight.load(Ordering::Acquire));
}
