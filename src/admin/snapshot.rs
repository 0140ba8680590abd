//! Collects the status of the process: what `GET /api/status` returns.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;

use super::conditions::{BackendReport, member_condition};
use super::config_status::ConfigStatus;
use super::status::affinity::affinity_status;
use super::status::costs::costs_status;
use super::status::expiry::{certificate_statuses, credential_statuses};
use super::status::limits::limits_status;
use super::status::queue::queue_status;
use super::status::refusals::refused_clients;
use super::status::shared::shared_status;
use super::status::sinks::sink_statuses;
use super::status::traces::traces_status;
use super::status::{
    AttemptsByOutcome, BackendError, BackendStatus, BuildInfo, ClientStatus, ConfigurationSummary,
    DeploymentStatus, LastMinuteStats, OpenWebSockets, PoolMemberStatus, PoolStatus, ProcessStatus,
    ServiceProblemStatus, ServiceStatus, StatusReport, TierStatus, Timeline, UnavailablePart, UsageCounts,
};
use super::wall_clock::{WallClockConverter, format_rfc3339};
use crate::azure::response::hints::RateLimit;
use crate::gateway::{Backend, DisabledBackend, PoolKey};
use crate::proxy::ActiveConfig;
use crate::record::prompt_tokens::PromptTokens;
use crate::record::statistics::{
    AttemptCounts, BackendActivity, ClientUsage, StatisticsSnapshot, TIMELINE_STEP_DURATION, TimelineStep,
};
use crate::routing::health::availability::Outage;
use crate::routing::health::backend_health::BackendPart;
use crate::routing::health::backend_state::{BackendCondition, BackendState};
use crate::routing::pool::{BackendPool, Candidate};
use crate::routing::service_state::ServiceReport;

/// How many clients are listed at most; those with the most tokens come first.
const MAX_LISTED_CLIENTS: usize = 500;

/// What the status is collected from.
#[derive(Clone)]
pub struct StatusSource {
    active_config: Arc<ArcSwap<ActiveConfig>>,
    config_status: Arc<ArcSwap<ConfigStatus>>,
    started_at: Instant,
}

impl StatusSource {
    /// A source for the process that started at `started`.
    pub fn new(
        active_config: Arc<ArcSwap<ActiveConfig>>,
        config_status: Arc<ArcSwap<ConfigStatus>>,
        started_at: Instant,
    ) -> Self {
        Self { active_config, config_status, started_at }
    }

    /// The active configuration.
    pub fn load_active_config(&self) -> Arc<ActiveConfig> {
        self.active_config.load_full()
    }

    /// Collects the status.
    pub fn collect_status(&self, now: Instant) -> StatusReport {
        let clock = WallClockConverter { monotonic_now: now, wall_now: SystemTime::now() };
        let active_config = self.active_config.load();
        let gateway = &active_config.gateway;
        let process = &gateway.process_state;
        let config_status = self.config_status.load();
        let statistics = process.recorder.metrics().statistics.snapshot(now);
        let stopping = process.is_stopping.load(Ordering::Acquire);
        StatusReport {
            service: service_status(&process.service_report.load(), clock),
            build: BuildInfo { version: env!("CARGO_PKG_VERSION").to_owned() },
            process: ProcessStatus {
                pid: std::process::id(),
                started: clock.to_rfc3339(self.started_at),
                uptime_seconds: now.saturating_duration_since(self.started_at).as_secs(),
                ready: !stopping,
                stopping,
                replaced: process.is_draining_connections.load(Ordering::Acquire) && !stopping,
                drains_not_saved: process.drains.save_problem(),
            },
            configuration: ConfigurationSummary {
                file: config_status.file.as_ref().map(|file| file.display().to_string()),
                version: config_status.activation_number,
                sha256: config_status.sha256.clone(),
                loaded: format_rfc3339(config_status.loaded_at),
                last_reload_error: config_status.last_reload_error.clone(),
                needs_upgrade: config_status.config_keys_needing_upgrade.clone(),
            },
            requests_in_flight: process.requests_in_flight.load(Ordering::Relaxed) as u64,
            websockets: OpenWebSockets {
                responses: process.open_sockets.count() as u64,
                realtime: process.open_sockets.realtime_count() as u64,
            },
            finished_requests: process.requests_finished.load(Ordering::Relaxed) as u64,
            pools: gateway
                .pools()
                .iter()
                .map(|(key, pool)| pool_status(&active_config, key, pool, clock))
                .collect(),
            backends: all_backend_statuses(&active_config, &statistics, clock),
            clients: client_statuses(&statistics),
            limits: limits_status(
                gateway.clients(),
                || process.budgets.save_problem(),
                || process.recorder.currency(),
                clock.monotonic_now,
                clock.wall_now,
            ),
            costs: costs_status(&process.recorder, process.costs.save_problem(), clock.wall_now),
            queue: queue_status(gateway.queue_config(), &process.queue),
            shared: shared_status(process),
            refusals: refused_clients(&statistics),
            sinks: sink_statuses(&process.recorder.sinks(), clock.wall_now),
            traces: traces_status(process.recorder.traces(), clock.wall_now),
            certificates: certificate_statuses(&process.certificate_expiries, clock.wall_now),
            credentials: credential_statuses(gateway, clock.monotonic_now, clock.wall_now),
            affinity: Some(affinity_status(gateway, clock.monotonic_now)),
            timeline: timeline(&statistics, clock),
        }
    }
}

fn service_status(report: &ServiceReport, clock: WallClockConverter) -> ServiceStatus {
    let problems = report.problems.iter().map(|problem| ServiceProblemStatus {
        state: problem.state.as_str().to_owned(),
        subject: problem.subject.clone(),
        text: problem.text.clone(),
    });
    ServiceStatus {
        state: report.state.as_str().to_owned(),
        since: report.since.map(|since| clock.to_rfc3339(since)),
        problems: problems.collect(),
    }
}

fn pool_status(
    config: &ActiveConfig,
    key: &PoolKey,
    pool: &BackendPool,
    clock: WallClockConverter,
) -> PoolStatus {
    let (kind, deployment) = match key {
        PoolKey::Deployment(name) => ("deployment", Some(name.to_string())),
        PoolKey::Unlisted => ("unlisted", None),
        PoolKey::DefaultBackend => ("home", None),
    };
    let prompt_tokens = &config.gateway.process_state.recorder.metrics().prompt_tokens;
    let prompt_tokens = match key {
        PoolKey::Deployment(name) => prompt_tokens.of_deployment(name, clock.monotonic_now),
        PoolKey::Unlisted | PoolKey::DefaultBackend => HashMap::new(),
    };
    let mut tiers: Vec<TierStatus> = Vec::new();
    for candidate in pool.candidates() {
        let Some(backend) = config.gateway.backends.get(candidate.backend_index) else { continue };
        let mut member = member_status(config, backend, candidate, clock);
        let tokens = prompt_tokens.get(&backend.config.name);
        member.cached_share = tokens.and_then(|tokens| tokens.cached_share());
        match tiers.last_mut().filter(|last| last.tier == candidate.tier.get()) {
            Some(last) => last.members.push(member),
            None => tiers.push(TierStatus { tier: candidate.tier.get(), members: vec![member] }),
        }
    }
    PoolStatus {
        kind: kind.to_owned(),
        deployment,
        balance: pool.balance_policy().as_str().to_owned(),
        cached_share: prompt_tokens.into_values().sum::<PromptTokens>().cached_share(),
        tiers,
    }
}

fn member_status(
    config: &ActiveConfig,
    backend: &Backend,
    candidate: &Candidate,
    clock: WallClockConverter,
) -> PoolMemberStatus {
    let condition = member_condition(config, backend, candidate, clock.monotonic_now);
    let availability = AvailabilityFields::new(condition, clock);
    PoolMemberStatus {
        backend: backend.config.name.to_string(),
        upstream_deployment: candidate.upstream_deployment_override.as_ref().map(ToString::to_string),
        weight: candidate.weight.get(),
        state: availability.state.to_owned(),
        remaining_ms: availability.remaining_ms,
        cached_share: None,
    }
}

/// Every backend of the file, in its order.
fn all_backend_statuses(
    config: &ActiveConfig,
    statistics: &StatisticsSnapshot,
    clock: WallClockConverter,
) -> Vec<BackendStatus> {
    let all_attempts: u64 = statistics.backends.values().map(|activity| activity.last_minute.total()).sum();
    let backends = config.gateway.backends.iter().enumerate();
    let mut all: Vec<BackendStatus> = backends
        .map(|(index, backend)| {
            let report = BackendReport::new(config, index, backend, clock.monotonic_now);
            backend_status(backend, report, statistics, all_attempts, clock)
        })
        .collect();
    for backend in &config.gateway.disabled_backends {
        let place = backend.config.position.min(all.len());
        all.insert(place, disabled_backend_status(backend, statistics, all_attempts));
    }
    all
}

fn disabled_backend_status(
    backend: &DisabledBackend,
    statistics: &StatisticsSnapshot,
    all_attempts: u64,
) -> BackendStatus {
    let DisabledBackend { config, health } = backend;
    let activity = statistics.backends.get(&config.name).cloned().unwrap_or_default();
    BackendStatus {
        name: config.name.to_string(),
        endpoint: config.endpoint.authority(),
        tier: config.tier.get(),
        weight: config.weight.get(),
        state: BackendState::Disabled.as_str().to_owned(),
        reason: Some(BackendState::Disabled.description().to_owned()),
        since: None,
        until: None,
        remaining_ms: None,
        attempts_in_flight: health.attempts_in_flight.load(Ordering::Relaxed) as u64,
        attempts_started: health.attempts_started.load(Ordering::Relaxed),
        oldest_attempt_seconds: None,
        last_error: None,
        counters: attempts_by_outcome(&activity.since_start),
        last_minute: last_minute_stats(&activity, all_attempts),
        unavailable_parts: Vec::new(),
        deployments: Vec::new(),
    }
}

fn backend_status(
    backend: &Backend,
    report: BackendReport,
    statistics: &StatisticsSnapshot,
    all_attempts: u64,
    clock: WallClockConverter,
) -> BackendStatus {
    let BackendReport { condition, reason, unavailable_parts } = report;
    let availability = AvailabilityFields::new(condition, clock);
    let activity = statistics.backends.get(&backend.config.name).cloned().unwrap_or_default();
    let deployments = backend.health.deployments().into_iter().filter(|(name, _)| !name.is_empty());
    let deployments = deployments.map(|(name, deployment)| {
        let outage = deployment.availability.current_outage(clock.monotonic_now);
        let condition = BackendCondition::from_outage(outage, clock.monotonic_now);
        let availability = AvailabilityFields::new(condition, clock);
        let capacity = deployment.headroom.last_reported_capacity();
        let remaining = |limit: Option<RateLimit>| limit.map(|limit| limit.remaining);
        let limit = |limit: Option<RateLimit>| limit.map(|limit| limit.limit_per_minute.get());
        DeploymentStatus {
            name,
            state: availability.state.to_owned(),
            reason: outage.is_some().then(|| condition.state.description().to_owned()),
            since: availability.since,
            until: availability.until,
            remaining_ms: availability.remaining_ms,
            remaining_tokens: remaining(capacity.token_rate_limit),
            limit_tokens: limit(capacity.token_rate_limit),
            remaining_requests: remaining(capacity.request_rate_limit),
            limit_requests: limit(capacity.request_rate_limit),
            utilization: capacity.provisioned_utilization,
        }
    });
    BackendStatus {
        name: backend.config.name.to_string(),
        endpoint: backend.config.endpoint.authority(),
        tier: backend.config.tier.get(),
        weight: backend.config.weight.get(),
        state: availability.state.to_owned(),
        reason,
        since: availability.since,
        until: availability.until,
        remaining_ms: availability.remaining_ms,
        attempts_in_flight: backend.health.attempts_in_flight.load(Ordering::Relaxed) as u64,
        attempts_started: backend.health.attempts_started.load(Ordering::Relaxed),
        oldest_attempt_seconds: backend
            .health
            .stall_watch
            .oldest_attempt()
            .map(|sent_at| clock.monotonic_now.saturating_duration_since(sent_at).as_secs_f64()),
        last_error: backend.health.recent_attempts.last_error().map(|error| BackendError {
            at: error.at.map(|at| clock.to_rfc3339(at)),
            status: error.status,
            code: error.code,
            message: error.message,
        }),
        counters: attempts_by_outcome(&activity.since_start),
        last_minute: last_minute_stats(&activity, all_attempts),
        unavailable_parts: unavailable_parts
            .into_iter()
            .map(|(part, outage)| unavailable_part(part, &outage, clock))
            .collect(),
        deployments: deployments.collect(),
    }
}

fn last_minute_stats(activity: &BackendActivity, all_attempts: u64) -> LastMinuteStats {
    let recent = activity.last_minute;
    LastMinuteStats {
        attempts: recent.total(),
        throttled: recent.throttled,
        failed: recent.failed,
        attempt_share: (all_attempts > 0).then(|| recent.total() as f64 / all_attempts as f64),
        attempt_p50_ms: activity.last_minute_latency.quantile_ms(0.5),
        attempt_p95_ms: activity.last_minute_latency.quantile_ms(0.95),
    }
}

fn unavailable_part(part: BackendPart, outage: &Outage, clock: WallClockConverter) -> UnavailablePart {
    let (deployment, operation, service_tier) = match part {
        BackendPart::Deployment(name) => (Some(name), None, None),
        BackendPart::Operation(operation) => (None, Some(operation.name().to_owned()), None),
        BackendPart::FlexRequests(name) => (Some(name), None, Some("flex".to_owned())),
    };
    let condition = BackendCondition::from_outage(Some(*outage), clock.monotonic_now);
    let availability = AvailabilityFields::new(condition, clock);
    UnavailablePart {
        deployment,
        operation,
        service_tier,
        reason: availability.state.to_owned(),
        since: clock.to_rfc3339(outage.since),
        until: availability.until,
        remaining_ms: availability.remaining_ms,
    }
}

fn attempts_by_outcome(counts: &AttemptCounts) -> AttemptsByOutcome {
    let AttemptCounts { answered, throttled, failed, refused, client_gone } = *counts;
    AttemptsByOutcome { answered, throttled, failed, refused, client_gone }
}

fn client_statuses(statistics: &StatisticsSnapshot) -> Vec<ClientStatus> {
    let usage_counts = |usage: &ClientUsage| UsageCounts {
        requests: usage.requests,
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        refusals: (&usage.refusals).into(),
    };
    let named = statistics.clients.iter().filter_map(|client| Some((client.name.as_ref()?, client)));
    let mut clients: Vec<_> = named.collect();
    clients.sort_by_key(|(name, client)| {
        let total = &client.since_start;
        (Reverse(total.input_tokens + total.output_tokens), name.as_str())
    });
    let listed = clients.into_iter().take(MAX_LISTED_CLIENTS).map(|(name, client)| ClientStatus {
        name: name.to_string(),
        total: usage_counts(&client.since_start),
        last_minute: usage_counts(&client.last_minute),
    });
    listed.collect()
}

fn timeline(statistics: &StatisticsSnapshot, clock: WallClockConverter) -> Timeline {
    type StepValue = fn(&TimelineStep) -> Option<u64>;
    let column =
        |value: StepValue| statistics.steps.iter().map(|step| step.as_ref().and_then(value)).collect();
    Timeline {
        step_seconds: TIMELINE_STEP_DURATION.as_secs(),
        until: format_rfc3339(clock.wall_now),
        requests: column(|step| Some(step.finished_requests)),
        throttled: column(|step| Some(step.throttled_requests)),
        failed: column(|step| Some(step.failed_requests)),
        failovers: column(|step| Some(step.failovers)),
        throttled_attempts: column(|step| Some(step.throttled_attempts)),
        input_tokens: column(|step| Some(step.input_tokens)),
        output_tokens: column(|step| Some(step.output_tokens)),
        first_byte_p50_ms: column(|step| step.time_to_first_byte.quantile_ms(0.5)),
        first_byte_p95_ms: column(|step| step.time_to_first_byte.quantile_ms(0.95)),
        max_in_flight: column(|step| Some(step.max_in_flight)),
    }
}

/// The availability of a backend or of a part of it, in the form of the status.
struct AvailabilityFields {
    state: &'static str,
    since: Option<String>,
    until: Option<String>,
    remaining_ms: Option<u64>,
}

impl AvailabilityFields {
    fn new(condition: BackendCondition, clock: WallClockConverter) -> Self {
        Self {
            state: condition.state.as_str(),
            since: condition.since.map(|since| clock.to_rfc3339(since)),
            until: condition.until.map(|until| clock.to_rfc3339(until)),
            remaining_ms: condition.until.map(|until| clock.millis_until(until)),
        }
    }
}
