//! Where budgets are kept. They outlive the process, which is not the business of limits.

use std::fmt::Debug;
use std::time::SystemTime;

use super::amounts::Amounts;
use super::budget_sums::BudgetSums;
use super::budget_window::BudgetWindow;
use super::limit_key::LimitKind;
use crate::admission::budgets::UtcWindows;
use crate::config::{ClientLimits, LimitSet};
use crate::names::DeploymentName;

/// What is used of a client's budgets, in total or for one deployment.
pub trait Budget: Debug + Send + Sync {
    /// Adds what was used.
    fn add(&self, amounts: Amounts, now: SystemTime);
    /// Adds what corrects an earlier booking, to the day and the month that it was booked in.
    fn correct(&self, windows: UtcWindows, correction: BudgetSums);
    /// Adds to the day or the month alone, since another instance knows that it was counted.
    fn add_missing(&self, window: BudgetWindow, sums: BudgetSums, now: SystemTime);
    /// Another instance counts this part of the day or the month from now on.
    fn give_up(&self, window: BudgetWindow, sums: BudgetSums, now: SystemTime);
    /// What was counted in the UTC day or month that it is now.
    fn counted(&self, window: BudgetWindow, now: SystemTime) -> BudgetSums;
    /// The other instances have counted at least this in the day or month with this number, as [`UtcWindows`] counts
    /// them.
    fn note_others(&self, window: BudgetWindow, number: u32, sums: BudgetSums);
    /// What the other instances had counted in the day or month with this number when that was last known.
    fn others(&self, window: BudgetWindow, number: u32) -> BudgetSums;
}

/// The scopes of a client whose budget these limits limit: `None` for all requests, or a deployment.
pub(super) fn scopes_with_budget(limits: &ClientLimits) -> impl Iterator<Item = Option<&DeploymentName>> {
    let is_limited = |limits: &LimitSet| {
        LimitKind::ALL.into_iter().any(|kind| kind.window().is_some() && kind.value_in(limits).is_some())
    };
    let own = limits.deployments.iter().map(|(name, own)| (Some(name), own));
    let scopes = std::iter::once((None, &limits.total)).chain(own);
    scopes.filter(move |(_, limits)| is_limited(limits)).map(|(scope, _)| scope)
}

/// Whether one of these limits is about cost.
pub(super) fn limits_cost(limits: &LimitSet) -> bool {
    limits.cost_per_day.is_some() || limits.cost_per_month.is_some()
}
