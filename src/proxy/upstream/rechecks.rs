//! Finds out whether a backend that failed or rejected something works again while no request tries it: those of a
//! lower tier may get none for hours, and would be shown as broken, or as healthy, without anybody having seen it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pingora::connectors::http::Connector;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::probe::{ModelsAnswer, request_models};
use crate::gateway::Backend;
use crate::proxy::ActiveConfig;

/// How often each backend is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// A failing backend is asked after this long without attempts, and again after as long.
const RECOVERY_CHECK_AFTER: Duration = Duration::from_secs(30);

/// Adds the task that asks to these tasks.
pub fn spawn_rechecks(config: &Arc<ActiveConfig>, tasks: &mut JoinSet<()>) {
    tasks.spawn(recheck_backends(Arc::clone(config)));
}

/// The attempts on a backend when it was last looked at, and since when there are no more of them, or since when it
/// was last asked.
struct Quiet {
    attempts_started: u64,
    since: Instant,
}

async fn recheck_backends(config: Arc<ActiveConfig>) {
    let started = Instant::now();
    let quiet = |backend: &Backend| Quiet { attempts_started: attempts_started(backend), since: started };
    let mut backends: Vec<Quiet> = config.gateway.backends.iter().map(quiet).collect();
    let mut checks = JoinSet::new();
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        for ((index, backend), quiet) in config.gateway.backends.iter().enumerate().zip(&mut backends) {
            config.gateway.recheck_rejections(backend, now);
            if is_recovery_check_due(backend, quiet, now) {
                let config = Arc::clone(&config);
                checks.spawn(async move { check_recovery(&config, index).await });
            }
        }
        while checks.try_join_next().is_some() {}
    }
}

/// Whether to ask a backend now if it still fails, and if so takes this as asked. One with health probes of its own
/// gets those.
fn is_recovery_check_due(backend: &Backend, quiet: &mut Quiet, now: Instant) -> bool {
    let attempts_started = attempts_started(backend);
    if attempts_started != quiet.attempts_started {
        *quiet = Quiet { attempts_started, since: now };
    }
    let is_due = now.saturating_duration_since(quiet.since) >= RECOVERY_CHECK_AFTER
        && backend.config.health_probe_after_idle.is_none()
        && !backend.health.stall_watch.is_stalled()
        && backend.health.recent_attempts.failing_since(now).is_some();
    if is_due {
        quiet.since = now;
    }
    is_due
}

async fn check_recovery(config: &ActiveConfig, index: usize) {
    let Some(backend) = config.gateway.backends.get(index) else { return };
    let answer = request_models(config, index, &Connector::new(None)).await;
    let Some(ModelsAnswer { response, secret_id }) = answer else { return };
    let response = response.as_ref().map(|(status, body)| (*status, body.as_slice()));
    config.gateway.record_recovery_check(backend, response, secret_id, Instant::now());
}

fn attempts_started(backend: &Backend) -> u64 {
    backend.health.attempts_started.load(Ordering::Relaxed)
}
