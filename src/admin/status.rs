//! The state of things as data: `GET /api/status`, and what the page and `aoai-lb status` show.
//!
//! Unknown is `null`. Moments are RFC 3339 in UTC; `until_ms` is how long something still lasts.

use serde::{Deserialize, Serialize};

/// What `GET /api/status` answers.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; the README has them")]
pub struct StatusReport {
    pub build: BuildInfo,
    pub process: ProcessStatus,
    pub configuration: ConfigurationSummary,
    pub in_flight: u64,
    #[serde(rename = "settled")]
    pub finished_requests: u64,
    pub pools: Vec<PoolStatus>,
    pub backends: Vec<BackendStatus>,
    pub clients: Vec<ClientStatus>,
    pub timeline: Timeline,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct BuildInfo {
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
pub struct ConfigurationSummary {
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
    pub members: Vec<PoolMemberStatus>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct PoolMemberStatus {
    pub backend: String,
    #[serde(rename = "upstream")]
    pub upstream_deployment: Option<String>,
    pub weight: u16,
    pub state: String,
    #[serde(rename = "until_ms")]
    pub remaining_ms: Option<u64>,
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
    #[serde(rename = "until_ms")]
    pub remaining_ms: Option<u64>,
    pub in_flight: u64,
    /// Begun since the start of the process.
    pub attempts: u64,
    pub counters: AttemptsByOutcome,
    pub last_minute: LastMinuteStats,
    #[serde(rename = "resting")]
    pub unavailable_parts: Vec<UnavailablePart>,
    pub deployments: Vec<DeploymentStatus>,
}

/// Tries that are over, since the start of the process.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct AttemptsByOutcome {
    pub answered: u64,
    pub throttled: u64,
    pub failed: u64,
    pub refused: u64,
    pub client_gone: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct LastMinuteStats {
    pub attempts: u64,
    pub throttled: u64,
    pub failed: u64,
    /// Of all tries.
    #[serde(rename = "share")]
    pub attempt_share: Option<f64>,
    pub p50_ms: Option<u64>,
    pub p95_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct UnavailablePart {
    /// `null` where it is an operation that rests.
    pub deployment: Option<String>,
    pub operation: Option<String>,
    pub reason: String,
    pub since: String,
    pub until: Option<String>,
    #[serde(rename = "until_ms")]
    pub remaining_ms: Option<u64>,
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
    #[serde(rename = "until_ms")]
    pub remaining_ms: Option<u64>,
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
    pub total: UsageCounts,
    pub last_minute: UsageCounts,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct UsageCounts {
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
