//! All requests that wait, and how many there may be.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::charges::ChargeCollector;
use super::class_line::charge_of;
use super::line::{Choice, LeftLine, Line, LineNumber};
use super::ticket::{QueuedRequest, TicketOrder};
use crate::config::RequestClass;
use crate::names::Caller;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// The number of requests.
    pub max_requests: usize,
    /// The length of their bodies together.
    pub max_bytes: u64,
}

/// Where a request waits.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) line: LineNumber,
    pub(super) class: RequestClass,
    pub(super) caller: Caller,
    pub(super) order: TicketOrder,
}

/// All requests that wait, each with its `W`.
#[derive(Debug)]
pub(super) struct WaitingRequests<C, W> {
    lines: HashMap<LineNumber, Line<C, W>>,
    held: HashMap<Caller, HeldByClient>,
    total: Amount,
    next_number: u64,
    /// `None` unless charges are collected for other instances.
    charges: Option<ChargeCollector>,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    requests: usize,
    bytes: u64,
}

/// What waits of one client.
#[derive(Debug, Default)]
struct HeldByClient {
    amount: Amount,
    /// All its requests, the most urgent first, and of those of one class the oldest.
    places: BTreeSet<(RequestClass, TicketOrder, LineNumber)>,
}

impl<C, W> Default for WaitingRequests<C, W> {
    fn default() -> Self {
        Self {
            lines: HashMap::new(),
            held: HashMap::new(),
            total: Amount::default(),
            next_number: 0,
            charges: None,
        }
    }
}

impl<C: Choice, W> WaitingRequests<C, W> {
    /// Adds a request to this line. `refused_turn` is the charge of its last turn, if the backend answered that with a 429. If there
    /// are too many then, the newest of the client with the most is displaced, which may be this one.
    pub(super) fn join(
        &mut self,
        line: LineNumber,
        request: &QueuedRequest,
        choice: C,
        waiter: W,
        refused_turn: Option<u64>,
        bounds: QueueBounds,
    ) -> (Place, Vec<W>) {
        self.next_number += 1;
        if let (Some(charges), Some(counted)) = (&mut self.charges, refused_turn) {
            charges.replace(line, request.class, &request.caller, charge_of(counted), 0);
        }
        let entry = self.lines.entry(line).or_default();
        let order = entry.push(request, self.next_number, choice, waiter, refused_turn);
        let held = self.held.entry(request.caller.clone()).or_default();
        held.places.insert((request.class, order, line));
        for amount in [&mut self.total, &mut held.amount] {
            amount.requests += 1;
            amount.bytes = amount.bytes.saturating_add(request.bytes);
        }
        let place = Place { line, class: request.class, caller: request.caller.clone(), order };
        let mut displaced = Vec::new();
        loop {
            let amount = match () {
                () if self.total.requests > bounds.max_requests => |amount: &Amount| amount.requests as u64,
                () if self.total.bytes > bounds.max_bytes => |amount: &Amount| amount.bytes,
                () => break,
            };
            let Some(one) = self.displace_newest_of_largest(amount) else { break };
            displaced.push(one);
        }
        (place, displaced)
    }

    /// Removes a request that no longer waits; `None` if it did not.
    pub(super) fn leave(&mut self, place: &Place) -> Option<W> {
        let line = self.lines.get_mut(&place.line)?;
        let left = line.remove(place.class, &place.caller, place.order)?;
        self.on_left(place.line, &left);
        Some(left.waiter)
    }

    /// Gives the next turn in a line, if a backend is free for one of its requests.
    pub(super) fn serve_first(&mut self, line: LineNumber, now: Instant) -> Option<(W, C::Turn)> {
        let (left, turn) = self.lines.get_mut(&line)?.serve_first(now)?;
        if let Some(charges) = &mut self.charges {
            charges.replace(line, left.class, &left.caller, 0, charge_of(left.tokens));
        }
        self.on_left(line, &left);
        Some((left.waiter, turn))
    }

    /// The lines with requests that wait.
    pub(super) fn lines(&self) -> Vec<LineNumber> {
        self.lines.iter().filter(|(_, line)| !line.is_empty()).map(|(number, _)| *number).collect()
    }

    /// When a backend may become free for a waiting request, without a further event.
    pub(super) fn next_chance(&self, now: Instant) -> Option<Instant> {
        self.lines.values().filter_map(|line| line.next_chance(now)).min()
    }

    /// Replaces the `counted` tokens that a request was charged by those that it has used.
    pub(super) fn settle(
        &mut self,
        line: LineNumber,
        class: RequestClass,
        caller: &Caller,
        counted: u64,
        used: u64,
    ) {
        if let Some(charges) = &mut self.charges {
            charges.replace(line, class, caller, charge_of(counted), used);
        }
        if let Some(entry) = self.lines.get_mut(&line) {
            entry.settle(class, caller, counted, used);
            self.forget_line(line);
        }
    }

    /// Collects from now on what clients are charged.
    pub(super) fn collect_charges(&mut self) {
        self.charges.get_or_insert_default();
    }

    /// What clients were charged since the last call; empty unless it is collected.
    pub(super) fn take_charges(&mut self) -> ChargeCollector {
        self.charges.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Charges clients of a line what another instance has charged them.
    pub(super) fn add_charges_of_others(
        &mut self,
        line: LineNumber,
        class: RequestClass,
        charges: &[(Caller, i64)],
    ) {
        if let Some(entry) = self.lines.get_mut(&line) {
            entry.add_charges_of_others(class, charges);
        }
    }

    /// Displaces the newest request of the client that has the largest amount: of its least urgent class.
    fn displace_newest_of_largest(&mut self, amount: impl Fn(&Amount) -> u64) -> Option<W> {
        let candidates = self.held.iter().filter_map(|(caller, held)| {
            let (class, order, line) = held.places.last()?;
            Some((amount(&held.amount), *class, *order, *line, caller))
        });
        let (_, class, order, line, caller) =
            candidates.max_by_key(|(amount, class, order, ..)| (*amount, *class, *order))?;
        let place = Place { line, class, caller: caller.clone(), order };
        self.leave(&place)
    }

    fn on_left(&mut self, line: LineNumber, left: &LeftLine<W>) {
        let bytes = left.bytes;
        let reduce = |amount: &mut Amount| {
            amount.requests = amount.requests.saturating_sub(1);
            amount.bytes = amount.bytes.saturating_sub(bytes);
        };
        reduce(&mut self.total);
        if let Some(held) = self.held.get_mut(&left.caller) {
            reduce(&mut held.amount);
            held.places.remove(&(left.class, left.order, line));
            if held.places.is_empty() {
                self.held.remove(&left.caller);
            }
        }
        self.forget_line(line);
    }

    fn forget_line(&mut self, line: LineNumber) {
        if self.lines.get(&line).is_some_and(|line| line.is_empty() && line.is_forgotten()) {
            self.lines.remove(&line);
        }
    }
}

#[cfg(test)]
#[path = "waiting_requests_tests.rs"]
mod tests;
