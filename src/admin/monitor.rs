//! Looks at the whole once a second: derives its state (`routing/service_state.rs`), and logs what begins, goes on
//! and is over, so that an operator who reads only warnings understands an incident.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use log::{error, info, warn};
use tokio::time::{MissedTickBehavior, interval};

use super::conditions::{BackendReport, member_condition};
use super::config_status::ConfigStatus;
use super::status::expiry::certificate_statuses;
use crate::gateway::{Backend, PoolKey};
use crate::names::BackendName;
use crate::proxy::ActiveConfig;
use crate::routing::backend_health::DeploymentHealth;
use crate::routing::backend_state::BackendState;
use crate::routing::episodes::{EventEpisode, EventNews, StateEpisode, StateNews};
use crate::routing::pool::BackendPool;
use crate::routing::service_state::{
    RecentRequests, ServiceProblem, ServiceReport, ServiceState, ServiceStateTracker, StateChange,
    judge_backend, judge_pool, judge_requests,
};

/// How often the whole is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// The requests of so long ago still count.
const RECENT_REQUESTS: Duration = Duration::from_secs(30);

/// What is remembered from one look to the next.
pub struct ServiceMonitor {
    active_config: Arc<ArcSwap<ActiveConfig>>,
    config_status: Arc<ArcSwap<ConfigStatus>>,
    tracker: ServiceStateTracker,
    state_episodes: HashMap<BackendName, StateEpisode>,
    throttling_episodes: HashMap<(BackendName, String), ThrottlingEpisode>,
    failure_episode: EventEpisode,
    /// The counters of the last half minute, oldest first.
    samples: VecDeque<RequestCounters>,
}

/// The 429s of a deployment.
#[derive(Default)]
struct ThrottlingEpisode {
    episode: EventEpisode,
    attempts_at_report: u64,
}

/// Requests since the start of the process.
#[derive(Clone, Copy)]
struct RequestCounters {
    at: Instant,
    finished: u64,
    failed_by_backends: u64,
}

impl ServiceMonitor {
    /// The monitor of a process that starts now.
    pub fn new(
        active_config: Arc<ArcSwap<ActiveConfig>>,
        config_status: Arc<ArcSwap<ConfigStatus>>,
        now: Instant,
    ) -> Self {
        Self {
            active_config,
            config_status,
            tracker: ServiceStateTracker::new(now),
            state_episodes: HashMap::new(),
            throttling_episodes: HashMap::new(),
            failure_episode: EventEpisode::default(),
            samples: VecDeque::new(),
        }
    }

    /// Looks at the whole until this is dropped.
    pub async fn run(mut self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let config = self.active_config.load_full();
            // The successor looks at the whole, unless it gives up.
            if config.gateway.process_state.is_draining_connections.load(Ordering::Acquire) {
                continue;
            }
            let report = self.look(&config, Instant::now());
            config.gateway.process_state.service_report.store(Arc::new(report));
        }
    }

    /// Looks at the whole once.
    fn look(&mut self, config: &ActiveConfig, now: Instant) -> ServiceReport {
        let mut problems = Vec::new();
        let throttled = self.look_at_throttling(config, now);
        problems.extend(self.look_at_requests(config, now));
        let pools: Vec<_> = config
            .gateway
            .pools()
            .iter()
            .map(|(key, pool)| (pool_name(key), member_states(config, pool, now)))
            .collect();
        for (index, backend) in config.gateway.backends.iter().enumerate() {
            let report = BackendReport::new(config, index, backend, now);
            self.tell_state(backend, &report, now);
            let is_full = throttled.contains(&backend.config.name) && is_provisioned(backend);
            problems.extend(judge_backend(
                backend.config.name.as_str(),
                report.condition,
                report.reason.as_deref(),
                is_full,
                is_full && pools.iter().all(|(_, members)| has_alternative(members, index)),
            ));
        }
        self.state_episodes.retain(|name, _| is_configured(config, name));
        for (name, members) in &pools {
            let states: Vec<_> = members.iter().map(|(_, state)| *state).collect();
            problems.extend(judge_pool(name, &states));
        }
        problems.extend(self.look_at_process(config));
        problems.sort_by_key(|problem| Reverse(problem.state));
        let seen = problems.first().map_or(ServiceState::Healthy, |problem| problem.state);
        if let Some(change) = self.tracker.observe(seen, now) {
            tell_change(change, &problems);
        }
        ServiceReport { state: self.tracker.current(), since: Some(self.tracker.since()), problems }
    }

    /// The backends with a deployment that was throttled in the last minute.
    fn look_at_throttling(&mut self, config: &ActiveConfig, now: Instant) -> Vec<BackendName> {
        let mut throttled = Vec::new();
        for backend in &config.gateway.backends {
            let name = &backend.config.name;
            for (deployment, health) in backend.health.deployments() {
                let count = health.throttled_responses.load(Ordering::Relaxed);
                // Most are never throttled.
                if count == 0 {
                    continue;
                }
                let key = (name.clone(), deployment);
                let what = match key.1.as_str() {
                    "" => format!("backend {name}"),
                    deployment => format!("backend {name}, deployment '{deployment}'"),
                };
                let episode = self.throttling_episodes.entry(key).or_default();
                episode.tell(&what, &health, count, now);
                if episode.episode.is_current() && !throttled.contains(name) {
                    throttled.push(name.clone());
                }
            }
        }
        self.throttling_episodes.retain(|(name, _), _| is_configured(config, name));
        throttled
    }

    /// Counts the requests of the last half minute, and tells of those that failed because of backends.
    fn look_at_requests(&mut self, config: &ActiveConfig, now: Instant) -> Option<ServiceProblem> {
        let process = &config.gateway.process_state;
        let failures = &process.recorder.metrics().backend_failures;
        let current = RequestCounters {
            at: now,
            finished: process.requests_finished.load(Ordering::Relaxed) as u64,
            failed_by_backends: failures.count(),
        };
        let last_cause = failures.last();
        let cause = last_cause.as_deref().unwrap_or("unknown");
        match self.failure_episode.observe(current.failed_by_backends, now) {
            Some(EventNews::Began) => error!("requests fail because of backends: {cause}"),
            Some(EventNews::GoesOn { count }) => {
                error!("{count} more requests failed because of backends, the last: {cause}");
            }
            Some(EventNews::Over { count, lasted }) => {
                warn!("no request has failed for a minute; {count} had within {}", in_words(lasted));
            }
            None => {}
        }
        self.samples.push_back(current);
        while self
            .samples
            .front()
            .is_some_and(|oldest| now.saturating_duration_since(oldest.at) > RECENT_REQUESTS)
        {
            self.samples.pop_front();
        }
        let oldest = self.samples.front().copied().unwrap_or(current);
        let recent = RecentRequests {
            finished: current.finished.saturating_sub(oldest.finished),
            failed_by_backends: current.failed_by_backends.saturating_sub(oldest.failed_by_backends),
        };
        judge_requests(recent, last_cause.as_deref())
    }

    /// Tells of the state of a backend.
    fn tell_state(&mut self, backend: &Backend, report: &BackendReport, now: Instant) {
        let name = &backend.config.name;
        let episode = self.state_episodes.entry(name.clone()).or_default();
        match episode.observe(report.condition.state, now) {
            Some(StateNews::Is(state)) => {
                let reason = report.reason.as_deref().unwrap_or_default();
                error!("backend {name}: {}: {}", state.as_str(), reason.escape_default());
            }
            Some(StateNews::Over { lasted }) => {
                warn!(
                    "backend {name} is {} again, after {}",
                    report.condition.state.as_str(),
                    in_words(lasted)
                );
            }
            None => {}
        }
    }

    /// The problems of records and of the configuration.
    fn look_at_process(&self, config: &ActiveConfig) -> Vec<ServiceProblem> {
        let degraded = |subject: &str, text: String| ServiceProblem {
            state: ServiceState::Degraded,
            subject: subject.to_owned(),
            text,
        };
        let mut problems = Vec::new();
        let now = SystemTime::now();
        let process = &config.gateway.process_state;
        for sink in process.recorder.sinks() {
            let delivery = &sink.delivery;
            if delivery.failing_since.is_some() {
                let error = delivery.last_error.as_ref().map_or("unknown", |error| &error.message);
                problems.push(degraded(sink.name, format!("records are not delivered: {error}")));
            }
            match delivery.recently_dropped(now) {
                0 => {}
                dropped => problems.push(degraded(
                    sink.name,
                    format!("{dropped} records were dropped within the last quarter of an hour"),
                )),
            }
        }
        let certificates = certificate_statuses(&process.certificate_expiries, now);
        problems.extend(certificates.iter().filter(|certificate| certificate.expires_in_seconds < 0).map(
            |certificate| {
                let used_by = certificate.used_by.join(", ");
                degraded(&certificate.certificate, format!("the certificate has expired; used by {used_by}"))
            },
        ));
        for backend in &config.gateway.backends {
            if let Some(error) = backend.credential.secret().renewal_error() {
                let text = format!("its credential cannot be renewed: {error}");
                problems.push(degraded(backend.config.name.as_str(), text));
            }
        }
        if let Some(error) = &self.config_status.load().last_reload_error {
            problems.push(degraded("configuration", format!("the last reload failed: {error}")));
        }
        problems
    }
}

impl ThrottlingEpisode {
    /// Tells of the 429s of a deployment.
    fn tell(&mut self, what: &str, health: &DeploymentHealth, count: u64, now: Instant) {
        let attempts = health.headroom.attempts_sent();
        let sent = attempts.saturating_sub(self.attempts_at_report);
        let news = self.episode.observe(count, now);
        match news {
            Some(EventNews::Began) => warn!("{what}: throttled (429 or retry-after)"),
            Some(EventNews::GoesOn { count }) => {
                info!("{what}: throttled: {count} of {sent} attempts of the last minute");
            }
            Some(EventNews::Over { count, lasted }) => {
                warn!("{what}: no longer throttled: {count} responses within {}", in_words(lasted));
            }
            None => {}
        }
        if news.is_some() {
            self.attempts_at_report = attempts;
        }
    }
}

/// Tells of the state of the whole.
fn tell_change(change: StateChange, problems: &[ServiceProblem]) {
    let StateChange { from, to, lasted } = change;
    let (to_word, from_word, lasted) = (to.as_str(), from.as_str(), in_words(lasted));
    match problems.iter().find(|problem| problem.state == to) {
        Some(problem) => {
            let text = problem.text.escape_default();
            warn!("the service is {to_word}, after {lasted} {from_word}: {}: {text}", problem.subject);
        }
        None => warn!("the service is {to_word}, after {lasted} {from_word}"),
    }
}

fn is_configured(config: &ActiveConfig, name: &BackendName) -> bool {
    config.gateway.backends.iter().any(|backend| backend.config.name == *name)
}

/// Whether a backend has provisioned capacity: it is configured, or one of its deployments reports how much of it
/// is used.
fn is_provisioned(backend: &Backend) -> bool {
    backend.config.provisioned.is_some()
        || backend.health.deployments().iter().any(|(_, deployment)| {
            deployment.headroom.last_reported_capacity().provisioned_utilization.is_some()
        })
}

/// Whether a pool has another backend that serves, if this one is a member. The only backend of a pool has none to
/// spill over to: the default backend, for instance.
fn has_alternative(members: &[(usize, BackendState)], index: usize) -> bool {
    members.len() == 1
        || !members.iter().any(|(member, _)| *member == index)
        || members.iter().any(|(member, state)| *member != index && *state == BackendState::Healthy)
}

/// The members of a pool, by their index in the configuration, and their states.
fn member_states(config: &ActiveConfig, pool: &BackendPool, now: Instant) -> Vec<(usize, BackendState)> {
    let members = pool.candidates().iter().filter_map(|candidate| {
        let backend = config.gateway.backends.get(candidate.backend_index)?;
        Some((candidate.backend_index, member_condition(config, backend, candidate, now).state))
    });
    members.collect()
}

fn pool_name(key: &PoolKey) -> String {
    match key {
        PoolKey::Deployment(name) => format!("deployment {name}"),
        PoolKey::Unlisted => "deployments that no backend lists".to_owned(),
        PoolKey::DefaultBackend => "calls without a deployment".to_owned(),
    }
}

/// A duration as people write it: `45s`, `12m`, `3h 20m`.
fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) if minutes < 10 => format!("{minutes}m {}s", seconds % 60),
        (0, minutes, _) => format!("{minutes}m"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_as_exact_as_people_need_them() {
        let table =
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (754, "12m"), (3600, "1h 0m"), (12_000, "3h 20m")];
        for (seconds, expected) in table {
            assert_eq!(in_words(Duration::from_secs(seconds)), expected);
        }
    }
}
