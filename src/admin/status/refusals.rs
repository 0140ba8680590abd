//! Who is refused: the clients whose requests were refused or failed.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::names::ClientName;
use crate::record::refusal_counts::RefusalCounts;
use crate::record::statistics::StatisticsSnapshot;

/// How many clients are listed at most: those that are refused most now.
const MAX_LISTED_CLIENTS: usize = 50;

/// A client whose requests were refused or failed.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/operations.md has them")]
pub struct RefusedClient {
    /// `null` stands for all clients that are unknown or have no names.
    pub client: Option<String>,
    #[serde(flatten)]
    pub total: RefusalsByStatus,
    pub last_minute: RefusalsByStatus,
}

/// Requests that were refused, by the status that the client got, and those that failed.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct RefusalsByStatus {
    pub refused: RefusedByStatus,
    /// A 5xx, a response that broke off, or none.
    pub failed: u64,
}

/// Requests that were refused, by the status that the client got.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct RefusedByStatus {
    #[serde(rename = "401")]
    pub unauthorized: u64,
    #[serde(rename = "403")]
    pub forbidden: u64,
    #[serde(rename = "404")]
    pub not_found: u64,
    #[serde(rename = "429")]
    pub throttled: u64,
    /// Any other 4xx, and refusals of the balancer with 503.
    pub other: u64,
}

impl From<&RefusalCounts> for RefusalsByStatus {
    fn from(counts: &RefusalCounts) -> Self {
        let RefusalCounts { unauthorized, forbidden, not_found, throttled, other, failed } = *counts;
        Self { refused: RefusedByStatus { unauthorized, forbidden, not_found, throttled, other }, failed }
    }
}

impl RefusedByStatus {
    /// All of them together.
    pub fn total(&self) -> u64 {
        let Self { unauthorized, forbidden, not_found, throttled, other } = *self;
        unauthorized + forbidden + not_found + throttled + other
    }
}

/// The clients whose requests were refused or failed, those of the last minute first.
pub(in crate::admin) fn refused_clients(statistics: &StatisticsSnapshot) -> Vec<RefusedClient> {
    let mut clients: Vec<_> =
        statistics.clients.iter().filter(|client| client.since_start.refusals.total() > 0).collect();
    clients.sort_by_key(|client| {
        let (recent, total) = (client.last_minute.refusals.total(), client.since_start.refusals.total());
        (Reverse(recent), Reverse(total), client.name.as_ref().map(ClientName::as_str))
    });
    let listed = clients.into_iter().take(MAX_LISTED_CLIENTS).map(|client| RefusedClient {
        client: client.name.as_ref().map(ClientName::to_string),
        total: (&client.since_start.refusals).into(),
        last_minute: (&client.last_minute.refusals).into(),
    });
    listed.collect()
}
