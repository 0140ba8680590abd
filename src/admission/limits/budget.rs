//! Where budgets are kept. They outlive the process, which is not the business of limits.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use super::limit_key::LimitKind;
use crate::admission::budgets::{UtcWindows, end_of_day, end_of_month};
use crate::config::{ClientLimits, LimitSet};
use crate::names::DeploymentName;

/// What is used of a client's budgets, in total or for one deployment.
pub trait Budget: Debug + Send + Sync {
    /// Adds tokens that were used.
    fn add(&self, tokens: u64, now: SystemTime);
    /// Adds tokens to the day or the month alone, since another instance knows that they were used.
    fn add_missing(&self, kind: LimitKind, tokens: u64, now: SystemTime);
    /// Another instance counts these tokens of the day or the month from now on.
    fn give_up(&self, kind: LimitKind, tokens: u64, now: SystemTime);
    /// The tokens of the UTC day and month that it is now.
    fn used(&self, now: SystemTime) -> (u64, u64);
    /// The other instances have used at least this many tokens in a day or month, as [`UtcWindows`] counts them.
    fn note_others(&self, kind: LimitKind, window: u32, tokens: u64);
    /// The tokens that the other instances had used in a day or month when that was last known.
    fn others(&self, kind: LimitKind, window: u32) -> u64;
}

/// The scopes of a client whose budget these limits limit: `None` for all requests, or a deployment.
pub(super) fn scopes_with_budget(limits: &ClientLimits) -> impl Iterator<Item = Option<&DeploymentName>> {
    let is_limited = |limits: &LimitSet| {
        LimitKind::ALL.into_iter().any(|kind| kind.is_budget() && kind.value_in(limits).is_some())
    };
    let own = limits.deployments.iter().map(|(name, own)| (Some(name), own));
    let scopes = std::iter::once((None, &limits.total)).chain(own);
    scopes.filter(move |(_, limits)| is_limited(limits)).map(|(scope, _)| scope)
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

/// The day or month of a budget's limit; `None` for other limits.
pub(super) fn window_of(kind: LimitKind, time: SystemTime) -> Option<u32> {
    let windows = UtcWindows::at(time);
    match kind {
        LimitKind::TokensPerDay => Some(windows.day),
        LimitKind::TokensPerMonth => Some(windows.month),
        LimitKind::RequestsPerMinute | LimitKind::TokensPerMinute | LimitKind::InFlight => None,
    }
}
