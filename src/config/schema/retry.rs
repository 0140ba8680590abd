//! `balance`, `retry`, `cooldown` and `breaker`.

use std::time::Duration;

use crate::config::values::{Percentage, StatusSet};

/// How the backends of a tier take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalancePolicy {
    /// One after the other, by weight.
    RoundRobin,
    /// The same, but those that are about to refuse take fewer turns.
    Headroom,
}

/// When another attempt is made.
#[derive(Clone, Debug)]
pub struct RetryConfig {
    /// Tries after the first, at most 100.
    pub max_retries: u32,
    /// The statuses that lead to another backend.
    pub retryable_statuses: StatusSet,
    /// From the end of the request body; no attempt after the first starts later.
    pub deadline: Duration,
    /// The most one request waits for cooldowns before it goes to the next tier.
    pub max_cooldown_wait: Duration,
    /// How many more attempts than requests a pool may cost that is failing.
    pub budget: Percentage,
    /// How much of a stream is held until it is known to be an answer.
    pub stream_hold: StreamHoldLimits,
}

/// Bounds on what is held of a stream before its first content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHoldLimits {
    /// From the response head; zero holds nothing.
    pub max_time: Duration,
    /// Bytes; above zero.
    pub max_bytes: u64,
}

/// How long a throttled deployment rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CooldownConfig {
    /// Where the answer gives no usable hint; above zero.
    pub default_duration: Duration,
    /// Where the hint asks for more; at least `default`.
    pub max_duration: Duration,
}

/// When a failing backend is left alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures within the window; at least 1.
    pub min_failures: u32,
    /// The part of all attempts within the window that they also have to be.
    pub min_failure_ratio: Percentage,
    /// How far back is looked; above zero.
    pub window: Duration,
    /// How long it is left alone the first time; above zero.
    pub open_duration: Duration,
    /// The most, when it comes back only to fail; at least `open`.
    pub max_open_duration: Duration,
}
