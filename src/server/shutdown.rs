//! The end of the process: it exits as soon as its requests are finished and its WebSockets are closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use log::info;
use pingora::server::ExecutionPhase;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast;

use super::upgrade::ProcessSet;
use crate::gateway::{OpenSockets, ProcessState};
use crate::proxy::client::timeouts::{HANDOVER_LINGER, SHUTDOWN_LINGER};

/// How often [`exit_when_drained`] looks.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long WebSockets that have been told to close may take to write their last event and their close frame.
const SOCKET_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the successor may take to read what this process has told it of limits.
const KEEPER_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long before the end of the grace period the WebSockets that are left are told that the process ends.
/// Pingora cancels all tasks at the end.
const SOCKET_END_NOTICE: Duration = Duration::from_secs(1);

/// How long a successor that is not needed any more is waited for.
const ABANDONED_SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// A successor that was still preparing when this process had to stop. It has got SIGTERM; for a while it is waited
    /// for, as the predecessors are.
    pub(super) abandoned_successor: OnceLock<ProcessSet>,
}

impl RelatedProcesses {
    pub(super) fn new(earlier_processes: Arc<ProcessSet>) -> Self {
        Self { earlier_processes, ..Self::default() }
    }

    fn allow_own_exit(&self, is_stopping: bool, stopping_for: Duration) -> bool {
        if let Some(abandoned) = self.abandoned_successor.get()
            && stopping_for < ABANDONED_SUCCESSOR_TIMEOUT
            && !abandoned.running_pids().is_empty()
        {
            return false;
        }
        if let Some(successor) = self.successor_told_to_stop.get() {
            return successor.running_pids().is_empty();
        }
        let waits_for_earlier = is_stopping && !self.exits_before_earlier_processes.load(Ordering::Acquire);
        !waits_for_earlier || self.earlier_processes.running_pids().is_empty()
    }
}

/// Waits for Responses WebSockets, which are closed between two turns and are then no request in flight.
#[derive(Debug, Default)]
struct SocketWait {
    /// Since when no request is in flight and the sockets know that they are to close.
    since: Option<Instant>,
}

impl SocketWait {
    fn allows_exit(&mut self, sockets: &OpenSockets, has_requests: bool, now: Instant) -> bool {
        if has_requests || !sockets.is_closing() {
            self.since = None;
            return !has_requests && sockets.count() == 0;
        }
        let since = *self.since.get_or_insert(now);
        sockets.count() == 0 || now.saturating_duration_since(since) >= SOCKET_CLOSE_TIMEOUT
    }
}

/// How long after its start the grace period has come so far that the WebSockets that are left are told.
fn socket_end_delay(grace_period: Duration) -> Duration {
    grace_period - SOCKET_END_NOTICE.min(grace_period / 10)
}

/// Exits the process as soon as its requests are finished. Pingora would sleep for the whole grace
/// period.
pub(super) fn exit_when_drained(
    mut phases: broadcast::Receiver<ExecutionPhase>,
    process: &Arc<ProcessState>,
    related_processes: &RelatedProcesses,
    grace_period: Duration,
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
    let listeners_closed_at = Instant::now();
    let is_stopping = process.is_stopping.load(Ordering::Acquire);
    // Idle connections are kept for a moment, because a client may have sent a request before it saw that its
    // connection ends.
    let linger = if is_stopping { SHUTDOWN_LINGER } else { HANDOVER_LINGER };
    let mut socket_wait = SocketWait::default();
    let mut idle_polls = 0;
    // Twice in a row: a request whose head has just been read may not be counted yet.
    while idle_polls < 2 {
        std::thread::sleep(DRAIN_POLL_INTERVAL);
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(listeners_closed_at);
        // Not while this process accepts connections, and not before the successor serves: their clients connect
        // again at once.
        if is_stopping || process.is_handover_over.load(Ordering::Acquire) {
            process.open_sockets.begin_closing();
        }
        if elapsed >= socket_end_delay(grace_period) {
            process.open_sockets.begin_ending();
        }
        let has_requests = process.requests_in_flight.load(Ordering::Acquire) > 0;
        // A successor of this process knows the requests of a predecessor by what this one tells.
        let keeps_limits = !is_stopping && process.limits_kept_for.load(Ordering::Acquire) > 0;
        let is_idle = socket_wait.allows_exit(&process.open_sockets, has_requests, now)
            && elapsed >= linger
            && !keeps_limits
            && related_processes.allow_own_exit(is_stopping, elapsed);
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
    process.leave_instances();
    process.drains.save_pending(&process.health_registry, Instant::now());
    process.homes_keeper.close();
    process.recorder.shut_down();
    // After the last records, with which limits are settled.
    process.unfinished_objects.close();
    process.budgets.close();
    process.costs.close();
    process.rates_keeper.close(&process.client_accounts, Instant::now());
    if let Some(reporter) = process.limit_reporter.get() {
        reporter.close();
    }
    if let Some(keeper) = process.client_accounts.keeper() {
        keeper.flush(KEEPER_FLUSH_TIMEOUT);
    }
    info!("stopped with {} requests in flight", process.requests_in_flight.load(Ordering::Acquire));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_waits_for_sockets_to_close_and_five_seconds_at_most() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let sockets = OpenSockets::default();
        let (socket, other) = (sockets.register(), sockets.register());
        let mut wait = SocketWait::default();
        // The successor does not serve yet.
        assert!(!wait.allows_exit(&sockets, false, start));
        sockets.begin_closing();
        assert!(!wait.allows_exit(&sockets, false, start + 20 * second));
        // A turn, after which the socket has its time again.
        assert!(!wait.allows_exit(&sockets, true, start + 24 * second));
        assert!(!wait.allows_exit(&sockets, true, start + 40 * second));
        assert!(!wait.allows_exit(&sockets, false, start + 41 * second));
        assert!(!wait.allows_exit(&sockets, false, start + 45 * second));
        assert!(wait.allows_exit(&sockets, false, start + 46 * second));
        drop((socket, other));
        assert!(wait.allows_exit(&sockets, false, start + 41 * second));
        assert!(!wait.allows_exit(&sockets, true, start + 50 * second));
    }

    #[test]
    fn without_sockets_only_requests_keep_the_process() {
        let (sockets, now) = (OpenSockets::default(), Instant::now());
        let _session = sockets.register_realtime();
        let mut wait = SocketWait::default();
        for begin in [|_: &OpenSockets| {}, OpenSockets::begin_closing] {
            begin(&sockets);
            assert!(wait.allows_exit(&sockets, false, now) && !wait.allows_exit(&sockets, true, now));
        }
    }

    #[test]
    fn sockets_are_told_just_before_the_grace_period_ends() {
        for (grace_period, expected) in [(0, 0), (2_000, 1_800), (10_000, 9_000), (600_000, 599_000)] {
            let delay = socket_end_delay(Duration::from_millis(grace_period));
            assert_eq!(delay, Duration::from_millis(expected), "{grace_period}");
        }
    }
}
