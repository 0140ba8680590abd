//! What signals, and wishes at the control socket, mean; and the end of a process.
//!
//! SIGTERM: readiness fails, listeners stay for a while, what is in flight is finished. SIGINT: now.
//! SIGUSR2: another process takes over, what is in flight is finished. SIGHUP: the file again.
//! SIGUSR1: as SIGTERM, from the process before this one, which waits for it and not the other way
//! round.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use log::{info, warn};
use pingora::server::{ExecutionPhase, ShutdownSignal, ShutdownSignalWatch};
use rustix::process::{Pid, Signal as ToSend, kill_process};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, broadcast, mpsc};
use tokio::time::timeout;

use super::notify;
use super::reload::Live;
use super::upgrade::{Channel, NotUpgraded, Predecessors, Running, Wish, report};
use crate::gateway::Process;
use crate::proxy::client::connection::{MOVING, STOPPING};

/// How long after another process has taken over the service manager may not have heard of it.
const LATE: Duration = Duration::from_secs(1);
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
    pub(super) company: Arc<Company>,
}

/// The processes before and after this one.
#[derive(Debug, Default)]
pub(super) struct Company {
    /// Those before it that finish what they have begun. A stop waits for them: the service manager
    /// ends everything with the process that it supervises.
    predecessors: Arc<Predecessors>,
    /// They are not waited for.
    goes_first: AtomicBool,
    /// The one after it that was stopped on this one's behalf, and has to be waited for.
    stopped: OnceLock<Predecessors>,
}

impl Company {
    pub(super) fn new(predecessors: Arc<Predecessors>) -> Self {
        Self { predecessors, ..Self::default() }
    }

    fn is_done(&self, is_stopping: bool) -> bool {
        if let Some(successor) = self.stopped.get() {
            return successor.pids().is_empty();
        }
        let waits = is_stopping && !self.goes_first.load(Ordering::Acquire);
        !waits || self.predecessors.pids().is_empty()
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt), Ok(mut quit), Ok(mut upgrade), Ok(mut first)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
            signal(SignalKind::quit()),
            signal(SignalKind::user_defined2()),
            signal(SignalKind::user_defined1()),
        ) else {
            warn!("signals cannot be watched");
            return std::future::pending().await;
        };
        let mut wishes = self.wishes.lock().await;
        loop {
            let wish = tokio::select! {
                _ = terminate.recv() => return self.stop(&mut interrupt).await,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                _ = first.recv() => {
                    self.company.goes_first.store(true, Ordering::Release);
                    return self.stop(&mut interrupt).await;
                }
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
            if is_taken_over {
                let (process, company) = (Arc::clone(&self.process), Arc::clone(&self.company));
                self.background.spawn(accompany(asker, outcome, terminate, process, company));
                return ShutdownSignal::GracefulUpgrade;
            }
            self.background.spawn(report(asker, outcome));
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

/// Sees to it that a stop that comes while another process takes over reaches that one: the service
/// manager has told the one that it knew, and waits for its end.
async fn accompany(
    asker: Option<Channel>,
    outcome: Result<Channel, NotUpgraded>,
    mut terminate: Signal,
    process: Arc<Process>,
    company: Arc<Company>,
) {
    let Some(pid) = report(asker, outcome).await else { return };
    if timeout(LATE, terminate.recv()).await.is_err() {
        return;
    }
    info!("stopping process {pid}, which has just taken over, as well");
    let successor = Predecessors::new(&[pid]);
    let to = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if to.is_some_and(|to| kill_process(to, ToSend::USR1).is_ok()) && company.stopped.set(successor).is_ok() {
        process.stopping.store(true, Ordering::Release);
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
    company: &Company,
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
        let is_done = process.in_flight.load(Ordering::Acquire) == 0 && company.is_done(is_stopping);
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
