//! All requests that wait, and how many there may be.

use std::collections::HashMap;
use std::time::Instant;

use super::line::{Lane, LeftLine, Line};
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

/// The number of a line.
pub(super) type LineNumber = u64;

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
pub(super) struct WaitingRequests<L, W> {
    lines: HashMap<LineNumber, Line<L, W>>,
    held: HashMap<Caller, Held>,
    total: Held,
    next_number: u64,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    requests: usize,
    bytes: u64,
}

impl<L, W> Default for WaitingRequests<L, W> {
    fn default() -> Self {
        Self { lines: HashMap::new(), held: HashMap::new(), total: Held::default(), next_number: 0 }
    }
}

impl<L: Lane, W> WaitingRequests<L, W> {
    /// Has a request wait in this line. `refused_turn` is what its last turn counted for, if that was refused. If there are too many then, the newest of the client with the most is
    /// displaced, which may be this one.
    pub(super) fn join(
        &mut self,
        line: LineNumber,
        request: &QueuedRequest,
        lane: L,
        waiter: W,
        refused_turn: Option<u64>,
        bounds: QueueBounds,
    ) -> (Place, Vec<W>) {
        self.next_number += 1;
        let entry = self.lines.entry(line).or_default();
        let order = entry.push(request, self.next_number, lane, waiter, refused_turn);
        for held in [&mut self.total, self.held.entry(request.caller.clone()).or_default()] {
            held.requests += 1;
            held.bytes = held.bytes.saturating_add(request.bytes);
        }
        let place = Place { line, class: request.class, caller: request.caller.clone(), order };
        let mut displaced = Vec::new();
        loop {
            let amount = match () {
                () if self.total.requests > bounds.max_requests => |held: &Held| held.requests as u64,
                () if self.total.bytes > bounds.max_bytes => |held: &Held| held.bytes,
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

    /// Serves the first request of a line for which something is free.
    pub(super) fn serve_first(&mut self, line: LineNumber, now: Instant) -> Option<(W, L::Turn)> {
        let (left, turn) = self.lines.get_mut(&line)?.serve_first(now)?;
        self.on_left(line, &left);
        Some((left.waiter, turn))
    }

    /// The lines with requests that wait.
    pub(super) fn lines(&self) -> Vec<LineNumber> {
        self.lines.iter().filter(|(_, line)| !line.is_empty()).map(|(number, _)| *number).collect()
    }

    /// When something may be free for a request that waits, if nothing happens before.
    pub(super) fn next_chance(&self, now: Instant) -> Option<Instant> {
        self.lines.values().filter_map(|line| line.next_chance(now)).min()
    }

    /// Corrects what a client got in this line: a request that counted for `counted` tokens has used so many.
    pub(super) fn settle(
        &mut self,
        line: LineNumber,
        class: RequestClass,
        caller: &Caller,
        counted: u64,
        used: u64,
    ) {
        if let Some(entry) = self.lines.get_mut(&line) {
            entry.settle(class, caller, counted, used);
            self.forget_line(line);
        }
    }

    /// Displaces the newest request of the client that has the largest amount: of its least urgent class.
    fn displace_newest_of_largest(&mut self, amount: impl Fn(&Held) -> u64) -> Option<W> {
        let largest = self.held.values().map(&amount).max()?;
        let largest_clients = self.held.iter().filter(|(_, held)| amount(held) == largest);
        let newest = largest_clients.flat_map(|(caller, _)| {
            self.lines.iter().flat_map(move |(number, line)| {
                let newest = move |class| Some((class, line.newest(class, caller)?, *number, caller.clone()));
                RequestClass::ALL.into_iter().filter_map(newest)
            })
        });
        let (class, order, line, caller) = newest.max_by_key(|(class, order, ..)| (*class, *order))?;
        let left = self.lines.get_mut(&line)?.remove(class, &caller, order)?;
        self.on_left(line, &left);
        Some(left.waiter)
    }

    fn on_left(&mut self, line: LineNumber, left: &LeftLine<W>) {
        let (caller, bytes) = (&left.caller, left.bytes);
        let reduce = |held: &mut Held| {
            held.requests = held.requests.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(bytes);
        };
        reduce(&mut self.total);
        if let Some(held) = self.held.get_mut(caller) {
            reduce(held);
            if held.requests == 0 {
                self.held.remove(caller);
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
