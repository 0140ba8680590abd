//! What queued requests are charged, for other instances that serve the same clients.

use std::collections::HashMap;

use super::line::LineNumber;
use crate::config::RequestClass;
use crate::names::{Caller, ClientName};

/// What the clients of one line and class were charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineCharges {
    /// The name of the line.
    pub line: String,
    /// The class.
    pub class: RequestClass,
    /// The tokens of each client; fewer than 0 if more was refunded than charged.
    pub clients: Vec<(ClientName, i64)>,
}

/// The sums of what clients with names were charged. An address may be of another client at another instance.
#[derive(Debug, Default)]
pub(super) struct ChargeCollector {
    sums: HashMap<(LineNumber, RequestClass), HashMap<ClientName, i64>>,
}

impl ChargeCollector {
    /// Counts that a charge was replaced by another; 0 is none.
    pub(super) fn replace(
        &mut self,
        line: LineNumber,
        class: RequestClass,
        caller: &Caller,
        before: u64,
        after: u64,
    ) {
        let Caller::Client(client) = caller else { return };
        let [before, after] = [before, after].map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX));
        let clients = self.sums.entry((line, class)).or_default();
        let change = after.saturating_sub(before);
        match clients.get_mut(client) {
            Some(sum) => *sum = sum.saturating_add(change),
            None => drop(clients.insert(client.clone(), change)),
        }
    }

    /// The sums that are not 0. `name_of` is the name of a line.
    pub(super) fn into_charges(self, name_of: impl Fn(LineNumber) -> Option<String>) -> Vec<LineCharges> {
        let charges_of = |((line, class), clients): (_, HashMap<ClientName, i64>)| {
            let clients: Vec<_> = clients.into_iter().filter(|(_, tokens)| *tokens != 0).collect();
            (!clients.is_empty()).then_some(LineCharges { line: name_of(line)?, class, clients })
        };
        self.sums.into_iter().filter_map(charges_of).collect()
    }
}
