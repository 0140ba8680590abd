//! `limits`, `shed`, and the limits and the class of a client: how much a client may use, and which clients come first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::values::Percentage;
use crate::money::Amount;
use crate::names::DeploymentName;

/// `limits`: what applies to the limits of all clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// What happens to a request that exceeds a limit.
    pub mode: LimitMode,
    /// The limits of each client that has none of its own; `None` for no limits.
    pub default: Option<Arc<ClientLimits>>,
    /// How much of a cached input token counts, in thousandths; at most 1000, which counts it in full.
    pub cached_weight_permille: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { mode: LimitMode::Enforce, default: None, cached_weight_permille: 1000 }
    }
}

/// What happens to a request that exceeds a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LimitMode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is counted and recorded, but not refused.
    Observe,
}

impl LimitMode {
    /// Its name in the file and in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

/// How urgent the requests of a client are. The smaller one comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestClass {
    /// Somebody waits for the response.
    Interactive,
    /// Neither of the others.
    #[default]
    Standard,
    /// Nobody waits for the response.
    Batch,
}

impl RequestClass {
    /// All classes, the one that comes first before the others.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Standard, Self::Batch];

    /// The class of this name; `None` for any other text.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }

    /// Its name in the file, in headers, records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }
}

/// `shed`: for each class, the utilization of a provisioned deployment above which its requests go to the next tier. From
/// 1 % to 100 %; `None` if they stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShedConfig {
    /// That of interactive requests.
    pub interactive: Option<Percentage>,
    /// That of standard requests.
    pub standard: Option<Percentage>,
    /// That of batch requests.
    pub batch: Option<Percentage>,
}

impl ShedConfig {
    /// Whether the requests of some class leave.
    pub fn sheds(&self) -> bool {
        RequestClass::ALL.into_iter().any(|class| self.threshold(class).is_some())
    }

    /// That of a class.
    pub fn threshold(&self, class: RequestClass) -> Option<Percentage> {
        match class {
            RequestClass::Interactive => self.interactive,
            RequestClass::Standard => self.standard,
            RequestClass::Batch => self.batch,
        }
    }
}

/// Limits that apply at the same time. Each is from 1 to 10^15, one by cost in millionths of the currency; `None` for no
/// limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitSet {
    /// Requests within the last 60 seconds.
    pub requests_per_minute: Option<u64>,
    /// Input and output tokens within the last 60 seconds.
    pub tokens_per_minute: Option<u64>,
    /// Input and output tokens within a day, in UTC.
    pub tokens_per_day: Option<u64>,
    /// Input and output tokens within a calendar month, in UTC.
    pub tokens_per_month: Option<u64>,
    /// What responses cost within a day, in UTC.
    pub cost_per_day: Option<Amount>,
    /// What responses cost within a calendar month, in UTC.
    pub cost_per_month: Option<Amount>,
    /// Requests at the same time.
    pub in_flight: Option<u64>,
}

impl LimitSet {
    /// Each limit with its key in the file; those by cost in millionths of the currency.
    pub fn named(&self) -> [(&'static str, Option<u64>); 7] {
        [
            ("requests_per_minute", self.requests_per_minute),
            ("tokens_per_minute", self.tokens_per_minute),
            ("tokens_per_day", self.tokens_per_day),
            ("tokens_per_month", self.tokens_per_month),
            ("cost_per_day", self.cost_per_day.map(Amount::millionths)),
            ("cost_per_month", self.cost_per_month.map(Amount::millionths)),
            ("in_flight", self.in_flight),
        ]
    }
}

/// All limits of one client; at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// For all its requests together.
    pub total: LimitSet,
    /// In addition, for its requests to each of these deployments; each set has at least one limit.
    pub deployments: BTreeMap<DeploymentName, LimitSet>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_known_by_their_names_and_sorted_by_urgency() {
        let names = ["interactive", "standard", "batch"];
        assert_eq!(RequestClass::ALL.map(RequestClass::as_str), names);
        assert_eq!(names.map(RequestClass::parse), RequestClass::ALL.map(Some));
        for unknown in ["", "Batch", "urgent"] {
            assert_eq!(RequestClass::parse(unknown), None, "{unknown}");
        }
        assert!(RequestClass::ALL.is_sorted() && RequestClass::default() == RequestClass::Standard);
    }
}
