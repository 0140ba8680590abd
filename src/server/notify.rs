//! What the service manager is told (sd_notify(3)); nothing where there is none.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use log::{debug, error};
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::reload::Live;
use crate::gateway::Process;

/// How often the one line of `systemctl status` is made anew.
const STATUS: Duration = Duration::from_secs(5);

/// The runtime that serves a listener, once it has served somebody.
pub(crate) type Served = Arc<OnceLock<Handle>>;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(problem) = sd_notify::notify(states) {
        debug!("the service manager is not told: {problem}");
    }
}

/// This process serves, and is the one to supervise.
pub(super) fn ready(live: &Live) {
    let status = status(live);
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id()), NotifyState::Status(&status)]);
}

/// A reload begins; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// A stop begins.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing what is in flight")]);
}

/// Keeps `systemctl status` true until another process is supervised, or a stop begins.
pub(super) async fn keep_status(live: Arc<Live>) {
    let mut ticks = interval(STATUS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut told = String::new();
    while !live.process().leaving.load(Ordering::Acquire) {
        let now = status(&live);
        if now != told {
            tell(&[NotifyState::Status(&now)]);
            told = now;
        }
        ticks.tick().await;
    }
}

/// Says that this process is alive for as long as everything that serves still gets its turn. A
/// successor says so by itself.
pub(super) async fn keep_watchdog(process: Arc<Process>, serving: Vec<Served>) {
    let Some(every) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = interval(every / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if process.leaving.load(Ordering::Acquire) && !process.stopping.load(Ordering::Acquire) {
            return;
        }
        let mut alive = true;
        for runtime in serving.iter().filter_map(|serves| serves.get()) {
            alive &= timeout(every / 3, runtime.spawn(async {})).await.is_ok();
        }
        if alive {
            tell(&[NotifyState::Watchdog]);
        } else {
            error!("a listener does not get its turn any more; the watchdog is not told");
        }
    }
}

fn status(live: &Live) -> String {
    let serving = live.serving.load();
    let (backends, now) = (&serving.gateway.backends, std::time::Instant::now());
    let resting: Vec<String> = backends
        .iter()
        .filter_map(|backend| {
            let incident = backend.resting(now)?;
            Some(format!("{} ({})", backend.config.name, incident.rest.reason.word()))
        })
        .collect();
    let told = live.told();
    let mut text = format!("configuration {}; backends: {}", told.version, backends.len());
    if !resting.is_empty() {
        text += &format!(", of which rest: {}", resting.join(", "));
    }
    if told.problem.is_some() {
        text += "; the last reload was refused";
    }
    text
}
