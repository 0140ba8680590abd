//! The status as JSON: the response of `GET /api/status`, which the page and `aoai-lb status` show.
//!
//! What is unknown is `null`. Times are RFC 3339 in UTC; `until_ms` is the time left in milliseconds.

pub mod affinity;
pub mod costs;
pub mod expiry;
pub mod limits;
pub mod queue;
pub mod refusals;
pub mod shared;
pub mod sinks;
pub mod traces;

use serde::{Deserialize, Serialize};

use self::affinity::AffinityStatus;
use self::costs::CostsStatus;
use self::expiry::{CertificateStatus, CredentialStatus};
use self::limits::LimitsStatus;
use self::queue::QueueStatus;
use self::refusals::{RefusalsByStatus, RefusedClient};
use self::shared::SharedStatus;
use self::sinks::SinkStatus;
use self::traces::TracesStatus;

/// The response of `GET /api/status`.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/operations.md has them")]
pub struct StatusReport {
    pub build: BuildInfo,
    pub service: ServiceStatus,
    pub process: ProcessStatus,
    pub configuration: ConfigurationSummary,
    #[serde(rename = "in_flight")]
    pub requests_in_flight: u64,
    /// Earlier versions do not send it.
    #[serde(default)]
    pub websockets: OpenWebSockets,
    #[serde(rename = "settled")]
    pub finished_requests: u64,
    pub pools: Vec<PoolStatus>,
    pub backends: Vec<BackendStatus>,
    pub clients: Vec<ClientStatus>,
    /// How far clients use their limits; `null` if no client has limits. Earlier versions do not send it.
    #[serde(default)]
    pub limits: Option<LimitsStatus>,
    /// What responses cost; `null` without prices. Earlier versions do not send it.
    #[serde(default)]
    pub costs: Option<CostsStatus>,
    /// What waits because no backend is free; `null` if requests do not wait. Earlier versions do not send it.
    #[serde(default)]
    pub queue: Option<QueueStatus>,
    /// What this instance shares with others; `null` if it is alone. Earlier versions do not send it.
    #[serde(default)]
    pub shared: Option<SharedStatus>,
    /// The clients whose requests were refused or failed.
    pub refusals: Vec<RefusedClient>,
    /// Where records go; empty without a `record` block.
    pub sinks: Vec<SinkStatus>,
    /// Where traces go; `null` without a `traces` block. Earlier versions do not send it.
    #[serde(default)]
    pub traces: Option<TracesStatus>,
    /// The certificates of listeners and the admin API, and those for backends that require one.
    pub certificates: Vec<CertificateStatus>,
    /// The credentials of backends whose end is known.
    pub credentials: Vec<CredentialStatus>,
    /// Which resource has what. Earlier versions do not send it.
    #[serde(default)]
    pub affinity: Option<AffinityStatus>,
    pub timeline: Timeline,
}

/// The whole, as of the last second.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct ServiceStatus {
    /// `healthy`, `spilling` (a provisioned deployment is full and others serve), `degraded` (something is not
    /// healthy, nobody is refused) or `failing` (clients are refused or failed because of backends).
    pub state: String,
    pub since: Option<String>,
    /// What is not as it should be, the worst first.
    pub problems: Vec<ServiceProblemStatus>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct ServiceProblemStatus {
    /// What it means for the whole.
    pub state: String,
    /// What it is about: a backend, a deployment, a sink, a certificate.
    pub subject: String,
    pub text: String,
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
    /// A successor has taken over; this process finishes its requests.
    pub replaced: bool,
    /// Why drains do not outlive this process, if they do not. Earlier versions do not send it.
    #[serde(default)]
    pub drains_not_saved: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct ConfigurationSummary {
    pub file: Option<String>,
    pub version: u64,
    pub sha256: String,
    pub loaded: String,
    /// Why the last reload failed.
    #[serde(rename = "problem")]
    pub last_reload_error: Option<String>,
    /// The changed keys whose values take effect only with an upgrade.
    pub needs_upgrade: Vec<String>,
}

/// The WebSockets that are open. Those of `responses` are requests in flight during their turns only.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct OpenWebSockets {
    pub responses: u64,
    pub realtime: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct PoolStatus {
    /// `deployment`, `unlisted` (names that no backend lists), or `home` (calls without a name).
    pub kind: String,
    pub deployment: Option<String>,
    /// `round_robin`, `headroom` or `prompt_cache`.
    #[serde(default)]
    pub balance: String,
    /// The share of the input tokens of the last 15 minutes that was read from prompt caches; `null` if that is unknown.
    pub cached_share: Option<f64>,
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
    /// The same share of this backend alone.
    pub cached_share: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct BackendStatus {
    pub name: String,
    pub endpoint: String,
    pub tier: u16,
    pub weight: u16,
    /// `healthy`, or the most important reason why it is not.
    pub state: String,
    pub reason: Option<String>,
    pub since: Option<String>,
    pub until: Option<String>,
    #[serde(rename = "until_ms")]
    pub remaining_ms: Option<u64>,
    #[serde(rename = "in_flight")]
    pub attempts_in_flight: u64,
    /// Attempts started since the start of the process.
    #[serde(rename = "attempts")]
    pub attempts_started: u64,
    /// How long the attempt has waited for a response that has waited longest; `null` if none has for a second.
    pub oldest_attempt_seconds: Option<f64>,
    /// The last error, whether the backend works again or not.
    pub last_error: Option<BackendError>,
    pub counters: AttemptsByOutcome,
    pub last_minute: LastMinuteStats,
    #[serde(rename = "resting")]
    pub unavailable_parts: Vec<UnavailablePart>,
    pub deployments: Vec<DeploymentStatus>,
}

/// An error in the backend's own words.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct BackendError {
    pub at: Option<String>,
    pub status: Option<u16>,
    /// The code in the response, or why there was none.
    pub code: Option<String>,
    pub message: Option<String>,
}

/// Finished attempts since the start of the process.
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
    /// The share of all attempts.
    #[serde(rename = "share")]
    pub attempt_share: Option<f64>,
    #[serde(rename = "p50_ms")]
    pub attempt_p50_ms: Option<u64>,
    #[serde(rename = "p95_ms")]
    pub attempt_p95_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct UnavailablePart {
    /// `null` if it is an operation that is unavailable.
    pub deployment: Option<String>,
    pub operation: Option<String>,
    /// `flex` if only such requests of the deployment are kept away; else `null`.
    #[serde(default)]
    pub service_tier: Option<String>,
    pub reason: String,
    pub since: String,
    pub until: Option<String>,
    #[serde(rename = "until_ms")]
    pub remaining_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct DeploymentStatus {
    /// The name in the resource.
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
    #[serde(flatten)]
    pub refusals: RefusalsByStatus,
}

/// What happened in each step of the last 15 minutes, oldest first; `null` before the start.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Timeline {
    pub step_seconds: u64,
    pub until: String,
    pub requests: Vec<Option<u64>>,
    pub throttled: Vec<Option<u64>>,
    pub failed: Vec<Option<u64>>,
    pub failovers: Vec<Option<u64>>,
    #[serde(rename = "retries_429")]
    pub throttled_attempts: Vec<Option<u64>>,
    pub input_tokens: Vec<Option<u64>>,
    pub output_tokens: Vec<Option<u64>>,
    #[serde(rename = "p50_ms")]
    pub first_byte_p50_ms: Vec<Option<u64>>,
    #[serde(rename = "p95_ms")]
    pub first_byte_p95_ms: Vec<Option<u64>>,
    #[serde(rename = "in_flight")]
    pub max_in_flight: Vec<Option<u64>>,
}
