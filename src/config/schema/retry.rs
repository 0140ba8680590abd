//! `balance`, `retry`, `cooldown` and `breaker`: which backend is chosen, and what follows a failed attempt.

use std::time::Duration;

use crate::config::values::{Percentage, StatusSet};

/// How requests are distributed among the backends of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalancePolicy {
    /// Weighted round robin.
    RoundRobin,
    /// Weighted round robin, in which backends with little remaining quota take fewer turns.
    Headroom,
    /// Requests with the same beginning go to the same backend, which has it cached. Those with short prompts take turns
    /// as with `Headroom`.
    PromptCache,
}

impl BalancePolicy {
    /// The word for it in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Headroom => "headroom",
            Self::PromptCache => "prompt_cache",
        }
    }
}

/// When a request is sent again after a failed attempt.
#[derive(Clone, Debug)]
pub struct RetryConfig {
    /// The most attempts after the first; at most 100.
    pub max_retries: u32,
    /// The response statuses that lead to an attempt on another backend.
    pub retryable_statuses: StatusSet,
    /// Measured from the end of the request body: no retry starts later than this.
    pub retry_start_time_limit: Duration,
    /// After every backend has failed in a request, no further attempt starts later than this.
    pub max_outage: Duration,
    /// The longest that a request waits for a cooldown to end before it spills over to the next tier.
    pub max_cooldown_wait: Duration,
    /// While backends fail, retries are limited to this share of the pool's recent requests.
    pub budget_percentage: Percentage,
    /// How long and how much of a stream is held back until its first content arrives.
    pub stream_hold: StreamHoldLimits,
}

/// Limits on holding back a stream until its first content. Until then Azure may still report an error in
/// a stream with status 200, and the request can move to another backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHoldLimits {
    /// Measured from the response head; zero disables holding.
    pub max_time: Duration,
    /// Above zero.
    pub max_bytes: u64,
}

/// How long a throttled deployment is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CooldownConfig {
    /// Used if the response has no usable hint such as `Retry-After`; above zero.
    pub default_duration: Duration,
    /// Limits what the hint asks for; at least `default_duration`.
    pub max_duration: Duration,
}

/// When the circuit breaker of a backend opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// The circuit opens after this many failures within the window; at least 1.
    pub min_failures: u32,
    /// The failures must also be at least this share of all attempts within the window.
    pub min_failure_percentage: Percentage,
    /// The sliding window in which attempts are counted; above zero.
    pub window: Duration,
    /// How long the circuit is open the first time; above zero.
    pub open_duration: Duration,
    /// Each time the backend fails again after that, the duration doubles, up to this; at least
    /// `open_duration`.
    pub max_open_duration: Duration,
}
