//! What the responses to each client cost today and in this month.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::record::Recorder;
use crate::record::cost_statistics::CostSum;

/// What responses cost.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; the README has them")]
pub struct CostsStatus {
    pub currency: String,
    /// Why the sums are forgotten when the process ends, if they are.
    #[serde(default)]
    pub not_saved: Option<String>,
    /// Those that have a cost in this month.
    pub clients: Vec<ClientCostStatus>,
}

/// What the responses to one client cost.
#[derive(Debug, Serialize, Deserialize)]
pub struct ClientCostStatus {
    /// `null` stands for all clients that are unknown or have no names.
    pub client: Option<String>,
    /// Of the requests that have arrived on this day, in UTC.
    pub today: CostSumStatus,
    /// Of those that have arrived in this month.
    pub month: CostSumStatus,
}

/// A sum of costs, and what it leaves out.
#[derive(Debug, Serialize, Deserialize)]
pub struct CostSumStatus {
    /// A decimal number in the currency, exact as it is written.
    pub cost: String,
    /// Responses of provisioned backends, which cost nothing by themselves.
    pub provisioned: u64,
    /// Responses that are billed and have no cost, because they have no price or no known tokens.
    pub without_cost: u64,
}

impl From<CostSum> for CostSumStatus {
    fn from(sum: CostSum) -> Self {
        Self { cost: sum.amount.to_string(), provisioned: sum.provisioned, without_cost: sum.unknown }
    }
}

/// The sums of all clients; `None` without prices. `not_saved` is why they are forgotten when the process ends.
pub(in crate::admin) fn costs_status(
    recorder: &Recorder,
    not_saved: Option<String>,
    now: SystemTime,
) -> Option<CostsStatus> {
    let costs = &recorder.metrics().costs;
    let clients = costs.snapshot(now).into_iter().map(|costs| ClientCostStatus {
        client: costs.client.map(|name| name.to_string()),
        today: costs.today.into(),
        month: costs.month.into(),
    });
    Some(CostsStatus { currency: recorder.currency()?, not_saved, clients: clients.collect() })
}
