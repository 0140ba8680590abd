//! What the requests of the predecessor have reserved: counted in this process until the predecessor reports their ends.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::account::{AccountState, ClientAccounts, ScopeUse};
use super::amounts::Amounts;
use super::limit_message::{Booking, LimitMessage};
use super::reservation::Reservation;
use super::sliding_minute::ReservedAt;
use crate::names::{ClientName, DeploymentName};

/// What a predecessor's requests hold. A report can give back no more than that.
#[derive(Debug, Default)]
pub struct PredecessorShare {
    scopes: HashMap<(Option<ClientName>, Option<DeploymentName>), Held>,
}

/// What is held in one scope.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) in_flight: u64,
    /// What is reserved, whether or not a rate limits it.
    pub(super) reserved: Amounts,
    /// The tokens that count in the sliding minute, by the second of their reservation.
    pub(super) in_window: BTreeMap<ReservedAt, u64>,
}

impl PredecessorShare {
    pub(super) fn insert(
        &mut self,
        client: Option<ClientName>,
        deployment: Option<DeploymentName>,
        held: Held,
    ) {
        self.scopes.insert((client, deployment), held);
    }

    /// Holds what was reserved here for a request of the predecessor.
    pub fn hold(&mut self, reservation: Reservation) -> Booking {
        let booking = reservation.into_booking();
        self.for_each_scope(&booking, |held, reserved_at| held.add(booking.amounts, reserved_at));
        booking
    }

    /// Applies a report of the predecessor. A question is not a report and changes nothing.
    pub fn apply(&mut self, accounts: &ClientAccounts, message: &LimitMessage, now: Instant) {
        let (scope, booking) = match message {
            LimitMessage::Ask { .. } => return,
            LimitMessage::Ended(scope) => (scope, None),
            LimitMessage::Admitted(booking) | LimitMessage::Settled { booking, .. } => {
                (&booking.scope, Some(booking))
            }
        };
        let (client, deployment) = (scope.client(), scope.deployment());
        let account = accounts.find_or_create(client.as_ref());
        let now = account.time_of(now);
        let mut state = account.lock();
        if let LimitMessage::Ended(_) = message {
            state.note_end(now);
        }
        let own = deployment.is_some().then_some(deployment);
        for (index, deployment) in std::iter::once(None).chain(own).enumerate() {
            let Some(used) = scope_of(&mut state, deployment.as_ref()) else { continue };
            let held = self.scopes.entry((client.clone(), deployment)).or_default();
            let reserved_at = booking.and_then(|booking| booking.reserved_at.get(index).copied().flatten());
            match message {
                LimitMessage::Admitted(booking) => held.admit(used, booking.amounts, reserved_at, now),
                LimitMessage::Settled { booking, used: tokens } => {
                    held.settle(used, booking.amounts, reserved_at, *tokens, now);
                }
                LimitMessage::Ended(_) => held.end(used, 1),
                LimitMessage::Ask { .. } => {}
            }
        }
        // If this process is replaced as well, its successor counts what this one holds.
        if let Some(follower) = &state.follower {
            follower.send(message.clone());
        }
    }

    /// The predecessor has ended: tokens that it still holds count as used. In budgets they do not, since the predecessor
    /// reports its usage of budgets separately (`server/upgrade/budgets.rs`).
    pub fn settle_all(&mut self, accounts: &ClientAccounts, now: Instant) {
        for ((client, deployment), mut held) in self.scopes.drain() {
            let account = accounts.find_or_create(client.as_ref());
            let now = account.time_of(now);
            let mut state = account.lock();
            let Some(used) = scope_of(&mut state, deployment.as_ref()) else { continue };
            held.end(used, held.in_flight);
            for (reserved_at, tokens) in std::mem::take(&mut held.in_window) {
                if let Some(window) = &mut used.tokens {
                    window.settle(tokens, reserved_at, tokens, now);
                }
            }
            used.reserved = used.reserved.saturating_sub(held.reserved);
        }
    }

    fn for_each_scope(&mut self, booking: &Booking, mut apply: impl FnMut(&mut Held, Option<ReservedAt>)) {
        let (client, deployment) = (booking.scope.client(), booking.scope.deployment());
        let [in_total, in_own] = booking.reserved_at;
        if deployment.is_some() {
            apply(self.scopes.entry((client.clone(), deployment)).or_default(), in_own);
        }
        apply(self.scopes.entry((client, None)).or_default(), in_total);
    }
}

impl Held {
    fn add(&mut self, amounts: Amounts, reserved_at: Option<ReservedAt>) {
        self.in_flight += 1;
        self.reserved = self.reserved.saturating_add(amounts);
        if let Some(reserved_at) = reserved_at {
            let in_second = self.in_window.entry(reserved_at).or_default();
            *in_second = in_second.saturating_add(amounts.tokens);
        }
    }

    fn admit(
        &mut self,
        used: &mut ScopeUse,
        amounts: Amounts,
        reserved_at: Option<ReservedAt>,
        now: Duration,
    ) {
        used.in_flight += 1;
        used.reserved = used.reserved.saturating_add(amounts);
        used.requests.get_or_insert_default().add(1, now);
        let reserved_at =
            reserved_at.map(|at| used.tokens.get_or_insert_default().reserve_at(at, amounts.tokens, now));
        self.add(amounts, reserved_at);
    }

    fn end(&mut self, used: &mut ScopeUse, count: u64) {
        let count = count.min(self.in_flight);
        self.in_flight -= count;
        used.in_flight = used.in_flight.saturating_sub(count);
    }

    /// Budgets stay: the predecessor reports its usage of them separately (`server/upgrade/budgets.rs`).
    fn settle(
        &mut self,
        used: &mut ScopeUse,
        amounts: Amounts,
        reserved_at: Option<ReservedAt>,
        mut used_tokens: u64,
        now: Duration,
    ) {
        let released = amounts.min(self.reserved);
        self.reserved = self.reserved.saturating_sub(released);
        used.reserved = used.reserved.saturating_sub(released);
        let taken = reserved_at.map_or_else(Vec::new, |reserved_at| self.take(reserved_at, amounts.tokens));
        let Some(window) = &mut used.tokens else { return };
        for (reserved_at, tokens) in taken {
            let within = used_tokens.min(tokens);
            window.settle(tokens, reserved_at, within, now);
            used_tokens -= within;
        }
        window.add(used_tokens, now);
    }

    /// Takes tokens that were reserved in this second, and if there are too few, in others: the second of a reservation
    /// is lost if it is more than a minute older than the handover.
    fn take(&mut self, reserved_at: ReservedAt, tokens: u64) -> Vec<(ReservedAt, u64)> {
        let (mut taken, mut missing) = (Vec::new(), tokens);
        let others: Vec<_> = self.in_window.keys().copied().filter(|other| *other != reserved_at).collect();
        for second in std::iter::once(reserved_at).chain(others) {
            let Some(held) = self.in_window.get_mut(&second) else { continue };
            let amount = missing.min(*held);
            *held -= amount;
            if *held == 0 {
                self.in_window.remove(&second);
            }
            missing -= amount;
            taken.push((second, amount));
            if missing == 0 {
                break;
            }
        }
        taken
    }
}

/// The use of all requests, or that of a deployment; `None` for one of too many.
fn scope_of<'s>(
    state: &'s mut AccountState,
    deployment: Option<&DeploymentName>,
) -> Option<&'s mut ScopeUse> {
    match (deployment, state.scopes(deployment, false)) {
        (None, (total, _)) => Some(total),
        (Some(_), (_, own)) => own,
    }
}

#[cfg(test)]
#[path = "predecessor_share_tests.rs"]
mod tests;
