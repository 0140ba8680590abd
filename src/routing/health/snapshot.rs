//! The health of all backends as data, for the process that takes over in an upgrade.
//!
//! An `Instant` means nothing to another process, so times are durations, counted from the moment of the
//! snapshot. Left out are headroom, which the next response reports, and ids of secrets, which only this
//! process knows.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::availability::{AvailabilityCell, Outage, Unavailable, UnavailableReason};
use super::backend_health::{BackendHealth, HealthRegistry};
use crate::azure::Operation;
use crate::names::BackendName;

/// The health of all backends at one moment.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct HealthSnapshot {
    backends: Vec<BackendSnapshot>,
}

// The two processes of an upgrade may be of different versions: what is serialized keeps its names.
#[derive(Debug, Serialize, Deserialize)]
struct BackendSnapshot {
    name: String,
    #[serde(rename = "drained", default, skip_serializing_if = "Option::is_none")]
    drain: Option<OutageSnapshot>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    breaker: Option<OutageSnapshot>,
    /// How often in a row the breaker opened again.
    #[serde(rename = "streak", default)]
    breaker_reopen_count: u32,
    /// How long ago the breaker ceased to be open; negative while it is open.
    #[serde(rename = "ended_ms", default)]
    breaker_open_ended_ms_ago: Option<i64>,
    #[serde(default)]
    deployments: Vec<PartSnapshot>,
    #[serde(default)]
    operations: Vec<PartSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PartSnapshot {
    name: String,
    #[serde(rename = "resting", default, skip_serializing_if = "Option::is_none")]
    outage: Option<OutageSnapshot>,
    /// Of deployments only.
    #[serde(rename = "flex_resting", default, skip_serializing_if = "Option::is_none")]
    flex_outage: Option<OutageSnapshot>,
    /// Of deployments only.
    #[serde(rename = "declines_usage", default)]
    rejects_stream_options: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct OutageSnapshot {
    reason: String,
    #[serde(rename = "left_ms")]
    remaining_ms: u64,
    #[serde(rename = "age_ms")]
    elapsed_ms: u64,
}

impl HealthSnapshot {
    /// The health of all backends now.
    pub fn capture(registry: &HealthRegistry, now: Instant) -> Self {
        let backends = registry.backends_by_name().into_iter();
        Self {
            backends: backends.map(|(name, health)| BackendSnapshot::capture(&name, &health, now)).collect(),
        }
    }

    /// Restores it in the registry of a process that has not served anything yet.
    pub fn restore(&self, registry: &HealthRegistry, now: Instant) {
        for backend in &self.backends {
            backend.restore(&registry.get_or_create_backend(&BackendName::new(&backend.name)), now);
        }
    }
}

impl BackendSnapshot {
    fn capture(name: &BackendName, health: &BackendHealth, now: Instant) -> Self {
        let (reopen_count, last_open_until) = health.breaker.opening_history();
        let deployments = health.deployments().into_iter().map(|(name, deployment)| PartSnapshot {
            name,
            outage: OutageSnapshot::capture(&deployment.availability, now),
            flex_outage: deployment.flex_availability().and_then(|cell| OutageSnapshot::capture(cell, now)),
            rejects_stream_options: deployment.rejects_stream_options.load(Ordering::Relaxed),
        });
        let operations = Operation::ALL.into_iter().map(|operation| PartSnapshot {
            name: operation.name().to_owned(),
            outage: OutageSnapshot::capture(health.operation_availability(operation), now),
            flex_outage: None,
            rejects_stream_options: false,
        });
        let is_noteworthy = |part: &PartSnapshot| {
            part.outage.is_some() || part.flex_outage.is_some() || part.rejects_stream_options
        };
        Self {
            name: name.to_string(),
            drain: OutageSnapshot::capture(&health.drain_state, now),
            breaker: OutageSnapshot::capture(&health.breaker.availability, now),
            breaker_reopen_count: reopen_count,
            breaker_open_ended_ms_ago: last_open_until.map(|until| match now.checked_duration_since(until) {
                Some(elapsed) => to_signed_millis(elapsed),
                None => -to_signed_millis(until.saturating_duration_since(now)),
            }),
            deployments: deployments.filter(is_noteworthy).collect(),
            operations: operations.filter(is_noteworthy).collect(),
        }
    }

    fn restore(&self, health: &BackendHealth, now: Instant) {
        let outages = [(&self.drain, &health.drain_state), (&self.breaker, &health.breaker.availability)];
        for (outage, cell) in outages {
            if let Some(outage) = outage {
                outage.restore(cell, now);
            }
        }
        let last_open_until = self.breaker_open_ended_ms_ago.and_then(|ms| {
            let distance = Duration::from_millis(ms.unsigned_abs());
            if ms < 0 { now.checked_add(distance) } else { now.checked_sub(distance) }
        });
        health.breaker.restore_history(self.breaker_reopen_count, last_open_until);
        for part in &self.deployments {
            let deployment = health.get_or_create_deployment_by_key(part.name.clone());
            deployment.rejects_stream_options.store(part.rejects_stream_options, Ordering::Relaxed);
            if let Some(outage) = &part.outage {
                outage.restore(&deployment.availability, now);
            }
            if let Some(outage) = &part.flex_outage {
                outage.restore(deployment.get_or_create_flex_availability(), now);
            }
        }
        for part in &self.operations {
            let operation = Operation::ALL.into_iter().find(|operation| operation.name() == part.name);
            if let (Some(operation), Some(outage)) = (operation, &part.outage) {
                outage.restore(health.operation_availability(operation), now);
            }
        }
    }
}

impl OutageSnapshot {
    fn capture(cell: &AvailabilityCell, now: Instant) -> Option<Self> {
        let Outage { unavailable, since } = cell.unresolved_outage(now)?;
        Some(Self {
            reason: unavailable.reason.as_str().to_owned(),
            remaining_ms: to_millis(unavailable.until.saturating_duration_since(now)),
            elapsed_ms: to_millis(now.saturating_duration_since(since)),
        })
    }

    /// Does nothing if this version does not know the reason: a later one may have more.
    fn restore(&self, cell: &AvailabilityCell, now: Instant) {
        if let Some(reason) = UnavailableReason::parse(&self.reason)
            && let Some(until) = now.checked_add(Duration::from_millis(self.remaining_ms))
        {
            let since = now.checked_sub(Duration::from_millis(self.elapsed_ms)).unwrap_or(now);
            cell.restore_outage(Outage { unavailable: Unavailable { reason, until }, since });
        }
    }
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn to_signed_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::names::DeploymentName;
    use crate::routing::health::availability::Availability;
    use crate::routing::health::breaker::{CircuitBreaker, FailureFlags};
    use crate::routing::health::recent_attempts::FailureRun;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_next_process_continues_with_the_health_that_this_one_knew() {
        // The clocks of two processes have nothing in common.
        let (old_now, new_now) = (Instant::now(), Instant::now() + 1000 * S);
        let (old_registry, new_registry) = (HealthRegistry::new(old_now), HealthRegistry::new(new_now));
        let (name, deployment_name) = (BackendName::new("a"), DeploymentName::parse("GPT-4o").unwrap());
        let old = old_registry.get_or_create_backend(&name);
        let mark_unavailable = |cell: &AvailabilityCell, reason, duration| {
            cell.mark_unavailable(Unavailable { reason, until: old_now + duration }, old_now);
        };
        let deployment = old.get_or_create_deployment(Some(&deployment_name));
        mark_unavailable(&deployment.availability, UnavailableReason::CoolingDown, 9 * S);
        deployment.rejects_stream_options.store(true, Ordering::Relaxed);
        mark_unavailable(
            deployment.get_or_create_flex_availability(),
            UnavailableReason::CoolingDown,
            30 * S,
        );
        mark_unavailable(
            &old.get_or_create_deployment(None).availability,
            UnavailableReason::DeploymentNotFound,
            S,
        );
        let images = old.operation_availability(Operation::Images);
        mark_unavailable(images, UnavailableReason::PermissionDenied, 60 * S);
        let policy = config::BreakerConfig {
            min_failures: 1,
            min_failure_percentage: config::Percentage::new(1).unwrap(),
            window: S,
            open_duration: 10 * S,
            max_open_duration: 60 * S,
        };
        let failure = FailureFlags {
            is_first_of_request_on_backend: true,
            opens_circuit_alone: true,
            was_counted_as_success: false,
        };
        let fail = |breaker: &CircuitBreaker, now| {
            breaker.record_failure(&policy, failure, FailureRun::default(), now).unwrap().duration
        };
        assert_eq!([fail(&old.breaker, old_now), fail(&old.breaker, old_now)], [10 * S, 20 * S]);
        old.drain(old_now);

        // Four seconds later.
        let text = serde_json::to_string(&HealthSnapshot::capture(&old_registry, old_now + 4 * S)).unwrap();
        serde_json::from_str::<HealthSnapshot>(&text).unwrap().restore(&new_registry, new_now);

        let new = new_registry.get_or_create_backend(&name);
        let outage = |cell: &AvailabilityCell| {
            let outage = cell.unresolved_outage(new_now).unwrap();
            (outage.unavailable.reason, outage.unavailable.until - new_now, new_now - outage.since)
        };
        let deployment = new.get_or_create_deployment(Some(&deployment_name));
        assert_eq!(outage(&deployment.availability), (UnavailableReason::CoolingDown, 5 * S, 4 * S));
        let flex_cell = deployment.flex_availability().unwrap();
        assert_eq!(outage(flex_cell), (UnavailableReason::CoolingDown, 26 * S, 4 * S));
        assert!(deployment.rejects_stream_options.load(Ordering::Relaxed));
        let images = new.operation_availability(Operation::Images);
        assert_eq!(outage(images), (UnavailableReason::PermissionDenied, 56 * S, 4 * S));
        // Its time was over, but no request had probed: one has to in the new process as well.
        assert_eq!(
            new.get_or_create_deployment(None).availability.availability(new_now),
            Availability::ProbeDue
        );
        assert_eq!(outage(&new.breaker.availability), (UnavailableReason::BreakerOpen, 16 * S, 4 * S));
        assert_eq!(fail(&new.breaker, new_now), 40 * S, "the durations go on doubling");
        assert!(!new.drain(new_now) && new.undrain(new_now) && !new.undrain(new_now));
        assert!(
            new_registry.get_or_create_backend(&BackendName::new("b")).drain(new_now),
            "another backend was not drained"
        );
    }

    #[test]
    fn a_snapshot_of_a_later_version_with_unknown_reasons_and_extreme_times_is_accepted() {
        let now = Instant::now();
        let registry = HealthRegistry::new(now);
        let text = r#"{"backends":[{"name":"a","breaker":{"reason":"moonlight","left_ms":18446744073709551615,
            "age_ms":18446744073709551615},"ended_ms":-9223372036854775808,"new":[],
            "operations":[{"name":"x","resting":{"reason":"cooling","left_ms":1,"age_ms":1}}]}],"more":1}"#;
        serde_json::from_str::<HealthSnapshot>(text).unwrap().restore(&registry, now);
        let breaker = &registry.get_or_create_backend(&BackendName::new("a")).breaker;
        assert_eq!(breaker.availability.availability(now), Availability::Available);
    }

    #[test]
    fn the_serialized_names_stay_as_earlier_versions_know_them() {
        let now = Instant::now();
        let registry = HealthRegistry::new(now);
        let health = registry.get_or_create_backend(&BackendName::new("a"));
        health.drain(now);
        health.get_or_create_deployment(None).rejects_stream_options.store(true, Ordering::Relaxed);
        let snapshot = serde_json::to_value(HealthSnapshot::capture(&registry, now)).unwrap();
        let expected = serde_json::json!({ "backends": [{
            "name": "a",
            "drained": { "reason": "drained", "left_ms": 315_360_000_000_u64, "age_ms": 0 },
            "streak": 0,
            "ended_ms": null,
            "deployments": [{ "name": "", "declines_usage": true }],
            "operations": [],
        }]});
        assert_eq!(snapshot, expected);
    }
}
