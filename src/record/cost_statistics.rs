//! What the responses to each client cost today and in this month, for the status page.
//!
//! They are counted where records are made. Where the sums are kept is left to `gateway/budget_books/`.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::cost::ResponseCost;
use super::exchange::FinishedExchange;
use crate::money::Amount;
use crate::names::ClientName;

/// Where sums of costs are kept.
pub trait CostBook: Debug + Send + Sync {
    /// Adds to the sums of a client for the day and the month in which a request has arrived. `None` stands for all
    /// clients that are unknown or have no names.
    fn add(&self, client: Option<&ClientName>, costs: CostSum, arrived_at: SystemTime);
    /// The sums of the clients that have any in this month, by name.
    fn costs(&self, now: SystemTime) -> Vec<CostsOfClient>;
}

/// Counts what responses cost.
#[derive(Debug, Default)]
pub struct CostStatistics {
    /// Nothing is counted without it.
    book: OnceLock<Arc<dyn CostBook>>,
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
    /// That of one response; `None` if it is not billed.
    fn of(cost: ResponseCost) -> Option<Self> {
        match cost {
            ResponseCost::Known(amount) => Some(Self { amount, ..Self::default() }),
            ResponseCost::Provisioned => Some(Self { provisioned: 1, ..Self::default() }),
            ResponseCost::Unknown => Some(Self { unknown: 1, ..Self::default() }),
            ResponseCost::NotBilled | ResponseCost::BilledLater => None,
        }
    }
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
    /// Counts in this book from now on.
    pub fn keep_in(&self, book: Arc<dyn CostBook>) {
        let _ = self.book.set(book);
    }

    /// Counts an exchange for the day on which it has arrived.
    pub(super) fn record(&self, exchange: &FinishedExchange, cost: ResponseCost) {
        let (Some(book), Some(costs)) = (self.book.get(), CostSum::of(cost)) else { return };
        let name = exchange.client.as_ref().and_then(|client| client.name.as_ref());
        book.add(name, costs, exchange.received_at);
    }

    /// The sums of the clients that have any in this month, by name.
    pub fn snapshot(&self, now: SystemTime) -> Vec<CostsOfClient> {
        self.book.get().map_or_else(Vec::new, |book| book.costs(now))
    }
}
