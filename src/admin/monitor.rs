//! Looks at the whole once a second: derives its state (`routing/service_state.rs`), and logs what begins, goes on
//! and is over, so that an operator who reads only warnings understands an incident.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use log::{Level, error, info, log, warn};
use tokio::time::{MissedTickBehavior, interval};

use super::affinity_watch::AffinityWatch;
use super::budget_watch::budget_problem;
use super::conditions::{BackendReport, member_condition};
use super::config_status::ConfigStatus;
use super::status::expiry::certificate_statuses;
use crate::gateway::log_text::escape_for_log;
use crate::gateway::{Backend, PoolKey};
use crate::names::BackendName;
use crate::proxy::ActiveConfig;
use crate::routing::episodes::{EventEpisode, EventNews, StateEpisode, StateNews, duration_in_words};
use crate::routing::health::backend_health::DeploymentHealth;
use crate::routing::health::backend_state::BackendState;
use crate::routing::pool::BackendPool;
use crate::routing::service_state::{
    RecentRequests, ServiceProblem, ServiceReport, ServiceState, ServiceStateTracker, StateChange,
    judge_backend, judge_pool, judge_requests,
};

/// How often the whole is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// The requests of so long ago still count.
const RECENT_REQUESTS: Duration = Duration::from_secs(30);

/// So many further subjects are named in a line about the whole.
const MAX_LISTED_SUBJECTS: usize = 8;

/// What is remembered from one look to the next.
pub struct ServiceMonitor {
    active_config: Arc<ArcSwap<ActiveConfig>>,
    config_status: Arc<ArcSwap<ConfigStatus>>,
    tracker: ServiceStateTracker,
    service_episode: StateEpisode<ServiceState>,
    /// The problems when each state of the whole was last seen: it is told a few seconds later at times.
    problems_by_state: BTreeMap<ServiceState, Vec<ServiceProblem>>,
    told_service_state: ServiceState,
    state_episodes: HashMap<BackendName, StateEpisode<BackendState>>,
    throttling_episodes: HashMap<(BackendName, String), ThrottlingEpisode>,
    failure_episode: EventEpisode,
    affinity_watch: AffinityWatch,
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
            service_episode: StateEpisode::default(),
            problems_by_state: BTreeMap::new(),
            told_service_state: ServiceState::Healthy,
            state_episodes: HashMap::new(),
            throttling_episodes: HashMap::new(),
            failure_episode: EventEpisode::default(),
            affinity_watch: AffinityWatch::default(),
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
            let now = Instant::now();
            let process = &config.gateway.process_state;
            if process.are_rates_unsaved(now) {
                let process = Arc::clone(process);
                tokio::task::spawn_blocking(move || process.save_rates(now));
            }
            let report = self.look(&config, now);
            config.gateway.process_state.service_report.store(Arc::new(report));
        }
    }

    /// Looks at the whole once.
    fn look(&mut self, config: &ActiveConfig, now: Instant) -> ServiceReport {
        let mut problems = Vec::new();
        let throttled = self.look_at_throttling(config, now);
        let pools: Vec<_> = config
            .gateway
            .pools()
            .iter()
            .map(|(key, pool)| (pool_name(key), member_states(config, pool, now)))
            .collect();
        let reports = config
            .gateway
            .backends
            .iter()
            .enumerate()
            .map(|(index, backend)| (index, backend, BackendReport::new(config, index, backend, now)));
        let mut reports: Vec<_> = reports.collect();
        // Of problems that mean the same for the whole, the worst backend comes first.
        reports.sort_by_key(|(_, _, report)| Reverse(report.condition.state));
        for (index, backend, report) in reports {
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
        // After the backends, which are the cause.
        problems.extend(self.look_at_requests(config, now));
        for (name, members) in &pools {
            let states: Vec<_> = members.iter().map(|(_, state)| *state).collect();
            problems.extend(judge_pool(name, &states));
        }
        problems.extend(self.look_at_process(config));
        problems.extend(self.affinity_watch.look(&config.gateway, now));
        let budgets = &config.gateway.process_state.budgets;
        problems.extend(budget_problem(config.gateway.clients(), budgets.save_problem()));
        problems.sort_by_key(|problem| Reverse(problem.state));
        let seen = problems.first().map_or(ServiceState::Healthy, |problem| problem.state);
        let change = self.tracker.observe(seen, now);
        if seen != ServiceState::Healthy {
            self.problems_by_state.insert(seen, problems.clone());
        }
        self.tell_service_state(change, seen, now);
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
                episode.tell(&what, is_provisioned(backend), &health, count, now);
                if episode.episode.has_recent_event(now) && !throttled.contains(name) {
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
                let lasted = duration_in_words(lasted);
                warn!("requests do not fail because of backends any more ({count} did, within {lasted})");
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
                error!("backend {name}: {}: {}", state.as_str(), escape_for_log(reason));
            }
            Some(StateNews::Over { lasted }) => {
                warn!(
                    "backend {name} is {} again, after {}",
                    report.condition.state.as_str(),
                    duration_in_words(lasted)
                );
            }
            None => {}
        }
    }

    /// Tells of the state of the whole. Between good ones it may change all day.
    fn tell_service_state(&mut self, change: Option<StateChange>, seen: ServiceState, now: Instant) {
        let current = self.tracker.current();
        match self.service_episode.observe(current, now) {
            Some(StateNews::Is(state)) => {
                // What is better, and over already, is told when the whole has recovered.
                if state > self.told_service_state || state <= seen {
                    let level = if state == ServiceState::Failing { Level::Error } else { Level::Warn };
                    let problems = self.problems_by_state.get(&state).map_or(&[][..], Vec::as_slice);
                    log!(level, "the service is {}{}", state.as_str(), list_problems(state, problems));
                }
                self.told_service_state = state;
            }
            Some(StateNews::Over { lasted }) => {
                self.told_service_state = current;
                warn!(
                    "the service has recovered after {}, and is {}",
                    duration_in_words(lasted),
                    current.as_str()
                );
            }
            None => {
                if let Some(StateChange { from, to, lasted }) = change
                    && from.is_good()
                    && to.is_good()
                {
                    info!(
                        "the service is {}, after {} {}",
                        to.as_str(),
                        duration_in_words(lasted),
                        from.as_str()
                    );
                }
            }
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
            let secret = backend.credential.secret();
            let text = match (secret.renewal_error(), secret.expiry(Instant::now(), now)) {
                (Some(error), _) => format!("its credential cannot be renewed: {error}"),
                (None, Some(expiry)) if expiry.at < now => {
                    format!("its credential has expired: {}", expiry.part.as_str().replace('_', " "))
                }
                (None, _) => continue,
            };
            problems.push(degraded(backend.config.name.as_str(), text));
        }
        if let Some(error) = &self.config_status.load().last_reload_error {
            problems.push(degraded("configuration", format!("the last reload failed: {error}")));
        }
        problems
    }
}

impl ThrottlingEpisode {
    /// Tells of the 429s of a deployment.
    fn tell(
        &mut self,
        what: &str,
        is_provisioned: bool,
        health: &DeploymentHealth,
        count: u64,
        now: Instant,
    ) {
        let attempts = health.headroom.attempts_sent();
        let sent = attempts.saturating_sub(self.attempts_at_report);
        let news = self.episode.observe(count, now);
        match news {
            Some(EventNews::Began) if is_provisioned => {
                warn!("{what}: throttled (429): its provisioned capacity is full");
            }
            Some(EventNews::Began) => warn!("{what}: throttled (429)"),
            Some(EventNews::GoesOn { count }) => {
                info!("{what}: throttled: {count} of {sent} attempts of the last minute");
            }
            Some(EventNews::Over { count, lasted }) => {
                let lasted = duration_in_words(lasted);
                warn!("{what}: no longer throttled ({count} attempts were, within {lasted})");
            }
            None => {}
        }
        if news.is_some() {
            self.attempts_at_report = attempts;
        }
    }
}

/// The first problem that amounts to this state, and what else is not as it should be.
fn list_problems(state: ServiceState, problems: &[ServiceProblem]) -> String {
    let Some(first) = problems.iter().find(|problem| problem.state == state) else { return String::new() };
    // The last error has been told with its backend, or with the requests.
    let text = first.text.split("; last: ").next().unwrap_or_default();
    let mut list = format!(": {}: {}", first.subject, escape_for_log(text));
    // What spills over is as it should be.
    let others = problems.iter().filter(|problem| !problem.state.is_good());
    let others: BTreeSet<&str> = others.map(|problem| problem.subject.as_str()).collect();
    let mut others = others.into_iter().filter(|subject| *subject != first.subject);
    let named: Vec<&str> = others.by_ref().take(MAX_LISTED_SUBJECTS).collect();
    if !named.is_empty() {
        list += &format!("; also: {}", named.join(", "));
    }
    match others.count() {
        0 => list,
        count => format!("{list} and {count} more"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_about_the_whole_names_its_first_problem_and_what_else_is_wrong() {
        use ServiceState::{Degraded, Failing, Spilling};
        let problem = |state, subject: &str, text: &str| ServiceProblem {
            state,
            subject: subject.to_owned(),
            text: text.to_owned(),
        };
        let mut problems = vec![
            problem(Failing, "requests", "4 of 9 in the last 30 s were refused or failed; last: a\nb"),
            problem(Degraded, "b", "failing: the last 3 attempts failed; last: 500"),
            problem(Degraded, "b", "its credential cannot be renewed"),
            problem(Spilling, "a", "its provisioned capacity is full"),
        ];
        let table = [
            (Failing, ": requests: 4 of 9 in the last 30 s were refused or failed; also: b"),
            (Degraded, ": b: failing: the last 3 attempts failed; also: requests"),
            (ServiceState::Healthy, ""),
        ];
        for (state, expected) in table {
            assert_eq!(list_problems(state, &problems), expected);
        }
        problems.extend((10..30).map(|number| problem(Degraded, &format!("c{number}"), "failing")));
        let list = list_problems(Failing, &problems);
        assert!(list.ends_with("; also: b, c10, c11, c12, c13, c14, c15, c16 and 13 more"), "{list}");
        assert_eq!(list_problems(Degraded, &problems[1..2]), ": b: failing: the last 3 attempts failed");
    }
}
