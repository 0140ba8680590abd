//! The requests of one class that wait for one deployment: fair between clients by tokens, and first come, first
//! served for each client.
//!
//! Each client has a counter of the tokens that its queued requests were given. The client with the smallest counter is
//! served next. A client that begins to wait starts at the smallest counter of those that wait: an idle client gains no
//! credit.
//!
//! Charges of other instances are added to the counters. While requests wait here, a client that has none is charged as
//! well, as if it had had these turns here. Its counter is forgotten once the others have got as much, or nobody waits.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::ticket::{Ticket, TicketOrder};
use crate::names::Caller;

/// With this many clients, those without queued requests and without requests in progress are removed.
const MAX_REMEMBERED_CLIENTS: usize = 4096;
/// A charge of another instance puts a client at most this many times its tokens behind the first. So a client that was
/// served by an instance that is gone waits for seconds here, not for as long as it was served there.
const MAX_CHARGES_BEHIND: u64 = 5;

/// The requests of one class that wait for one deployment.
#[derive(Debug)]
pub(super) struct ClassLine<T> {
    clients: HashMap<Caller, ClientLine<T>>,
    /// The clients with requests that wait, in the order in which they are served.
    order: BTreeMap<Turn, Caller>,
    /// The smallest counter of those that wait, or waited last: where others start. It can fall, when a request has used
    /// less than it counted for.
    start: u64,
    turns: u64,
    next_client: u64,
}

/// The place of a client in the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    /// The tokens that it got.
    served_tokens: u64,
    /// The number of its last turn; 0 if it had none. Of two that got as much, the one whose turn is longer ago is
    /// served first.
    last_turn: u64,
    /// Its own number, so that no two places are equal.
    client: u64,
}

#[derive(Debug)]
struct ClientLine<T> {
    turn: Turn,
    /// In the order in which they came.
    waiting: VecDeque<Ticket<T>>,
    /// Requests that were served and whose tokens are not known yet.
    unsettled: usize,
    /// What other instances have charged and may refund: no refund gives credit.
    charged_by_others: u64,
}

/// What a turn costs, for a request of so many tokens.
pub(super) fn charge_of(tokens: u64) -> u64 {
    tokens.max(1)
}

impl<T> ClientLine<T> {
    fn new(number: u64) -> Self {
        let turn = Turn { client: number, ..Turn::default() };
        Self { turn, waiting: VecDeque::new(), unsettled: 0, charged_by_others: 0 }
    }

    /// Without queued requests and without requests in progress.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.unsettled == 0
    }

    /// Raises its counter to the one at which clients start.
    fn raise_to(&mut self, start: u64) {
        if self.turn.served_tokens < start {
            self.turn.served_tokens = start;
            self.charged_by_others = 0;
        }
    }
}

impl<T> Default for ClassLine<T> {
    fn default() -> Self {
        Self { clients: HashMap::new(), order: BTreeMap::new(), start: 0, turns: 0, next_client: 0 }
    }
}

impl<T> ClassLine<T> {
    /// Refunds a turn that the backend answered with a 429. The request is pushed again afterwards.
    pub(super) fn take_turn_back(&mut self, caller: &Caller, counted: u64) {
        let Some(client) = self.clients.get_mut(caller) else { return };
        let is_waiting = self.order.remove(&client.turn).is_some();
        client.unsettled = client.unsettled.saturating_sub(1);
        // It goes before other clients with the same counter.
        client.turn = Turn {
            served_tokens: client.turn.served_tokens.saturating_sub(charge_of(counted)),
            last_turn: 0,
            ..client.turn
        };
        if is_waiting {
            self.order.insert(client.turn, caller.clone());
        }
    }

    /// Adds a request behind the earlier ones of the same client. `returns` if its turn was refunded: then its client
    /// was not idle, and keeps its counter.
    pub(super) fn push(&mut self, caller: &Caller, ticket: Ticket<T>, returns: bool) {
        if self.clients.len() >= MAX_REMEMBERED_CLIENTS {
            self.clients.retain(|_, client| !client.is_idle());
        }
        if let Some((first, _)) = self.order.first_key_value() {
            self.start = first.served_tokens;
        }
        let is_new = !self.clients.contains_key(caller);
        let client = self.clients.entry(caller.clone()).or_insert_with(|| {
            self.next_client += 1;
            ClientLine::new(self.next_client)
        });
        if client.waiting.is_empty() {
            if !returns || is_new {
                client.raise_to(self.start);
            }
            self.order.insert(client.turn, caller.clone());
        }
        let at = client.waiting.partition_point(|other| other.order < ticket.order);
        client.waiting.insert(at, ticket);
    }

    /// Removes a request that no longer waits.
    pub(super) fn remove(&mut self, caller: &Caller, order: TicketOrder) -> Option<Ticket<T>> {
        let client = self.clients.get_mut(caller)?;
        let at = client.waiting.binary_search_by(|ticket| ticket.order.cmp(&order)).ok()?;
        let ticket = client.waiting.remove(at)?;
        if client.waiting.is_empty() {
            self.order.remove(&client.turn);
            self.forget_if_idle(caller);
        }
        Some(ticket)
    }

    /// Removes the first request for which `try_serve` returns something, and charges its tokens to its client.
    pub(super) fn serve_first<G>(
        &mut self,
        mut try_serve: impl FnMut(&T) -> Option<G>,
    ) -> Option<(Caller, Ticket<T>, G)> {
        let (caller, at, served) = self.order.values().find_map(|caller| {
            let waiting = self.clients.get(caller)?.waiting.iter().enumerate();
            let (at, served) =
                waiting.filter_map(|(at, ticket)| Some((at, try_serve(&ticket.payload)?))).next()?;
            Some((caller.clone(), at, served))
        })?;
        let client = self.clients.get_mut(&caller)?;
        let ticket = client.waiting.remove(at)?;
        self.order.remove(&client.turn);
        self.start = client.turn.served_tokens;
        self.turns += 1;
        client.turn = Turn {
            served_tokens: client.turn.served_tokens.saturating_add(charge_of(ticket.tokens)),
            last_turn: self.turns,
            ..client.turn
        };
        client.unsettled += 1;
        if !client.waiting.is_empty() {
            self.order.insert(client.turn, caller.clone());
        }
        Some((caller, ticket, served))
    }

    /// Replaces the `counted` tokens that a request was charged by those that it has used.
    pub(super) fn settle(&mut self, caller: &Caller, counted: u64, used: u64) {
        let Some(client) = self.clients.get_mut(caller) else { return };
        let is_waiting = self.order.remove(&client.turn).is_some();
        client.unsettled = client.unsettled.saturating_sub(1);
        client.turn.served_tokens =
            client.turn.served_tokens.saturating_sub(charge_of(counted)).saturating_add(used);
        if is_waiting {
            self.order.insert(client.turn, caller.clone());
        } else {
            self.forget_if_idle(caller);
        }
    }

    /// Charges clients the tokens that another instance has charged them, or refunds them if there are fewer than 0. Does
    /// nothing if no request waits: then there is nobody to share with.
    pub(super) fn add_charges_of_others(&mut self, charges: &[(Caller, i64)]) {
        let Some((first, _)) = self.order.first_key_value() else { return };
        let start = first.served_tokens;
        self.start = start;
        for (caller, tokens) in charges {
            let is_new = !self.clients.contains_key(caller);
            if is_new && (*tokens <= 0 || self.clients.len() >= MAX_REMEMBERED_CLIENTS) {
                continue;
            }
            let client = self.clients.entry(caller.clone()).or_insert_with(|| {
                self.next_client += 1;
                ClientLine::new(self.next_client)
            });
            let is_waiting = self.order.remove(&client.turn).is_some();
            if client.is_idle() {
                client.raise_to(start);
            }
            let (before, amount) = (client.turn.served_tokens, tokens.unsigned_abs());
            if *tokens > 0 {
                let furthest = start.saturating_add(amount.saturating_mul(MAX_CHARGES_BEHIND)).max(before);
                let after = before.saturating_add(amount).min(furthest);
                client.turn.served_tokens = after;
                client.charged_by_others = client.charged_by_others.saturating_add(after - before);
            } else {
                let refund = amount.min(client.charged_by_others).min(before);
                client.turn.served_tokens = before - refund;
                client.charged_by_others -= refund;
            }
            if is_waiting {
                self.order.insert(client.turn, caller.clone());
            } else {
                self.forget_if_idle(caller);
            }
        }
    }

    /// Whether no request waits.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether it has no clients, so that it can be dropped.
    pub(super) fn is_forgotten(&self) -> bool {
        self.clients.is_empty()
    }

    /// Removes a client without queued requests and without requests in progress, if its counter is not above that
    /// at which it would start again.
    fn forget_if_idle(&mut self, caller: &Caller) {
        if self.order.is_empty() {
            self.clients.retain(|_, client| client.unsettled > 0);
            return;
        }
        let is_idle = self
            .clients
            .get(caller)
            .is_some_and(|client| client.is_idle() && client.turn.served_tokens <= self.start);
        if is_idle {
            self.clients.remove(caller);
        }
    }
}

#[cfg(test)]
#[path = "class_line_tests.rs"]
mod tests;
