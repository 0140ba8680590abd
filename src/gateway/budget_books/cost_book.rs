//! The sums of costs that the status shows, as books of costs keep them.

use std::time::SystemTime;

use super::account::BudgetScope;
use super::{BookSubject, BudgetBooks};
use crate::admission::budgets::{BudgetUse, UtcWindows, WindowSums};
use crate::admission::limits::BudgetWindow;
use crate::money::Amount;
use crate::names::ClientName;
use crate::record::cost_statistics::{CostBook, CostSum, CostsOfClient};

impl BudgetBooks {
    /// Books of costs, in memory until they get a directory.
    pub fn of_costs() -> Self {
        Self::new(BookSubject::Costs)
    }
}

impl CostBook for BudgetBooks {
    fn add(&self, client: Option<&ClientName>, costs: CostSum, arrived_at: SystemTime) {
        let scope = BudgetScope { client: client.cloned(), deployment: None };
        let sums = WindowSums {
            cost_millionths: costs.amount.millionths(),
            provisioned: costs.provisioned,
            without_cost: costs.unknown,
            ..WindowSums::default()
        };
        // Of a day that has passed, only its month may still count.
        self.account(&scope).add_use(BudgetUse::of_both(sums, UtcWindows::at(arrived_at)));
    }

    fn costs(&self, now: SystemTime) -> Vec<CostsOfClient> {
        let windows = UtcWindows::at(now);
        let sum = |sums: WindowSums| CostSum {
            amount: Amount::from_millionths(sums.cost_millionths),
            provisioned: sums.provisioned,
            unknown: sums.without_cost,
        };
        let mut costs: Vec<CostsOfClient> = self
            .accounts
            .all()
            .into_iter()
            .filter_map(|(scope, account)| {
                let month = account.sums(BudgetWindow::Month, windows);
                (!month.is_empty()).then(|| CostsOfClient {
                    client: scope.client,
                    today: sum(account.sums(BudgetWindow::Day, windows)),
                    month: sum(month),
                })
            })
            .collect();
        costs.sort_by(|a, b| a.client.cmp(&b.client));
        costs
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;

    fn at(time: &str) -> SystemTime {
        time.parse::<DateTime<Utc>>().unwrap().into()
    }

    #[test]
    fn days_and_months_are_those_of_arrival_in_utc() {
        let books = BudgetBooks::of_costs();
        let known =
            |millionths| CostSum { amount: Amount::from_millionths(millionths), ..CostSum::default() };
        let record = |time, cost| books.add(None, cost, at(time));
        let sums = |now| {
            let sum = |sum: CostSum| (sum.amount.millionths(), sum.provisioned, sum.unknown);
            let costs = books.costs(at(now));
            costs.iter().map(|costs| (sum(costs.today), sum(costs.month))).collect::<Vec<_>>()
        };
        assert_eq!(sums("2026-11-29T00:00:00Z"), []);
        record("2026-11-29T10:00:00Z", known(5));
        record("2026-11-29T11:00:00Z", CostSum { unknown: 1, ..CostSum::default() });
        record("2026-11-29T11:00:00Z", CostSum { provisioned: 1, ..CostSum::default() });
        assert_eq!(sums("2026-11-29T23:59:59Z"), [((5, 1, 1), (5, 1, 1))]);
        assert_eq!(sums("2026-11-30T00:00:00Z"), [((0, 0, 0), (5, 1, 1))]);
        record("2026-11-30T00:00:00Z", known(7));
        // One that has arrived yesterday and ends now.
        record("2026-11-29T23:59:59Z", known(100));
        assert_eq!(sums("2026-11-30T12:00:00Z"), [((7, 0, 0), (112, 1, 1))]);
        record("2026-12-01T00:00:00Z", known(1));
        record("2026-11-30T23:59:59Z", known(1000));
        assert_eq!(sums("2026-12-01T12:00:00Z"), [((1, 0, 0), (1, 0, 0))]);
        assert_eq!(sums("2027-12-01T12:00:00Z"), []);
    }
}
