//! The end of the process: it exits as soon as what is in flight is finished.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use log::info;
use pingora::server::ExecutionPhase;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast;

use super::upgrade::ProcessSet;
use crate::gateway::ProcessState;
use crate::proxy::client::timeouts::{HANDOVER_LINGER, STOP_LINGER};

/// How often a process that ends looks whether it is done.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The processes before and after this one.
#[derive(Debug, Default)]
pub(super) struct RelatedProcesses {
    /// Those before it that finish what they have begun. A stop waits for them: the service manager
    /// ends everything with the process that it supervises.
    earlier_processes: Arc<ProcessSet>,
    /// They are not waited for.
    pub(super) ignores_earlier_processes: AtomicBool,
    /// The one after it that was stopped on this one's behalf, and has to be waited for.
    pub(super) stopped_successor: OnceLock<ProcessSet>,
}

impl RelatedProcesses {
    pub(super) fn new(earlier_processes: Arc<ProcessSet>) -> Self {
        Self { earlier_processes, ..Self::default() }
    }

    fn may_exit(&self, is_stopping: bool) -> bool {
        if let Some(successor) = self.stopped_successor.get() {
            return successor.running_pids().is_empty();
        }
        let waits_for_earlier = is_stopping && !self.ignores_earlier_processes.load(Ordering::Acquire);
        !waits_for_earlier || self.earlier_processes.running_pids().is_empty()
    }
}

/// Ends the process as soon as it may: the engine would sleep through the whole grace period.
pub(super) fn exit_when_drained(
    mut phases: broadcast::Receiver<ExecutionPhase>,
    process: &Arc<ProcessState>,
    related_processes: &RelatedProcesses,
) {
    // Registered before the listeners close: a SIGINT that follows at once must not be lost.
    let interrupt = listen_for_sigint();
    loop {
        match phases.blocking_recv() {
            Ok(ExecutionPhase::GracefulTerminate | ExecutionPhase::ShutdownGracePeriod) => break,
            Err(broadcast::error::RecvError::Closed) => return,
            _ => {}
        }
    }
    if let Some((runtime, mut interrupt)) = interrupt {
        let interrupted_process = Arc::clone(process);
        std::thread::spawn(move || {
            runtime.block_on(interrupt.recv());
            exit_process(&interrupted_process, 0);
        });
    }
    // The listeners close now; connections linger for a moment.
    let is_stopping = process.is_stopping.load(Ordering::Acquire);
    std::thread::sleep(if is_stopping { STOP_LINGER } else { HANDOVER_LINGER });
    let mut idle_polls = 0;
    // Two looks in a row: a request whose head was just read may not be counted yet.
    while idle_polls < 2 {
        std::thread::sleep(DRAIN_POLL_INTERVAL);
        let is_idle = process.requests_in_flight.load(Ordering::Acquire) == 0
            && related_processes.may_exit(is_stopping);
        idle_polls = if is_idle { idle_polls + 1 } else { 0 };
    }
    exit_process(process, 0);
}

/// SIGINT, which ends a stopping process at once although requests are in flight, with the runtime that
/// waits for it.
fn listen_for_sigint() -> Option<(Runtime, Signal)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let interrupt = runtime.block_on(async { signal(SignalKind::interrupt()) }).ok()?;
    Some((runtime, interrupt))
}

/// The end.
pub(super) fn exit_process(process: &ProcessState, code: i32) -> ! {
    close_recorder(process);
    std::process::exit(code)
}

/// Writes what is to be written.
pub(super) fn close_recorder(process: &ProcessState) {
    process.recorder.shut_down();
    info!("stopped with {} requests in flight", process.requests_in_flight.load(Ordering::Acquire));
}
