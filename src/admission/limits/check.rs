//! A request against the limits of its client: in total and for its deployment.

use std::time::{Duration, SystemTime};

use super::account::{RecentEnds, ScopeUse};
use super::amounts::Amounts;
use super::keeper_link::KeeperLink;
use super::leases::ReportState;
use super::limit_key::{LimitKey, LimitKind, LimitReached};
use super::sliding_minute::ReservedAt;
use crate::config::{LimitMode, LimitSet};
use crate::names::DeploymentName;

/// The shortest `retry-after` where other instances have leased what is missing: they give it back, or use it.
const LEASED_ELSEWHERE_WAIT: Duration = Duration::from_secs(1);

/// What a request is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// What is left of each limit, as far as this process knows: also of what other instances have used.
    Known,
    /// What this instance has leased of each limit.
    Lease,
    /// The part of each rate that is left to one of so many instances, while they do not know of each other.
    Part(u64),
}

/// A scope of limits that a request counts in.
pub(super) struct Scope<'s> {
    pub(super) deployment: Option<&'s DeploymentName>,
    pub(super) limits: &'s LimitSet,
    pub(super) used: &'s mut ScopeUse,
}

pub(super) static NO_LIMITS: LimitSet = LimitSet {
    requests_per_minute: None,
    tokens_per_minute: None,
    tokens_per_day: None,
    tokens_per_month: None,
    cost_per_day: None,
    cost_per_month: None,
    in_flight: None,
};

/// A request against the limits.
pub(super) struct Check<'s> {
    pub(super) total: Scope<'s>,
    pub(super) own: Option<Scope<'s>>,
    pub(super) addition: Addition<'s>,
    pub(super) reached: Option<LimitReached>,
    pub(super) reports: &'s mut ReportState,
    pub(super) follower: Option<&'s KeeperLink>,
}

/// What a request adds to the limits.
#[derive(Clone, Copy)]
pub(super) struct Addition<'s> {
    pub(super) amounts: Amounts,
    pub(super) now: Duration,
    pub(super) time: SystemTime,
    pub(super) basis: Basis,
    pub(super) ends: &'s RecentEnds,
}

impl Addition<'_> {
    /// What it adds to a limit.
    fn demand(&self, kind: LimitKind) -> u64 {
        self.amounts.in_unit(kind.unit())
    }
}

/// The part of a limit that is left to one of so many instances.
fn part_of(limit: u64, instances: u64) -> u64 {
    (limit / instances.max(1)).max(1)
}

/// The limit whose wait is the longest; a request that is too much for a limit waits in vain.
pub(super) fn longest_of(reached: impl Iterator<Item = LimitReached>) -> Option<LimitReached> {
    reached.max_by_key(|reached| reached.wait.unwrap_or(Duration::MAX))
}

impl Check<'_> {
    /// Fails if the request has reached a limit that is enforced.
    pub(super) fn unless_refused(self, mode: LimitMode) -> Result<Self, LimitReached> {
        match &self.reached {
            Some(reached) if mode == LimitMode::Enforce => Err(reached.clone()),
            _ => Ok(self),
        }
    }

    /// Whether the server has just had nothing left of a limit whose lease is too small for the request.
    pub(super) fn is_used_up(&self) -> bool {
        let scopes = [Some(&self.total), self.own.as_ref()];
        scopes.into_iter().flatten().any(|scope| scope.is_used_up(self.addition))
    }

    /// Asks for what the request lacks of the leases of this instance.
    pub(super) fn ask_for_lease(&mut self) {
        for scope in [Some(&mut self.total), self.own.as_mut()].into_iter().flatten() {
            scope.ask_for_lease(self.addition);
        }
    }

    /// The request is admitted, and takes what it needs from the leases of this instance. Returns whether more should be leased in
    /// advance.
    pub(super) fn take_lease(&mut self, mode: LimitMode) -> bool {
        let mut is_low = false;
        for scope in [Some(&mut self.total), self.own.as_mut()].into_iter().flatten() {
            match mode {
                LimitMode::Enforce => is_low |= scope.take_lease(self.addition),
                // There are none.
                LimitMode::Observe => scope.used.is_changed = true,
            }
        }
        is_low
    }

    /// Counts the request as admitted without permission.
    ///
    /// # Errors
    /// The rate whose share for such requests is used up.
    pub(super) fn take_unasked(&mut self) -> Result<(), LimitReached> {
        let Addition { amounts, now, .. } = self.addition;
        let mut scopes = [Some(&mut self.total), self.own.as_mut()];
        let waits = scopes.iter_mut().flatten().filter_map(|scope| scope.unasked_reached(amounts, now));
        if let Some(reached) = longest_of(waits) {
            return Err(reached);
        }
        for scope in scopes.into_iter().flatten() {
            scope.used.unasked.get_or_insert_default().add(amounts.tokens, now);
        }
        Ok(())
    }
}

impl Scope<'_> {
    /// The rate whose share for requests without permission is used up.
    fn unasked_reached(&mut self, amounts: Amounts, now: Duration) -> Option<LimitReached> {
        let unasked = self.used.unasked.get_or_insert_default();
        let reached = LimitKind::ALL.into_iter().filter_map(|kind| {
            let limit = kind.value_in(self.limits)?;
            let demand = amounts.in_unit(kind.unit());
            if demand == 0 {
                return None;
            }
            let wait = unasked.time_until_admitted(kind, limit, demand, now);
            let key = LimitKey { deployment: self.deployment.cloned(), kind };
            (wait > Duration::ZERO).then_some(LimitReached { key, limit, demand, wait: Some(wait) })
        });
        longest_of(reached)
    }

    /// The limit of this scope that an addition would exceed.
    pub(super) fn reached(&mut self, addition: Addition<'_>) -> Option<LimitReached> {
        let reached = LimitKind::ALL.into_iter().filter_map(|kind| {
            let limit = kind.value_in(self.limits)?;
            let demand = addition.demand(kind);
            if self.has_room(kind, limit, addition) {
                return None;
            }
            let wait = (demand <= limit).then(|| self.time_until_room(kind, limit, addition));
            let key = LimitKey { deployment: self.deployment.cloned(), kind };
            Some(LimitReached { key, limit, demand, wait })
        });
        longest_of(reached)
    }

    fn is_used_up(&self, addition: Addition<'_>) -> bool {
        let leases = &self.used.leases;
        LimitKind::ALL.into_iter().any(|kind| {
            kind.value_in(self.limits).is_some()
                && leases.free(kind, addition.now) < addition.demand(kind)
                && leases.is_used_up(kind, addition.now)
        })
    }

    /// Takes an addition from the leases. Returns whether more should be leased in advance.
    fn take_lease(&mut self, addition: Addition<'_>) -> bool {
        self.used.is_changed = true;
        let mut is_low = false;
        for kind in LimitKind::ALL {
            if kind.value_in(self.limits).is_some() {
                is_low |= self.used.leases.take(kind, addition.demand(kind));
            }
        }
        is_low
    }

    /// Whether an addition stays within a limit.
    fn has_room(&mut self, kind: LimitKind, limit: u64, addition: Addition<'_>) -> bool {
        let demand = addition.demand(kind);
        // What uses nothing of a budget or of tokens is not held up by them, however little is left.
        if demand == 0 {
            return true;
        }
        match addition.basis {
            Basis::Lease => demand <= limit && demand <= self.used.leases.free(kind, addition.now),
            Basis::Part(instances) if kind.window().is_none() => {
                let used = self.used.counted(kind, addition.now, addition.time);
                let others = self.used.leases.recent_others(kind, addition.now);
                // One request at a time is possible whatever it needs.
                let is_within_part = used == 0 || used.saturating_add(demand) <= part_of(limit, instances);
                is_within_part && used.saturating_add(others).saturating_add(demand) <= limit
            }
            Basis::Known | Basis::Part(_) => {
                let used = self.used.known_use(kind, addition.now, addition.time);
                used.saturating_add(demand) <= limit
            }
        }
    }

    /// How long it takes until an addition has room.
    fn time_until_room(&mut self, kind: LimitKind, limit: u64, addition: Addition<'_>) -> Duration {
        let now = addition.now;
        if let Some(window) = kind.window() {
            return window.time_left(addition.time);
        }
        if kind == LimitKind::InFlight {
            return addition.ends.time_until_next(now);
        }
        let demand = addition.demand(kind);
        let (limit, others) = match addition.basis {
            Basis::Part(instances) => (part_of(limit, instances).max(demand), Vec::new()),
            Basis::Known | Basis::Lease => (limit, self.used.leases.others_by_second(kind)),
        };
        let window = self.used.window_or_default(kind);
        let wait =
            window.map_or(Duration::ZERO, |window| window.time_until_fits(demand, limit, &others, now));
        if addition.basis == Basis::Lease { wait.max(LEASED_ELSEWHERE_WAIT) } else { wait }
    }

    /// Adds what it lacks of each lease to what is asked for next.
    fn ask_for_lease(&mut self, addition: Addition<'_>) {
        self.used.is_changed = true;
        for kind in LimitKind::ALL {
            if kind.value_in(self.limits).is_some() {
                self.used.leases.ask(kind, addition.demand(kind));
            }
        }
    }

    /// Adds it. Returns when the tokens were reserved, if they are limited.
    pub(super) fn book(&mut self, addition: Addition<'_>) -> Option<ReservedAt> {
        self.used.in_flight += 1;
        self.used.reserved = self.used.reserved.saturating_add(addition.amounts);
        if self.limits.requests_per_minute.is_some() {
            self.used.requests.get_or_insert_default().add(1, addition.now);
        }
        self.limits
            .tokens_per_minute
            .map(|_| self.used.tokens.get_or_insert_default().reserve(addition.amounts.tokens, addition.now))
    }
}
