//! The conditions of backends and of what they serve, for the status and the metrics: gathers what
//! `routing/health/backend_state.rs` derives them from.

use std::time::Instant;

use crate::gateway::Backend;
use crate::proxy::ActiveConfig;
use crate::routing::health::availability::Outage;
use crate::routing::health::backend_health::BackendPart;
use crate::routing::health::backend_state::{BackendCondition, BackendFacts, BackendState};
use crate::routing::health::recent_attempts::FAILING_IN_A_ROW;
use crate::routing::pool::Candidate;

/// The condition of a backend, and why it is not healthy.
pub(super) struct BackendReport {
    /// Its condition.
    pub(super) condition: BackendCondition,
    /// Why it is not healthy, in plain words.
    pub(super) reason: Option<String>,
    /// The outages of its deployments and operations.
    pub(super) unavailable_parts: Vec<(BackendPart, Outage)>,
}

impl BackendReport {
    /// The report on the backend at this index of the configuration.
    pub(super) fn new(config: &ActiveConfig, index: usize, backend: &Backend, now: Instant) -> Self {
        let unavailable_parts = backend.health.unavailable_parts(now);
        let facts = backend_facts(config, index, backend, now);
        let mut condition = facts.condition(now);
        // Without a secret it is unavailable until one is fetched, not until a certain time.
        if backend.credential.secret().current_value_id() == 0 && condition.state == BackendState::Credential
        {
            condition.until = None;
        }
        let reason = describe(config, index, backend, condition, now);
        Self { condition, reason, unavailable_parts }
    }
}

/// The condition of a backend as a member of a pool: its own, or that of the deployment.
pub(super) fn member_condition(
    config: &ActiveConfig,
    backend: &Backend,
    candidate: &Candidate,
    now: Instant,
) -> BackendCondition {
    let whole = facts_of_whole(config, candidate.backend_index, backend, now);
    // What another deployment or operation lacks is no matter here.
    let outage = candidate.deployment_health.as_ref().map(|health| health.availability.current_outage(now));
    BackendFacts { deployments: Vec::from_iter(outage), ..whole }.condition(now)
}

/// The facts about a backend and its parts.
fn backend_facts(config: &ActiveConfig, index: usize, backend: &Backend, now: Instant) -> BackendFacts {
    let health = &backend.health;
    let deployments = health.deployments().into_iter().filter(|(name, _)| !name.is_empty());
    let operations = health.unavailable_parts(now).into_iter().filter_map(|(part, outage)| match part {
        BackendPart::Operation(_) => Some(outage),
        BackendPart::Deployment(_) | BackendPart::FlexRequests(_) => None,
    });
    BackendFacts {
        deployments: deployments.map(|(_, health)| health.availability.current_outage(now)).collect(),
        operations: operations.collect(),
        ..facts_of_whole(config, index, backend, now)
    }
}

/// The facts about a backend, but not about its parts.
fn facts_of_whole(config: &ActiveConfig, index: usize, backend: &Backend, now: Instant) -> BackendFacts {
    let addresses = config.peers.endpoint_addresses(index).filter(|addresses| !addresses.has_address());
    BackendFacts {
        outage: backend.current_outage(now),
        unresolvable_since: addresses
            .and_then(|addresses| addresses.lookup_failure())
            .map(|failure| failure.since),
        failing_since: backend.health.recent_attempts.failing_since(now),
        deployments: Vec::new(),
        operations: Vec::new(),
    }
}

/// Why a backend is not healthy.
fn describe(
    config: &ActiveConfig,
    index: usize,
    backend: &Backend,
    condition: BackendCondition,
    now: Instant,
) -> Option<String> {
    let recent = &backend.health.recent_attempts;
    let last_error = || recent.last_error().map(|error| error.describe());
    let with_last_error = |text: String| match last_error() {
        Some(error) => format!("{text}; last: {error}"),
        None => text,
    };
    let description = condition.state.description();
    Some(match condition.state {
        BackendState::Healthy => return None,
        BackendState::Disabled | BackendState::Drained => description.to_owned(),
        BackendState::Failing => {
            let (attempts, failures) = recent.last_minute(now);
            let in_a_row = recent.failures_in_a_row();
            let text = if in_a_row < FAILING_IN_A_ROW {
                format!("{failures} of {attempts} attempts of the last minute failed")
            } else if attempts > u64::from(in_a_row) {
                format!("the last {in_a_row} attempts failed, {failures} of {attempts} in the last minute")
            } else {
                format!("the last {in_a_row} attempts failed")
            };
            with_last_error(text)
        }
        BackendState::Unresolvable => {
            let failure = config.peers.endpoint_addresses(index).and_then(|found| found.lookup_failure());
            let host = &backend.config.endpoint.host;
            failure.map_or_else(
                || description.to_owned(),
                |failure| format!("{host} does not resolve: {}", failure.error),
            )
        }
        BackendState::Credential if backend.credential.secret().current_value_id() == 0 => {
            format!("has no credential yet: {}", backend.credential.secret().last_fetch_error())
        }
        BackendState::Stalled => match backend.health.stall_watch.oldest_attempt() {
            Some(oldest) => format!(
                "{description}; an attempt waits for {}s",
                now.saturating_duration_since(oldest).as_secs()
            ),
            None => description.to_owned(),
        },
        BackendState::Cooling
        | BackendState::Permission
        | BackendState::Absent
        | BackendState::BreakerOpen
        | BackendState::Credential => with_last_error(description.to_owned()),
    })
}
