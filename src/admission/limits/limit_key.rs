//! The names of limits, as the configuration spells them, and what is told of one that is reached.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::LimitSet;
use crate::names::DeploymentName;

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// `requests_per_minute`.
    RequestsPerMinute,
    /// `tokens_per_minute`.
    TokensPerMinute,
    /// `tokens_per_day`.
    TokensPerDay,
    /// `tokens_per_month`.
    TokensPerMonth,
    /// `in_flight`.
    InFlight,
}

impl LimitKind {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 5] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::TokensPerDay,
        Self::TokensPerMonth,
        Self::InFlight,
    ];

    /// Its key in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::TokensPerDay => "tokens_per_day",
            Self::TokensPerMonth => "tokens_per_month",
            Self::InFlight => "in_flight",
        }
    }

    /// Its value among these limits.
    pub fn value_in(self, limits: &LimitSet) -> Option<u64> {
        match self {
            Self::RequestsPerMinute => limits.requests_per_minute,
            Self::TokensPerMinute => limits.tokens_per_minute,
            Self::TokensPerDay => limits.tokens_per_day,
            Self::TokensPerMonth => limits.tokens_per_month,
            Self::InFlight => limits.in_flight,
        }
    }

    /// Whether it is about tokens, as opposed to requests.
    pub fn counts_tokens(self) -> bool {
        !matches!(self, Self::RequestsPerMinute | Self::InFlight)
    }

    /// Whether it is a budget: of a UTC day or month.
    pub fn is_budget(self) -> bool {
        matches!(self, Self::TokensPerDay | Self::TokensPerMonth)
    }
}

/// A limit of a client, in total or for one deployment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LimitKey {
    /// `None`: for all requests.
    pub deployment: Option<DeploymentName>,
    /// What it is about.
    pub kind: LimitKind,
}

impl fmt::Display for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(deployment) = &self.deployment {
            write!(f, "deployments.{deployment}.")?;
        }
        f.write_str(self.kind.key())
    }
}

/// A limit that a request would exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitReached {
    /// The limit.
    pub key: LimitKey,
    /// Its value.
    pub limit: u64,
    /// What the request would add to it: an estimate where tokens are limited.
    pub demand: u64,
    /// How long the client should wait; `None` if a wait does not help, because the request alone is too much.
    pub wait: Option<Duration>,
}
