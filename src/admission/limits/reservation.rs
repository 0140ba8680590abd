//! What a request has reserved, until its usage is known.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::account::ClientAccount;
use super::amounts::Amounts;
use super::booked::Booked;
use super::limit_key::{LimitKind, LimitReached};
use super::limit_message::{Booking, LimitMessage, LimitScope};
use super::sliding_minute::ReservedAt;
use super::token_estimate::{Demand, UsedTokens};
use crate::names::DeploymentName;

/// What a request has reserved. It is given back exactly once: when it is settled, else when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<ClientAccount>,
    reserved: Reserved,
    is_in_flight: bool,
    is_settled: bool,
    /// What was booked against budgets when it was settled, and when; `None` where there are none.
    booked: Option<(Amounts, SystemTime)>,
}

/// What a request turned out to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// These tokens, as the backend has reported them.
    Used(UsedTokens),
    /// About these tokens, counted with a tokenizer. Estimates for later requests are not learned from them.
    Estimated(UsedTokens),
    /// Unknown: the reservation counts as used.
    Unknown,
    /// Nothing: the request failed before a backend billed it.
    Nothing,
}

/// What is reserved for a request.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) cached_weight_permille: u32,
    /// `None` also if the request is not counted for its deployment.
    pub(super) deployment: Option<DeploymentName>,
    pub(super) demand: Demand,
    pub(super) amounts: Amounts,
    /// What it costs, in millionths of the currency, once that is known.
    pub(super) known_cost_millionths: Option<u64>,
    /// When the tokens were reserved, of all requests and of those for the deployment; `None` where they are not
    /// limited.
    pub(super) reserved_at: [Option<ReservedAt>; 2],
    /// The same in the process that keeps the limits in place of this one.
    pub(super) reserved_at_keeper: [Option<ReservedAt>; 2],
    /// The limit that the request exceeds, if that is only observed.
    pub(super) exceeded: Option<LimitReached>,
}

impl Reservation {
    pub(super) fn new(account: Arc<ClientAccount>, reserved: Reserved) -> Self {
        Self { account, reserved, is_in_flight: true, is_settled: false, booked: None }
    }

    /// The request that it is for, from which estimates are learned.
    pub(super) fn set_demand(&mut self, demand: Demand) {
        self.reserved.demand = demand;
    }

    /// Leaves it to the caller to end and to settle it.
    pub(super) fn into_booking(mut self) -> Booking {
        (self.is_in_flight, self.is_settled) = (false, true);
        Booking {
            scope: self.scope(),
            amounts: self.reserved.amounts,
            reserved_at: self.reserved.reserved_at,
        }
    }

    fn scope(&self) -> LimitScope {
        LimitScope::new(self.account.client.as_ref(), self.reserved.deployment.as_ref())
    }

    /// The tokens that are reserved.
    pub fn tokens(&self) -> u64 {
        self.reserved.amounts.tokens
    }

    /// Sets what the request costs, in millionths of the currency, before it is settled. Without this call the reserved
    /// cost counts if its usage is unknown, and otherwise none.
    pub fn set_cost(&mut self, millionths: u64) {
        self.reserved.known_cost_millionths = Some(millionths);
    }

    /// The limit that the request exceeds, if that is only observed.
    pub fn exceeded(&self) -> Option<&LimitReached> {
        self.reserved.exceeded.as_ref()
    }

    /// What was booked against budgets when it was settled, by which [`ClientAccounts::correct`] corrects it later. `None`
    /// if there are no budgets.
    ///
    /// [`ClientAccounts::correct`]: super::ClientAccounts::correct
    pub fn booked(&self) -> Option<Booked> {
        let (amounts, time) = self.booked?;
        Some(Booked::new(self.scope(), amounts, self.reserved.cached_weight_permille, time))
    }

    /// The request no longer counts as in flight. Later calls do nothing.
    pub fn leave_in_flight(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_in_flight, false) {
            return;
        }
        let (now, is_shared) = (self.account.time_of(now), self.account.is_shared());
        let mut state = self.account.lock();
        state.note_end(now);
        if let Some(follower) = &state.follower {
            follower.send(LimitMessage::Ended(self.scope()));
        }
        let (total, own) = state.scopes(self.reserved.deployment.as_ref(), false);
        let mut is_awaited = false;
        for scope in [Some(total), own].into_iter().flatten() {
            scope.in_flight = scope.in_flight.saturating_sub(1);
            if is_shared {
                scope.is_changed = true;
                is_awaited |= scope.leases.give_back(LimitKind::InFlight, 1);
            }
        }
        self.account.on_change(&mut state.reports, is_awaited);
    }

    /// Replaces what is reserved by what was used. Later calls do nothing.
    pub fn settle(&mut self, settlement: Settlement, now: Instant, time: SystemTime) {
        self.leave_in_flight(now);
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let used = self.used(settlement);
        let excess = used.saturating_sub(self.reserved.amounts);
        let (now, time, is_shared) =
            (self.account.time_of(now), self.account.wall_time(time), self.account.is_shared());
        let mut state = self.account.lock();
        if let Some(follower) = &state.follower {
            let (scope, reserved_at) = (self.scope(), self.reserved.reserved_at_keeper);
            follower.send(LimitMessage::Settled {
                booking: Booking { scope, amounts: self.reserved.amounts, reserved_at },
                used: used.tokens,
            });
        }
        let (total, own) = state.scopes(self.reserved.deployment.as_ref(), false);
        for (scope, reserved_at) in [Some(total), own].into_iter().zip(self.reserved.reserved_at) {
            let Some(scope) = scope else { continue };
            if is_shared {
                scope.is_changed = true;
                scope.leases.take_excess(excess);
            }
            // Under the lock, so that it is either reserved or used at any time.
            if let Some(budget) = &scope.budget {
                budget.add(used, time);
                self.booked = Some((used, time));
            }
            scope.reserved = scope.reserved.saturating_sub(self.reserved.amounts);
            match (&mut scope.tokens, reserved_at) {
                (Some(tokens), Some(reserved_at)) => {
                    tokens.settle(self.reserved.amounts.tokens, reserved_at, used.tokens, now);
                }
                // Limited since a reload.
                (Some(tokens), None) => tokens.add(used.tokens, now),
                (None, _) => {}
            }
            if let Settlement::Used(used) = settlement {
                scope.estimate.learn(&self.reserved.demand, &used, self.reserved.known_cost_millionths);
            }
        }
        self.account.on_change(&mut state.reports, false);
    }

    /// What counts as used.
    fn used(&self, settlement: Settlement) -> Amounts {
        let Reserved { amounts, known_cost_millionths, cached_weight_permille, .. } = self.reserved;
        let used = match settlement {
            Settlement::Used(used) | Settlement::Estimated(used) => {
                Amounts::of_tokens(used.counted(cached_weight_permille))
            }
            Settlement::Unknown => amounts,
            Settlement::Nothing => Amounts::default(),
        };
        Amounts { cost_millionths: known_cost_millionths.unwrap_or(used.cost_millionths), ..used }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.settle(Settlement::Nothing, Instant::now(), SystemTime::now());
    }
}

#[cfg(test)]
#[path = "reservation_tests.rs"]
mod tests;
