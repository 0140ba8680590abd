//! The state of things as data: `GET /api/status`, and what the page and `aoai-lb status` show.
//!
//! Unknown is `null`. Moments are RFC 3339 in UTC; `until_ms` is how long something still lasts.

use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::azure::response::hints::Limit;
use crate::gateway::{Backend, Gateway, Pooled};
use crate::record::statistics;
use crate::record::statistics::{Told, Tries, Used};
use crate::routing::health::{Incident, Part, Reason};
use crate::routing::pool::{Candidate, Pool};
use crate::server::reload::Live;

/// Most clients that are listed: those with most tokens.
const CLIENTS_MAX: usize = 500;

/// What `GET /api/status` answers.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; the README has them")]
pub struct Status {
    pub build: Build,
    pub process: ProcessStatus,
    pub configuration: Configuration,
    pub in_flight: u64,
    pub settled: u64,
    pub pools: Vec<PoolStatus>,
    pub backends: Vec<BackendStatus>,
    pub clients: Vec<ClientStatus>,
    pub timeline: Timeline,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Build {
    pub version: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct ProcessStatus {
    pub pid: u32,
    pub started: String,
    pub uptime_seconds: u64,
    pub ready: bool,
    pub stopping: bool,
    /// Another process has taken over; this one finishes what it has begun.
    pub replaced: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Configuration {
    pub file: Option<String>,
    pub version: u64,
    pub sha256: String,
    pub loaded: String,
    /// Why the last reload was refused.
    pub problem: Option<String>,
    /// Keys whose values come into effect with an upgrade.
    pub needs_upgrade: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct PoolStatus {
    /// `deployment`, `unlisted` (names that no backend lists), or `home` (calls without a name).
    pub kind: String,
    pub deployment: Option<String>,
    pub tiers: Vec<TierStatus>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct TierStatus {
    pub tier: u16,
    pub members: Vec<Member>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Member {
    pub backend: String,
    pub upstream: Option<String>,
    pub weight: u16,
    pub state: String,
    pub until_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct BackendStatus {
    pub name: String,
    pub endpoint: String,
    pub tier: u16,
    pub weight: u16,
    /// `ok`, or why all of it rests.
    pub state: String,
    pub reason: Option<String>,
    pub since: Option<String>,
    pub until: Option<String>,
    pub until_ms: Option<u64>,
    pub in_flight: u64,
    /// Begun since the start of the process.
    pub attempts: u64,
    pub counters: Counters,
    pub last_minute: LastMinute,
    pub resting: Vec<Resting>,
    pub deployments: Vec<DeploymentStatus>,
}

/// Tries that are over, since the start of the process.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Counters {
    pub answered: u64,
    pub throttled: u64,
    pub failed: u64,
    pub refused: u64,
    pub client_gone: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct LastMinute {
    pub attempts: u64,
    pub throttled: u64,
    pub failed: u64,
    /// Of all tries.
    pub share: Option<f64>,
    pub p50_ms: Option<u64>,
    pub p95_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Resting {
    /// `null` where it is an operation that rests.
    pub deployment: Option<String>,
    pub operation: Option<String>,
    pub reason: String,
    pub since: String,
    pub until: Option<String>,
    pub until_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct DeploymentStatus {
    /// As the resource calls it.
    pub name: String,
    pub state: String,
    pub reason: Option<String>,
    pub since: Option<String>,
    pub until: Option<String>,
    pub until_ms: Option<u64>,
    pub remaining_tokens: Option<i64>,
    pub limit_tokens: Option<u64>,
    pub remaining_requests: Option<i64>,
    pub limit_requests: Option<u64>,
    pub utilization: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct ClientStatus {
    pub name: String,
    #[serde(flatten)]
    pub total: Usage,
    pub last_minute: Usage,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Usage {
    pub requests: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// What happened in each step of the last quarter of an hour, oldest first; `null` before the start.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Timeline {
    pub step_seconds: u64,
    pub until: String,
    pub requests: Vec<Option<u64>>,
    pub throttled: Vec<Option<u64>>,
    pub failed: Vec<Option<u64>>,
    pub failovers: Vec<Option<u64>>,
    pub retries_429: Vec<Option<u64>>,
    pub input_tokens: Vec<Option<u64>>,
    pub output_tokens: Vec<Option<u64>>,
    pub p50_ms: Vec<Option<u64>>,
    pub p95_ms: Vec<Option<u64>>,
    pub in_flight: Vec<Option<u64>>,
}

/// The clock on the wall beside the one that counts.
#[derive(Clone, Copy)]
struct Clock {
    now: Instant,
    wall: SystemTime,
}

impl Clock {
    fn left(self, until: Instant) -> u64 {
        u64::try_from(until.saturating_duration_since(self.now).as_millis()).unwrap_or(u64::MAX)
    }

    fn at(self, moment: Instant) -> String {
        rfc3339(match moment.checked_duration_since(self.now) {
            Some(ahead) => self.wall + ahead,
            None => self.wall - self.now.saturating_duration_since(moment),
        })
    }
}

/// A moment for people and programs.
pub fn rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// How a part of a backend stands.
struct Standing {
    state: &'static str,
    since: Option<String>,
    until: Option<String>,
    until_ms: Option<u64>,
}

impl Standing {
    /// `ends` says whether time ends it.
    fn of(incident: Option<&Incident>, ends: bool, clock: Clock) -> Self {
        let ends = ends && incident.is_some_and(|incident| incident.rest.reason != Reason::Drained);
        let until = incident.map(|incident| incident.rest.until).filter(|_| ends);
        Self {
            state: incident.map_or("ok", |incident| incident.rest.reason.word()),
            since: incident.map(|incident| clock.at(incident.since)),
            until: until.map(|until| clock.at(until)),
            until_ms: until.map(|until| clock.left(until)),
        }
    }
}

/// The state of a process now.
pub fn of(live: &Live, started: Instant, now: Instant) -> Status {
    let clock = Clock { now, wall: SystemTime::now() };
    let serving = live.serving.load();
    let gateway = &serving.gateway;
    let (process, told) = (&gateway.process, live.told());
    let counted = process.recorder.metrics().tally.told(now);
    let stopping = process.stopping.load(Ordering::Acquire);
    Status {
        build: Build { version: env!("CARGO_PKG_VERSION").to_owned() },
        process: ProcessStatus {
            pid: std::process::id(),
            started: clock.at(started),
            uptime_seconds: now.saturating_duration_since(started).as_secs(),
            ready: !stopping,
            stopping,
            replaced: process.leaving.load(Ordering::Acquire) && !stopping,
        },
        configuration: Configuration {
            file: live.file().map(|file| file.display().to_string()),
            version: told.version,
            sha256: told.sha256.clone(),
            loaded: rfc3339(told.loaded),
            problem: told.problem.clone(),
            needs_upgrade: told.needs_upgrade.clone(),
        },
        in_flight: process.in_flight.load(Ordering::Relaxed) as u64,
        settled: process.settled.load(Ordering::Relaxed) as u64,
        pools: gateway.pools().iter().map(|(of, pool)| of_pool(gateway, of, pool, clock)).collect(),
        backends: of_backends(gateway, &counted, clock),
        clients: of_clients(&counted),
        timeline: timeline(&counted, clock),
    }
}

fn of_pool(gateway: &Gateway, of: &Pooled, pool: &Pool, clock: Clock) -> PoolStatus {
    let (kind, deployment) = match of {
        Pooled::Deployment(name) => ("deployment", Some(name.to_string())),
        Pooled::Unlisted => ("unlisted", None),
        Pooled::Home => ("home", None),
    };
    let mut tiers: Vec<TierStatus> = Vec::new();
    for candidate in pool.candidates() {
        let Some(backend) = gateway.backends.get(candidate.backend) else { continue };
        let member = of_member(backend, candidate, clock);
        match tiers.last_mut().filter(|last| last.tier == candidate.tier.get()) {
            Some(last) => last.members.push(member),
            None => tiers.push(TierStatus { tier: candidate.tier.get(), members: vec![member] }),
        }
    }
    PoolStatus { kind: kind.to_owned(), deployment, tiers }
}

fn of_member(backend: &Backend, candidate: &Candidate, clock: Clock) -> Member {
    let own = || candidate.deployment.as_ref().and_then(|deployment| deployment.cell.incident(clock.now));
    let incident = backend.resting(clock.now).or_else(own);
    let standing = Standing::of(incident.as_ref(), backend.credential.kept().number() != 0, clock);
    Member {
        backend: backend.config.name.to_string(),
        upstream: candidate.upstream.as_ref().map(ToString::to_string),
        weight: candidate.weight.get(),
        state: standing.state.to_owned(),
        until_ms: standing.until_ms,
    }
}

fn of_backends(gateway: &Gateway, counted: &Told, clock: Clock) -> Vec<BackendStatus> {
    let everywhere: u64 = counted.backends.values().map(|(_, recent, _)| recent.all()).sum();
    gateway.backends.iter().map(|backend| of_backend(backend, counted, everywhere, clock)).collect()
}

fn of_backend(backend: &Backend, counted: &Told, everywhere: u64, clock: Clock) -> BackendStatus {
    let has_credential = backend.credential.kept().number() != 0;
    let incident = backend.resting(clock.now);
    // What waits for a secret waits until there is one.
    let standing = Standing::of(incident.as_ref(), has_credential, clock);
    let resting = backend.memory.resting(clock.now);
    let (total, recent, took) = counted.backends.get(&backend.config.name).cloned().unwrap_or_default();
    let reason = incident.map(|incident| match incident.rest.reason {
        Reason::Credential if !has_credential => {
            format!("has no credential yet: {}", backend.credential.kept().problem())
        }
        reason => sentence(reason).to_owned(),
    });
    let deployments = backend.memory.deployments().into_iter().filter(|(name, _)| !name.is_empty());
    let deployments = deployments.map(|(name, known)| {
        let incident = known.cell.incident(clock.now);
        let standing = Standing::of(incident.as_ref(), true, clock);
        let capacity = known.headroom.last_told();
        let remaining = |limit: Option<Limit>| limit.map(|limit| limit.remaining);
        let limit = |limit: Option<Limit>| limit.map(|limit| limit.limit.get());
        DeploymentStatus {
            name,
            state: standing.state.to_owned(),
            reason: incident.map(|incident| sentence(incident.rest.reason).to_owned()),
            since: standing.since,
            until: standing.until,
            until_ms: standing.until_ms,
            remaining_tokens: remaining(capacity.tokens),
            limit_tokens: limit(capacity.tokens),
            remaining_requests: remaining(capacity.requests),
            limit_requests: limit(capacity.requests),
            utilization: capacity.utilization,
        }
    });
    BackendStatus {
        name: backend.config.name.to_string(),
        endpoint: backend.config.endpoint.authority(),
        tier: backend.config.tier.get(),
        weight: backend.config.weight.get(),
        state: standing.state.to_owned(),
        reason,
        since: standing.since,
        until: standing.until,
        until_ms: standing.until_ms,
        in_flight: backend.memory.in_flight.load(Ordering::Relaxed) as u64,
        attempts: backend.memory.attempts.load(Ordering::Relaxed),
        counters: counters(&total),
        last_minute: LastMinute {
            attempts: recent.all(),
            throttled: recent.throttled,
            failed: recent.failed,
            share: (everywhere > 0).then(|| recent.all() as f64 / everywhere as f64),
            p50_ms: took.quantile(0.5),
            p95_ms: took.quantile(0.95),
        },
        resting: resting.into_iter().map(|(part, incident)| of_part(part, &incident, clock)).collect(),
        deployments: deployments.collect(),
    }
}

fn of_part(part: Part, incident: &Incident, clock: Clock) -> Resting {
    let (deployment, operation) = match part {
        Part::Deployment(name) => (Some(name), None),
        Part::Operation(operation) => (None, Some(operation.name().to_owned())),
    };
    let standing = Standing::of(Some(incident), true, clock);
    Resting {
        deployment,
        operation,
        reason: standing.state.to_owned(),
        since: clock.at(incident.since),
        until: standing.until,
        until_ms: standing.until_ms,
    }
}

/// Why something rests, for people.
fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::Cooling => "asked to wait (429, or retry-after)",
        Reason::Absent => "the resource does not have this deployment",
        Reason::Credential => "refuses its credential or our network (401, 403)",
        Reason::PermissionDenied => "its credential may not do this operation (403)",
        Reason::BreakerOpen => "failed too often",
        Reason::Drained => "drained by the operator",
    }
}

fn counters(tries: &Tries) -> Counters {
    let Tries { answered, throttled, failed, refused, client_gone } = *tries;
    Counters { answered, throttled, failed, refused, client_gone }
}

fn of_clients(counted: &Told) -> Vec<ClientStatus> {
    let usage = |used: &Used| Usage {
        requests: used.requests,
        input_tokens: used.input_tokens,
        output_tokens: used.output_tokens,
    };
    let mut clients: Vec<_> = counted.clients.iter().collect();
    clients.sort_by_key(|(name, total, _)| {
        (std::cmp::Reverse(total.input_tokens + total.output_tokens), name.as_str())
    });
    let listed = clients.into_iter().take(CLIENTS_MAX).map(|(name, total, recent)| ClientStatus {
        name: name.to_string(),
        total: usage(total),
        last_minute: usage(recent),
    });
    listed.collect()
}

fn timeline(counted: &Told, clock: Clock) -> Timeline {
    type Of = fn(&statistics::Step) -> Option<u64>;
    let column = |of: Of| counted.steps.iter().map(|step| step.as_ref().and_then(of)).collect();
    Timeline {
        step_seconds: statistics::STEP.as_secs(),
        until: rfc3339(clock.wall),
        requests: column(|step| Some(step.requests)),
        throttled: column(|step| Some(step.throttled)),
        failed: column(|step| Some(step.failed)),
        failovers: column(|step| Some(step.failovers)),
        retries_429: column(|step| Some(step.retries_429)),
        input_tokens: column(|step| Some(step.input_tokens)),
        output_tokens: column(|step| Some(step.output_tokens)),
        p50_ms: column(|step| step.first_byte.quantile(0.5)),
        p95_ms: column(|step| step.first_byte.quantile(0.95)),
        in_flight: column(|step| Some(step.in_flight)),
    }
}
