//! The requests that wait for one deployment: the more urgent classes first.

use std::time::Instant;

use super::choices::{ChoiceIndex, Choices};
use super::class_line::ClassLine;
use super::ticket::{QueuedRequest, Ticket, TicketOrder};
use crate::config::RequestClass;
use crate::names::{Caller, RoutedKey};

/// What requests of one kind wait for: the backends that they may be sent to.
pub trait Choice: PartialEq + Send + 'static {
    /// What a request gets in its turn.
    type Turn: Send;

    /// Takes a free backend for a request with this choice; `None` if there is none. Which of several it is depends on
    /// `key`, if the request is routed by its prompt.
    fn try_take(&self, key: Option<RoutedKey>, now: Instant) -> Option<Self::Turn>;

    /// When a backend may become free without a further event; `None` if that is not known.
    fn next_chance(&self, now: Instant) -> Option<Instant>;
}

/// The number of a line.
pub(super) type LineNumber = u64;

/// The requests that wait for one deployment, each with its `W`.
#[derive(Debug)]
pub(super) struct Line<C, W> {
    /// One for each class, the most urgent first.
    classes: [ClassLine<Waiting<W>>; RequestClass::ALL.len()],
    choices: Choices<C>,
}

#[derive(Debug)]
struct Waiting<W> {
    choice: ChoiceIndex,
    key: Option<RoutedKey>,
    waiter: W,
}

/// A request that is served or no longer waits.
#[derive(Debug)]
pub(super) struct LeftLine<W> {
    pub(super) class: RequestClass,
    pub(super) caller: Caller,
    pub(super) order: TicketOrder,
    pub(super) tokens: u64,
    pub(super) bytes: u64,
    pub(super) waiter: W,
}

impl<C, W> Default for Line<C, W> {
    fn default() -> Self {
        Self { classes: Default::default(), choices: Choices::default() }
    }
}

impl<C: Choice, W> Line<C, W> {
    /// Adds a request at its place. `refused_turn` is the charge of its last turn, if the backend answered that with a 429.
    pub(super) fn push(
        &mut self,
        request: &QueuedRequest,
        number: u64,
        choice: C,
        waiter: W,
        refused_turn: Option<u64>,
    ) -> TicketOrder {
        let choice = self.choices.enter(choice);
        let order = TicketOrder { since: request.since, number };
        let payload = Waiting { choice, key: request.key, waiter };
        let ticket = Ticket { order, tokens: request.tokens, bytes: request.bytes, payload };
        let class = self.class_mut(request.class);
        if let Some(counted) = refused_turn {
            class.take_turn_back(&request.caller, counted);
        }
        class.push(&request.caller, ticket, refused_turn.is_some());
        order
    }

    /// Removes a request that no longer waits.
    pub(super) fn remove(
        &mut self,
        class: RequestClass,
        caller: &Caller,
        order: TicketOrder,
    ) -> Option<LeftLine<W>> {
        let ticket = self.class_mut(class).remove(caller, order)?;
        Some(self.leave(class, caller.clone(), ticket))
    }

    /// Gives the next turn, if a backend is free for one of the requests.
    pub(super) fn serve_first(&mut self, now: Instant) -> Option<(LeftLine<W>, C::Turn)> {
        // A choice without a free backend for one request has none for the others.
        let mut exhausted_choices: Vec<ChoiceIndex> = Vec::new();
        for class in RequestClass::ALL {
            let choices = &self.choices;
            let try_serve = |waiting: &Waiting<W>| {
                if exhausted_choices.contains(&waiting.choice) {
                    return None;
                }
                let turn = choices.get(waiting.choice)?.try_take(waiting.key, now);
                if turn.is_none() {
                    exhausted_choices.push(waiting.choice);
                }
                turn
            };
            let served = self.classes.get_mut(class as usize)?.serve_first(try_serve);
            if let Some((caller, ticket, turn)) = served {
                return Some((self.leave(class, caller, ticket), turn));
            }
            if exhausted_choices.len() == self.choices.iter().count() {
                return None;
            }
        }
        None
    }

    /// When a backend may become free for a waiting request, without a further event.
    pub(super) fn next_chance(&self, now: Instant) -> Option<Instant> {
        self.choices.iter().filter_map(|(_, choice)| choice.next_chance(now)).min()
    }

    /// Replaces the tokens that a request was charged by those that it has used.
    pub(super) fn settle(&mut self, class: RequestClass, caller: &Caller, counted: u64, used: u64) {
        self.class_mut(class).settle(caller, counted, used);
    }

    /// Charges clients what another instance has charged them.
    pub(super) fn add_charges_of_others(&mut self, class: RequestClass, charges: &[(Caller, i64)]) {
        self.class_mut(class).add_charges_of_others(charges);
    }

    /// Whether no request waits.
    pub(super) fn is_empty(&self) -> bool {
        self.classes.iter().all(ClassLine::is_empty)
    }

    /// Whether it has no clients, so that it can be dropped.
    pub(super) fn is_forgotten(&self) -> bool {
        self.classes.iter().all(ClassLine::is_forgotten)
    }

    fn leave(&mut self, class: RequestClass, caller: Caller, ticket: Ticket<Waiting<W>>) -> LeftLine<W> {
        let Ticket { order, tokens, bytes, payload: Waiting { choice, waiter, .. } } = ticket;
        self.choices.leave(choice);
        LeftLine { class, caller, order, tokens, bytes, waiter }
    }

    fn class_mut(&mut self, class: RequestClass) -> &mut ClassLine<Waiting<W>> {
        // In bounds: there are as many as classes.
        &mut self.classes[class as usize]
    }
}
