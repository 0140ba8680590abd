//! What the responses to each client cost today and in this month, for the status page.
//!
//! The writer's thread counts; it begins anew with the process, so the status says since when.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use chrono::{Datelike as _, NaiveDate};

use super::cost::{ResponseCost, utc_day};
use super::exchange::FinishedExchange;
use crate::money::Amount;
use crate::names::ClientName;

/// Sums of costs since the start of the process.
#[derive(Debug)]
pub struct CostStatistics {
    /// When counting began.
    pub started_at: SystemTime,
    clients: Mutex<HashMap<Option<ClientName>, ClientCosts>>,
}

/// A sum of costs, and what it leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostSum {
    /// The sum.
    pub amount: Amount,
    /// Responses that are part of what their backend costs by the hour.
    pub provisioned: u64,
    /// Responses whose cost is not known.
    pub unknown: u64,
}

impl CostSum {
    fn count(&mut self, cost: ResponseCost) {
        match cost {
            ResponseCost::Known(amount) => self.amount = self.amount.saturating_add(amount),
            ResponseCost::Provisioned => self.provisioned += 1,
            ResponseCost::Unknown => self.unknown += 1,
            ResponseCost::NotBilled => {}
        }
    }
}

/// The sums of the latest day and month of a client.
#[derive(Debug, Default)]
struct ClientCosts {
    latest_day: NaiveDate,
    day: CostSum,
    month: CostSum,
}

/// What the responses to a client cost.
#[derive(Debug, PartialEq, Eq)]
pub struct CostsOfClient {
    /// Its name; `None` stands for all clients that are unknown or have no names.
    pub client: Option<ClientName>,
    /// Of the requests that have arrived today, in UTC.
    pub today: CostSum,
    /// Of those that have arrived in this month.
    pub month: CostSum,
}

impl CostStatistics {
    /// Sums that are all 0.
    pub fn new(started_at: SystemTime) -> Self {
        Self { started_at, clients: Mutex::default() }
    }

    /// Counts an exchange for the day on which it has arrived.
    pub(super) fn record(&self, exchange: &FinishedExchange, cost: ResponseCost) {
        if cost == ResponseCost::NotBilled {
            return;
        }
        let name = exchange.client.as_ref().and_then(|client| client.name.clone());
        let day = utc_day(exchange.received_at);
        let mut clients = self.lock();
        let costs = clients.entry(name).or_default();
        if day > costs.latest_day {
            if !is_same_month(day, costs.latest_day) {
                costs.month = CostSum::default();
            }
            costs.day = CostSum::default();
            costs.latest_day = day;
        }
        if day == costs.latest_day {
            costs.day.count(cost);
        }
        if is_same_month(day, costs.latest_day) {
            costs.month.count(cost);
        }
    }

    /// The sums of the clients that have any in this month, by name.
    pub fn snapshot(&self, now: SystemTime) -> Vec<CostsOfClient> {
        let today = utc_day(now);
        let clients = self.lock();
        let of_month = clients.iter().filter(|(_, costs)| is_same_month(costs.latest_day, today));
        let mut costs: Vec<CostsOfClient> = of_month
            .map(|(client, costs)| CostsOfClient {
                client: client.clone(),
                today: if costs.latest_day == today { costs.day } else { CostSum::default() },
                month: costs.month,
            })
            .collect();
        costs.sort_by(|a, b| a.client.cmp(&b.client));
        costs
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<ClientName>, ClientCosts>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_same_month(a: NaiveDate, b: NaiveDate) -> bool {
    (a.year(), a.month()) == (b.year(), b.month())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::{DateTime, Utc};

    use super::*;

    fn at(time: &str) -> SystemTime {
        time.parse::<DateTime<Utc>>().unwrap().into()
    }

    #[test]
    fn days_and_months_are_those_of_arrival_in_utc() {
        let statistics = CostStatistics::new(at("2026-11-29T00:00:00Z"));
        let record = |time, cost| {
            let exchange = FinishedExchange::answered(Arc::from("019"), at(time), "POST");
            statistics.record(&exchange, cost);
        };
        let known = |millionths| ResponseCost::Known(Amount::from_millionths(millionths));
        let sums = |now| {
            let sum = |sum: CostSum| (sum.amount.millionths(), sum.provisioned, sum.unknown);
            statistics
                .snapshot(at(now))
                .iter()
                .map(|costs| (sum(costs.today), sum(costs.month)))
                .collect::<Vec<_>>()
        };
        assert_eq!(sums("2026-11-29T00:00:00Z"), []);
        record("2026-11-29T10:00:00Z", known(5));
        record("2026-11-29T11:00:00Z", ResponseCost::Unknown);
        record("2026-11-29T11:00:00Z", ResponseCost::Provisioned);
        record("2026-11-29T11:00:00Z", ResponseCost::NotBilled);
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
