//! An instance that reports under another id from now on, since another instance has its old one.

use std::time::SystemTime;

use super::super::account::{ClientAccount, ScopeUse};
use super::super::budget_sums::BudgetSums;
use super::super::limit_key::LimitKind;
use crate::config::LimitSet;

impl ClientAccount {
    /// The instance with this id goes on with what this one has reported of budgets, which is what another instance has
    /// used from now on. No report may be on its way.
    pub fn give_up_id(&self, id: &str, time: SystemTime) {
        let time = self.wall_time(time);
        let mut state = self.lock();
        let limits = state.limits.clone();
        for (deployment, scope) in state.all_scopes() {
            let set = match deployment {
                None => Some(&limits.total),
                Some(name) => limits.deployments.get(name),
            };
            if let Some(set) = set {
                scope.give_up_id(id, set, time);
            }
        }
        self.on_change(&mut state.reports, false);
    }
}

impl ScopeUse {
    fn give_up_id(&mut self, id: &str, limits: &LimitSet, time: SystemTime) {
        self.is_changed = true;
        for kind in LimitKind::ALL.into_iter().filter(|kind| kind.value_in(limits).is_some()) {
            let own = self.own_sums(kind, time);
            let lease = self.leases.get_mut(kind);
            if let Some((budget, window)) = self.budget.as_ref().zip(kind.window()) {
                let number = window.number_at(time);
                let sums = |sums| BudgetSums::of_unit(kind.unit(), sums);
                // What it has not reported is of before it started.
                let reported = lease.reported(number).unwrap_or(own).min(own);
                lease.add_other(id, number, reported);
                budget.give_up(window, sums(reported), time);
                budget.note_others(window, number, sums(lease.counted_by_others()));
            }
            lease.forget_reports();
        }
    }
}
