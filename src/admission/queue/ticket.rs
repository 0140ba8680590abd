//! A request that waits.

use std::time::Instant;

use crate::config::RequestClass;
use crate::names::{Caller, RoutedKey};

/// What is known of a request that is to wait.
#[derive(Clone, Debug)]
pub struct QueuedRequest {
    /// How urgent it is.
    pub class: RequestClass,
    /// Whose request it is.
    pub caller: Caller,
    /// When it began to wait for the first time, which is its place among the requests of its client.
    pub since: Instant,
    /// About so many tokens it will use.
    pub tokens: u64,
    /// The length of its body in memory.
    pub bytes: u64,
    /// Whether requests that come later must not overtake it although something seems to be free for them: not if
    /// only one resource can serve it.
    pub holds_up_others: bool,
    /// The key by which it prefers one of several free backends; `None` if they take turns.
    pub key: Option<RoutedKey>,
}

/// The order of the requests of one client: by time, then by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TicketOrder {
    pub(super) since: Instant,
    pub(super) number: u64,
}

/// A request in a line.
#[derive(Debug)]
pub(super) struct Ticket<T> {
    pub(super) order: TicketOrder,
    pub(super) tokens: u64,
    pub(super) bytes: u64,
    pub(super) payload: T,
}
