//! What an instance reports of one client's limits, and what it does with the answer.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::super::account::{ClientAccount, ScopeUse};
use super::super::budget_sums::{BudgetSums, UnitSums};
use super::super::limit_key::{LimitKey, LimitKind};
use super::lease::{LeaseDemand, LeaseGrant, ReportTiming};
use super::lease_desk::{LeaseDesk, ReportRequest};
use super::report_state::ReportState;
use crate::config::LimitSet;
use crate::names::DeploymentName;

const SECONDS_PER_MINUTE: u64 = 60;
/// A limit is scarce if no more than this part of it is left.
const SCARCE_DIVISOR: u64 = 4;
/// How many places of `in_flight` are leased in advance: a part of those that are in use.
const PLACES_IN_ADVANCE_DIVISOR: u64 = 8;

/// What a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// What has changed or is held.
    Changes,
    /// All limits, so that this instance knows what the others have used.
    Everything,
    /// All limits, for the last time: nothing is held or leased any more.
    Last,
}

/// The report of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitReport {
    /// The limit.
    pub key: LimitKey,
    /// Its value.
    pub limit: u64,
    /// What this instance has used.
    pub used: UsedAmounts,
    /// What its requests hold beyond that.
    pub held: u64,
    /// Whether this process has reported it before, under the id that this instance has now.
    pub is_known: bool,
    demand: LeaseDemand,
}

/// What an instance has used of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsedAmounts {
    /// Of a rate, by the server's second.
    BySecond(Vec<(u64, u64)>),
    /// Of a budget.
    InWindow {
        /// The UTC day or month, as in [`UtcWindows`](crate::admission::budgets::UtcWindows).
        window: u32,
        /// What was counted, in the unit of the limit.
        sums: UnitSums,
        /// What the other instances had counted, as this one knows it.
        others: Vec<(String, UnitSums)>,
    },
    /// Nothing counts after its end.
    Nothing,
}

/// What the reports of a scope's limits have in common.
#[derive(Clone, Copy)]
struct ReportContext<'c> {
    deployment: Option<&'c DeploymentName>,
    second_offset: i64,
    is_last: bool,
    now: Duration,
    time: SystemTime,
}

/// A report that is on its way. If it is dropped, it has failed.
#[derive(Debug)]
pub struct OpenReport {
    account: Arc<ClientAccount>,
    desk: Arc<LeaseDesk>,
    limits: Vec<LimitReport>,
    number: u64,
    begun_at: Duration,
    is_answered: bool,
}

impl LimitReport {
    /// What is still leased.
    pub fn free(&self) -> u64 {
        self.demand.free
    }

    /// What requests wait for.
    pub fn short(&self) -> u64 {
        self.demand.short
    }

    /// What may be leased in advance.
    pub fn extra(&self) -> u64 {
        self.demand.extra
    }

    fn window(&self) -> Option<u32> {
        match &self.used {
            UsedAmounts::InWindow { window, .. } => Some(*window),
            UsedAmounts::BySecond(_) | UsedAmounts::Nothing => None,
        }
    }
}

impl ClientAccount {
    /// Begins a report; `None` if one is on its way, which another one will follow.
    pub fn begin_report(
        self: &Arc<Self>,
        desk: &Arc<LeaseDesk>,
        kind: ReportKind,
        now: Instant,
        time: SystemTime,
    ) -> Option<OpenReport> {
        let (now, time) = (self.time_of(now), self.wall_time(time));
        let mut state = self.lock();
        if state.reports.is_in_progress() {
            state.reports.is_wanted = true;
            return None;
        }
        state.reports.begun += 1;
        state.reports.last_begun_at = now;
        let ReportState { is_wanted, is_requested, is_changed, .. } = &mut state.reports;
        (*is_wanted, *is_requested, *is_changed) = (false, false, false);
        let (number, limits) = (state.reports.begun, state.limits.clone());
        let mut reports = Vec::new();
        for (deployment, scope) in state.all_scopes() {
            let set = match deployment {
                None => Some(&limits.total),
                Some(name) => limits.deployments.get(name),
            };
            let Some(set) = set else { continue };
            if kind == ReportKind::Changes && !scope.is_changed && !scope.holds_something() {
                continue;
            }
            scope.is_changed = false;
            let context = ReportContext {
                deployment,
                second_offset: desk.second_offset(),
                is_last: kind == ReportKind::Last,
                now,
                time,
            };
            reports.extend(LimitKind::ALL.into_iter().filter_map(|kind| scope.report(kind, set, context)));
        }
        drop(state);
        let (account, desk) = (Arc::clone(self), Arc::clone(desk));
        Some(OpenReport { account, desk, limits: reports, number, begun_at: now, is_answered: false })
    }

    /// Whether something has to be reported: a change, or that this instance lives and still holds something.
    pub fn has_to_report(&self, heartbeat: Duration, now: Instant) -> bool {
        let now = self.time_of(now);
        let mut state = self.lock();
        if state.reports.is_changed {
            return true;
        }
        let is_due = now.saturating_sub(state.reports.last_begun_at) >= heartbeat;
        is_due && state.all_scopes().any(|(_, scope)| scope.holds_something())
    }

    /// Whether there is nothing to report until a request comes.
    pub fn is_at_rest(&self) -> bool {
        let mut state = self.lock();
        !state.reports.is_changed && !state.all_scopes().any(|(_, scope)| scope.holds_something())
    }
}

impl OpenReport {
    /// What is reported, limit by limit.
    pub fn limits(&self) -> &[LimitReport] {
        &self.limits
    }

    /// The server has answered, with a grant for each limit. Returns whether another report has to follow at once.
    pub fn finish(mut self, grants: Vec<LeaseGrant>, now: Instant, time: SystemTime) -> bool {
        self.is_answered = true;
        let (now, time) = (self.account.time_of(now), self.account.wall_time(time));
        let timing =
            ReportTiming { second_offset: self.desk.second_offset(), reported_at: self.begun_at, now };
        let mut state = self.account.lock();
        state.reports.finish(self.number, true);
        for (report, grant) in self.limits.iter().zip(grants) {
            let (total, own) = state.scopes(report.key.deployment.as_ref(), true);
            let (scope, kind) = (own.unwrap_or(total), report.key.kind);
            // The end of the process may have lost the last second of a budget that it had reported.
            if let UsedAmounts::InWindow { sums, .. } = &report.used {
                scope.add_missing(kind, grant.own.missing_from(*sums), time);
            }
            let is_scarce = grant.room <= report.limit / SCARCE_DIVISOR;
            let lease = scope.leases.get_mut(kind);
            lease.finish_report(report.demand, grant, is_scarce, report.window(), timing);
            let window = kind.window().zip(report.window());
            if let Some((budget, (window, number))) = scope.budget.as_ref().zip(window) {
                let others = BudgetSums::of_unit(kind.unit(), lease.counted_by_others());
                budget.note_others(window, number, others);
            }
        }
        let is_wanted = state.reports.is_wanted;
        drop(state);
        self.account.wake_waiting();
        is_wanted
    }
}

impl Drop for OpenReport {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        self.account.lock().reports.finish(self.number, false);
        self.account.wake_waiting();
        self.desk.hand_in(ReportRequest::Changed(self.account.client.clone()));
    }
}

impl ScopeUse {
    /// Whether the server counts something that ends only with a report.
    fn holds_something(&self) -> bool {
        self.in_flight > 0 || !self.reserved.is_zero() || self.leases.has_free()
    }

    /// Adds to a budget's limit what the server knows and this process does not.
    fn add_missing(&self, kind: LimitKind, sums: UnitSums, time: SystemTime) {
        if let Some((budget, window)) = self.budget.as_ref().zip(kind.window()) {
            budget.add_missing(window, BudgetSums::of_unit(kind.unit(), sums), time);
        }
    }

    /// The report of one limit; `None` if there is no such limit.
    fn report(
        &mut self,
        kind: LimitKind,
        limits: &LimitSet,
        context: ReportContext<'_>,
    ) -> Option<LimitReport> {
        let ReportContext { deployment, second_offset, is_last, now, time } = context;
        let limit = kind.value_in(limits)?;
        let (used, held, in_advance) = match (kind, kind.window()) {
            (LimitKind::InFlight, _) => {
                (UsedAmounts::Nothing, self.in_flight, self.in_flight / PLACES_IN_ADVANCE_DIVISOR)
            }
            (_, Some(window)) => {
                let number = window.number_at(time);
                let used = UsedAmounts::InWindow {
                    window: number,
                    sums: self.own_sums(kind, time),
                    others: self.leases.get_mut(kind).known_by_instance(Some(number)),
                };
                (used, self.reserved.in_unit(kind.unit()), limit / window.seconds())
            }
            (_, None) => {
                let (amounts, held) = self
                    .window(kind)
                    .map_or_else(Default::default, |window| (window.amounts(now), window.running_for_long()));
                let to_server = |(second, amount): (u64, u64)| {
                    let second = i64::try_from(second).ok()?.checked_add(second_offset)?;
                    Some((u64::try_from(second).ok()?, amount))
                };
                let amounts = amounts.into_iter().filter_map(to_server).collect();
                (UsedAmounts::BySecond(amounts), held, limit / SECONDS_PER_MINUTE)
            }
        };
        let lease = self.leases.get_mut(kind);
        let is_known = lease.is_known();
        let demand = if is_last { LeaseDemand::default() } else { lease.begin_report(in_advance, now) };
        let key = LimitKey { deployment: deployment.cloned(), kind };
        Some(LimitReport { key, limit, used, held: if is_last { 0 } else { held }, is_known, demand })
    }
}
