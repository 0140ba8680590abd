//! Notifies systemd of the state of the process (sd_notify(3)). Does nothing without systemd.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use log::{debug, error};
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::config_manager::ConfigManager;
use super::listeners::ListenerRuntimeHandle;
use crate::gateway::ProcessState;

/// How often the status line of `systemctl status` is updated.
const STATUS_LINE_INTERVAL: Duration = Duration::from_secs(5);

fn send_to_service_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("cannot notify the service manager: {error}");
    }
}

/// Reports that this process serves and is the main process of the service.
pub(super) fn notify_ready(config_manager: &ConfigManager) {
    let status = status_line(config_manager);
    send_to_service_manager(&[
        NotifyState::Ready,
        NotifyState::MainPid(std::process::id()),
        NotifyState::Status(&status),
    ]);
}

/// Reports that a reload starts; [`notify_ready`] reports its end.
pub(super) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send_to_service_manager(&[NotifyState::Reloading, now]),
        Err(_) => send_to_service_manager(&[NotifyState::Reloading]),
    }
}

/// Reports that a stop starts.
pub(super) fn notify_stopping() {
    send_to_service_manager(&[NotifyState::Stopping, NotifyState::Status("finishing requests in flight")]);
}

/// Updates the status line until a successor takes over or a stop starts.
pub(super) async fn update_status_line(config_manager: Arc<ConfigManager>) {
    let mut ticks = interval(STATUS_LINE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut last_sent = String::new();
    while !config_manager.process_state().is_draining_connections.load(Ordering::Acquire) {
        let status = status_line(&config_manager);
        if status != last_sent {
            send_to_service_manager(&[NotifyState::Status(&status)]);
            last_sent = status;
        }
        ticks.tick().await;
    }
}

/// Pings the watchdog for as long as the runtime of every listener responds. After a handover the
/// successor does it.
pub(super) async fn ping_watchdog(
    process: Arc<ProcessState>,
    watched_runtime_handles: Vec<ListenerRuntimeHandle>,
) {
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
        // A task that does not run in time means that the threads of the listener are blocked.
        for runtime in watched_runtime_handles.iter().filter_map(|runtime| runtime.get()) {
            all_respond &= timeout(watchdog_interval, runtime.spawn(async {})).await.is_ok();
        }
        if all_respond {
            send_to_service_manager(&[NotifyState::Watchdog]);
        } else {
            error!("the runtime of a listener does not respond; the systemd watchdog is not pinged");
        }
    }
}

/// The line that `systemctl status` shows.
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
    let config_status = config_manager.config_status().load();
    let mut text = format!("configuration {}; backends: {}", config_status.activation_number, backends.len());
    if !unavailable.is_empty() {
        text += &format!(", unavailable: {}", unavailable.join(", "));
    }
    let disabled = active_config.gateway.disabled_backends.len();
    if disabled > 0 {
        text += &format!(", disabled: {disabled}");
    }
    if config_status.last_reload_error.is_some() {
        text += "; the last reload failed";
    }
    text
}
