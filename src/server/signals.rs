//! What signals, and wishes at the control socket, mean; and the end of a process.
//!
//! SIGTERM: readiness fails, listeners stay for a while, what is in flight is finished. SIGINT: now.
//! SIGUSR2: another process takes over, what is in flight is finished. SIGHUP: the file again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use log::{info, warn};
use pingora::server::{ExecutionPhase, ShutdownSignal, ShutdownSignalWatch};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, broadcast, mpsc};

use super::notify;
use crate::gateway::Process;
use crate::proxy::guard::{MOVING, STOPPING};
use crate::reload::Live;
use crate::upgrade::{Channel, NotUpgraded, Predecessors, Running, Wish, report};

/// How often a process that ends looks whether it is done.
const LOOK: Duration = Duration::from_millis(10);

/// Waits for whatever ends this process.
pub(super) struct Signals {
    pub(super) process: Arc<Process>,
    pub(super) drain_delay: Duration,
    /// `None`: nobody can take over.
    pub(super) running: Option<Running>,
    pub(super) wishes: Mutex<mpsc::Receiver<Wish>>,
    pub(super) background: Handle,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt), Ok(mut quit), Ok(mut upgrade)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
            signal(SignalKind::quit()),
            signal(SignalKind::user_defined2()),
        ) else {
            warn!("signals cannot be watched");
            return std::future::pending().await;
        };
        let mut wishes = self.wishes.lock().await;
        loop {
            let wish = tokio::select! {
                _ = terminate.recv() => return self.stop(&mut interrupt).await,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                _ = upgrade.recv() => None,
                _ = quit.recv() => {
                    warn!("SIGQUIT is ignored: nobody waits for the sockets; aoai-lb upgrade has a new process take over");
                    continue;
                }
                Some(wish) = wishes.recv() => Some(wish),
            };
            let Some(running) = &self.running else {
                warn!("SIGUSR2 is ignored: this process was not started with a file");
                continue;
            };
            let mut asker = None;
            let outcome = tokio::select! {
                outcome = take_over(running, wish, &mut asker, &mut wishes) => outcome,
                _ = terminate.recv() => return self.stop(&mut interrupt).await,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
            };
            let is_taken_over = outcome.is_ok();
            self.process.leaving.fetch_or(is_taken_over, Ordering::AcqRel);
            self.background.spawn(report(asker, outcome));
            if is_taken_over {
                return ShutdownSignal::GracefulUpgrade;
            }
        }
    }
}

impl Signals {
    async fn stop(&self, interrupt: &mut Signal) -> ShutdownSignal {
        self.process.stopping.store(true, Ordering::Release);
        self.process.leaving.store(true, Ordering::Release);
        notify::stopping();
        info!("stopping: not ready any more, listening for another {:?}", self.drain_delay);
        tokio::select! {
            () = tokio::time::sleep(self.drain_delay) => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
        }
    }
}

async fn take_over(
    running: &Running,
    wish: Option<Wish>,
    asker: &mut Option<Channel>,
    wishes: &mut mpsc::Receiver<Wish>,
) -> Result<Channel, NotUpgraded> {
    match wish {
        Some(Wish::Succeed(channel, _)) => return running.hand_over(channel, asker).await,
        Some(Wish::Upgrade(channel)) => *asker = Some(channel),
        None => {}
    }
    running.upgrade(asker, wishes).await
}

/// SIGHUP reads the file again and begins a new file of records, so that what rotates files by name
/// gets along.
pub(super) async fn reload_on_hangup(live: Arc<Live>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(problem) => return warn!("SIGHUP is not listened to: {problem}"),
    };
    while hangup.recv().await.is_some() {
        let process = live.process();
        process.recorder.rotate();
        if process.leaving.load(Ordering::Acquire) {
            continue;
        }
        notify::reloading();
        // It is logged there.
        let _ = live.reload().await;
        notify::ready(&live);
    }
}

/// Ends the process as soon as it may: the engine would sleep through the whole grace period.
pub(super) fn end_when_done(
    mut phases: broadcast::Receiver<ExecutionPhase>,
    process: &Arc<Process>,
    predecessors: &Predecessors,
) {
    loop {
        match phases.blocking_recv() {
            Ok(ExecutionPhase::GracefulTerminate | ExecutionPhase::ShutdownGracePeriod) => break,
            Err(broadcast::error::RecvError::Closed) => return,
            _ => {}
        }
    }
    let interrupted = Arc::clone(process);
    std::thread::spawn(move || end_when_interrupted(&interrupted));
    // The listeners close now; connections linger for a moment.
    let is_stopping = process.stopping.load(Ordering::Acquire);
    std::thread::sleep(if is_stopping { STOPPING } else { MOVING });
    let mut quiet = 0;
    // Two looks in a row: a request whose head was just read may not be counted yet.
    while quiet < 2 {
        std::thread::sleep(LOOK);
        // The service manager ends everything with the process that it supervises.
        let is_done = process.in_flight.load(Ordering::Acquire) == 0
            && (!is_stopping || predecessors.pids().is_empty());
        quiet = if is_done { quiet + 1 } else { 0 };
    }
    end(process, 0);
}

/// Ends the process at once when it is asked to, although something is in flight.
fn end_when_interrupted(process: &Process) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        match signal(SignalKind::interrupt()) {
            Ok(mut interrupt) => interrupt.recv().await,
            Err(_) => std::future::pending().await,
        }
    });
    end(process, 0);
}

/// The end.
pub(super) fn end(process: &Process, code: i32) -> ! {
    finish(process);
    std::process::exit(code)
}

/// Writes what is to be written.
pub(super) fn finish(process: &Process) {
    process.recorder.close();
    info!("stopped with {} requests in flight", process.in_flight.load(Ordering::Acquire));
}
