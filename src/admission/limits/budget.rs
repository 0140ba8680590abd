//! Where budgets are kept. They outlive the process, which is not the business of limits.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::limit_key::LimitKind;
use crate::admission::budgets::{end_of_day, end_of_month};
use crate::config::{ClientLimits, LimitSet};
use crate::names::DeploymentName;

/// What is used of a client's budgets, in total or for one deployment.
pub trait Budget: Debug + Send + Sync {
    /// Adds tokens that were used.
    fn add(&self, tokens: u64, now: SystemTime);
    /// The tokens of the UTC day and month that it is now.
    fn used(&self, now: SystemTime) -> (u64, u64);
}

/// The budgets of one client that have limits.
#[derive(Debug)]
pub(super) struct ClientBudgets {
    total: Option<Arc<dyn Budget>>,
    deployments: HashMap<DeploymentName, Arc<dyn Budget>>,
}

impl ClientBudgets {
    /// Those that these limits need. `open` finds the budget of a deployment, or that of all together.
    pub(super) fn new(
        limits: &ClientLimits,
        open: &dyn Fn(Option<&DeploymentName>) -> Arc<dyn Budget>,
    ) -> Self {
        let needs_budget = |limits: &LimitSet| {
            LimitKind::ALL.into_iter().any(|kind| kind.is_budget() && kind.value_in(limits).is_some())
        };
        let own = limits.deployments.iter().filter(|(_, own)| needs_budget(own));
        Self {
            total: needs_budget(&limits.total).then(|| open(None)),
            deployments: own.map(|(name, _)| (name.clone(), open(Some(name)))).collect(),
        }
    }

    /// The budget of all requests, and that of those for this deployment.
    pub(super) fn of(&self, deployment: Option<&DeploymentName>) -> [Option<&dyn Budget>; 2] {
        let own = deployment.and_then(|deployment| self.deployments.get(deployment));
        [self.total.as_deref(), own.map(|own| &**own)]
    }
}

/// What was used in the window of a budget's limit.
pub(super) fn used_in_window(budget: &dyn Budget, kind: LimitKind, now: SystemTime) -> u64 {
    let (day, month) = budget.used(now);
    if kind == LimitKind::TokensPerDay { day } else { month }
}

/// How long the window of a budget's limit goes on.
pub(super) fn time_until_window_ends(kind: LimitKind, now: SystemTime) -> Duration {
    let end = if kind == LimitKind::TokensPerDay { end_of_day(now) } else { end_of_month(now) };
    end.duration_since(now).unwrap_or_default()
}
