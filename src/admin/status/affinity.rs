//! Which resource has what: how many ids are remembered, whether that outlives the process, and how each resource
//! was asked and answered.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::gateway::Gateway;

/// The memory of where objects are.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/operations.md has them")]
pub struct AffinityStatus {
    /// The ids that are remembered.
    pub entries: u64,
    /// The ids that fit into `affinity.memory`.
    pub capacity: u64,
    /// The memory that they may take, in bytes.
    pub bytes: u64,
    /// The ids that made room for others since the start.
    pub evicted: u64,
    /// Those of them whose maker was known.
    pub evicted_with_maker: u64,
    /// `affinity.owner`: `off` or `enforce`.
    pub owner: String,
    /// Why it does not outlive this process, if it does not.
    pub not_saved: Option<String>,
    pub resources: Vec<ResourceStatus>,
}

/// A resource: what its backends share.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct ResourceStatus {
    pub name: String,
    /// Those that are disabled are last.
    pub backends: Vec<String>,
    /// The ids of its objects that are remembered.
    pub entries: u64,
    pub asked: AskCounts,
    /// The requests about its objects that ended in the last minute.
    pub last_minute_requests: u64,
    /// How long it last took until it could read what it had made; `null` if it was never late.
    pub last_read_lag_ms: Option<u64>,
}

/// How a resource answered to questions for objects since the start.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct AskCounts {
    pub accepted: u64,
    pub denied: u64,
}

/// The memory of homes as it is now, and what is counted of each resource of the configuration.
pub(in crate::admin) fn affinity_status(gateway: &Gateway, now: Instant) -> AffinityStatus {
    let process = &gateway.process_state;
    let memory = process.homes.statistics();
    let statistics = &process.recorder.metrics().affinity_statistics;
    let resources = gateway.resources.iter().map(|resource| {
        let activity = statistics.activity(&resource.name, now);
        ResourceStatus {
            name: resource.name.to_string(),
            backends: gateway.backends_of(resource).map(ToString::to_string).collect(),
            entries: memory.entries_by_resource.get(&resource.tag).copied().unwrap_or_default(),
            asked: AskCounts { accepted: activity.accepted, denied: activity.denied },
            last_minute_requests: activity.last_minute_requests,
            last_read_lag_ms: activity.last_read_lag.map(whole_milliseconds),
        }
    });
    AffinityStatus {
        entries: memory.entries,
        capacity: memory.capacity,
        bytes: memory.bytes,
        evicted: memory.evicted,
        evicted_with_maker: memory.evicted_with_maker,
        owner: if gateway.enforces_owner() { "enforce" } else { "off" }.to_owned(),
        not_saved: process.homes_keeper.save_problem(),
        resources: resources.collect(),
    }
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
