//! What the service manager is told (sd_notify(3)); nothing where there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use log::{debug, error};
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::config_manager::ConfigManager;
use super::listeners::ListenerRuntime;
use crate::gateway::ProcessState;

/// How often the one line of `systemctl status` is made anew.
const STATUS_LINE_INTERVAL: Duration = Duration::from_secs(5);

fn send_to_service_manager(states: &[NotifyState<'_>]) {
    if let Err(problem) = sd_notify::notify(states) {
        debug!("the service manager is not told: {problem}");
    }
}

/// This process serves, and is the one to supervise.
pub(super) fn notify_ready(config_manager: &ConfigManager) {
    let status = status_line(config_manager);
    send_to_service_manager(&[
        NotifyState::Ready,
        NotifyState::MainPid(std::process::id()),
        NotifyState::Status(&status),
    ]);
}

/// A reload begins; [`notify_ready`] ends it.
pub(super) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send_to_service_manager(&[NotifyState::Reloading, now]),
        Err(_) => send_to_service_manager(&[NotifyState::Reloading]),
    }
}

/// A stop begins.
pub(super) fn notify_stopping() {
    send_to_service_manager(&[NotifyState::Stopping, NotifyState::Status("finishing what is in flight")]);
}

/// Keeps `systemctl status` true until another process is supervised, or a stop begins.
pub(super) async fn update_status_line(config_manager: Arc<ConfigManager>) {
    let mut ticks = interval(STATUS_LINE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut last_sent = String::new();
    while !config_manager.process().is_draining_connections.load(Ordering::Acquire) {
        let status = status_line(&config_manager);
        if status != last_sent {
            send_to_service_manager(&[NotifyState::Status(&status)]);
            last_sent = status;
        }
        ticks.tick().await;
    }
}

/// Says that this process is alive for as long as everything that serves still gets its turn. A
/// successor says so by itself.
pub(super) async fn ping_watchdog(process: Arc<ProcessState>, listener_runtimes: Vec<ListenerRuntime>) {
    let Some(watchdog_timeout) = sd_notify::watchdog_enabled() else { return };
    let watchdog_interval = watchdog_timeout / 3;
    let mut ticks = interval(watchdog_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if process.is_draining_connections.load(Ordering::Acquire)
            && !process.is_stopping.load(Ordering::Acquire)
        {
            return;
        }
        let mut all_respond = true;
        for runtime in listener_runtimes.iter().filter_map(|runtime| runtime.get()) {
            all_respond &= timeout(watchdog_interval, runtime.spawn(async {})).await.is_ok();
        }
        if all_respond {
            send_to_service_manager(&[NotifyState::Watchdog]);
        } else {
            error!("a listener does not get its turn any more; the watchdog is not told");
        }
    }
}

fn status_line(config_manager: &ConfigManager) -> String {
    let active_config = config_manager.active_config().load();
    let (backends, now) = (&active_config.gateway.backends, Instant::now());
    let unavailable: Vec<String> = backends
        .iter()
        .filter_map(|backend| {
            let outage = backend.current_outage(now)?;
            Some(format!("{} ({})", backend.config.name, outage.unavailable.reason.as_str()))
        })
        .collect();
    let config_status = config_manager.status().load();
    let mut text = format!("configuration {}; backends: {}", config_status.version, backends.len());
    if !unavailable.is_empty() {
        text += &format!(", of which rest: {}", unavailable.join(", "));
    }
    if config_status.reload_error.is_some() {
        text += "; the last reload was refused";
    }
    text
}
