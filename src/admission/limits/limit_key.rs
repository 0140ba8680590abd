//! The names of limits, as the configuration spells them, and what is told of one that is reached.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::amounts::LimitUnit;
use super::budget_window::BudgetWindow;
use crate::config::LimitSet;
use crate::money::Amount;
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
    /// `cost_per_day`.
    CostPerDay,
    /// `cost_per_month`.
    CostPerMonth,
    /// `in_flight`.
    InFlight,
}

impl LimitKind {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::TokensPerDay,
        Self::TokensPerMonth,
        Self::CostPerDay,
        Self::CostPerMonth,
        Self::InFlight,
    ];

    /// Its key in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::TokensPerDay => "tokens_per_day",
            Self::TokensPerMonth => "tokens_per_month",
            Self::CostPerDay => "cost_per_day",
            Self::CostPerMonth => "cost_per_month",
            Self::InFlight => "in_flight",
        }
    }

    /// Its value among these limits, in its unit.
    pub fn value_in(self, limits: &LimitSet) -> Option<u64> {
        match self {
            Self::RequestsPerMinute => limits.requests_per_minute,
            Self::TokensPerMinute => limits.tokens_per_minute,
            Self::TokensPerDay => limits.tokens_per_day,
            Self::TokensPerMonth => limits.tokens_per_month,
            Self::CostPerDay => limits.cost_per_day.map(Amount::millionths),
            Self::CostPerMonth => limits.cost_per_month.map(Amount::millionths),
            Self::InFlight => limits.in_flight,
        }
    }

    /// What counts against it.
    pub fn unit(self) -> LimitUnit {
        match self {
            Self::RequestsPerMinute | Self::InFlight => LimitUnit::Requests,
            Self::TokensPerMinute | Self::TokensPerDay | Self::TokensPerMonth => LimitUnit::Tokens,
            Self::CostPerDay | Self::CostPerMonth => LimitUnit::Cost,
        }
    }

    /// An amount of it as people read it.
    pub fn shown(self, amount: u64) -> ShownAmount {
        match self.unit() {
            LimitUnit::Requests | LimitUnit::Tokens => ShownAmount::Count(amount),
            // The shortest text of such a number is exact up to 2^53 millionths.
            LimitUnit::Cost => ShownAmount::Money(amount as f64 / 1e6),
        }
    }

    /// The day or month of a budget; `None` for other limits.
    pub fn window(self) -> Option<BudgetWindow> {
        match self {
            Self::TokensPerDay | Self::CostPerDay => Some(BudgetWindow::Day),
            Self::TokensPerMonth | Self::CostPerMonth => Some(BudgetWindow::Month),
            Self::RequestsPerMinute | Self::TokensPerMinute | Self::InFlight => None,
        }
    }
}

/// An amount of a limit: a whole number, or a decimal one in the currency of the prices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ShownAmount {
    /// Of requests or tokens.
    Count(u64),
    /// Of money.
    Money(f64),
}

impl ShownAmount {
    /// As a number of either kind.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Count(count) => count as f64,
            Self::Money(amount) => amount,
        }
    }
}

impl fmt::Display for ShownAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Money(amount) => amount.fmt(f),
        }
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
    /// Its value, in its unit.
    pub limit: u64,
    /// What the request would add to it: an estimate where tokens or costs are limited.
    pub demand: u64,
    /// How long the client should wait; `None` if a wait does not help, because the request alone is too much.
    pub wait: Option<Duration>,
}
