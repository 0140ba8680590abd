//! Decides whether a request stays within its client's limits, and reserves what it may use.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::account::{AccountState, ClientAccount, Parts, ScopeUse};
use super::amounts::Amounts;
use super::budget::{Budget, limits_cost, scopes_with_budget};
use super::check::{Addition, Basis, Check, NO_LIMITS, Scope, longest_of};
use super::keeper_link::{Grant, KeeperLink};
use super::limit_key::{LimitKey, LimitKind, LimitReached};
use super::limit_message::{Booking, LimitMessage, LimitScope};
use super::reservation::{Reservation, Reserved};
use super::token_estimate::{Demand, TokenEstimate, UsedTokens};
use crate::config::{ClientLimits, LimitMode, LimitSet, LimitsConfig};
use crate::names::DeploymentName;

/// The limits of one client according to one configuration, and its account.
#[derive(Debug)]
pub struct ClientLimiter {
    limits: Arc<ClientLimits>,
    mode: LimitMode,
    cached_weight_permille: u32,
    pub(super) account: Arc<ClientAccount>,
}

/// What is left of a rate, for the header fields `x-ratelimit-*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateState {
    /// The limit.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// How long it takes until all of it is left, if nothing else is used.
    pub reset: Duration,
}

/// How far a limit is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitUse {
    /// The limit.
    pub key: LimitKey,
    /// Its value, in its unit.
    pub limit: u64,
    /// What counts against it now.
    pub used: u64,
}

impl LimitUse {
    /// What is left of it; 0 if more is used than the limit, as a budget may be, or any limit that is only observed.
    pub fn remaining(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

impl ClientLimiter {
    /// The limiter of a client with these limits. `open_budget` finds what is used of its budget for a deployment, or
    /// for all.
    pub fn new(
        limits: Arc<ClientLimits>,
        config: &LimitsConfig,
        account: Arc<ClientAccount>,
        open_budget: &dyn Fn(Option<&DeploymentName>) -> Arc<dyn Budget>,
    ) -> Self {
        {
            let mut state = account.lock();
            state.limits = Arc::clone(&limits);
            for deployment in scopes_with_budget(&limits) {
                let (total, own) = state.scopes(deployment, true);
                let scope = own.unwrap_or(total);
                scope.budget = Some(open_budget(deployment));
                if account.is_shared() {
                    scope.leases.begin_use();
                }
            }
        }
        let LimitsConfig { mode, cached_weight_permille, .. } = *config;
        Self { limits, mode, cached_weight_permille, account }
    }

    /// Whether a request would exceed a limit.
    pub fn is_exceeded_by(
        &self,
        deployment: Option<&DeploymentName>,
        demand: &Demand,
        now: Instant,
        time: SystemTime,
    ) -> bool {
        let amounts = |estimate: TokenEstimate| estimate.amounts(demand);
        self.check(&mut self.account.lock(), Basis::Known, deployment, amounts, now, time).reached.is_some()
    }

    /// Reserves what a request may use. Under `mode: observe` nothing is refused, and
    /// [`Reservation::exceeded`] is the limit that would have refused the request.
    ///
    /// # Errors
    /// The limit that the request would exceed: the one that takes longest.
    pub fn reserve(
        &self,
        deployment: Option<&DeploymentName>,
        demand: &Demand,
        now: Instant,
        time: SystemTime,
    ) -> Result<Reservation, LimitReached> {
        let mut state = self.account.lock();
        let amounts = |estimate: TokenEstimate| estimate.amounts(demand);
        let check =
            self.check(&mut state, Basis::Known, deployment, amounts, now, time).unless_refused(self.mode)?;
        Ok(self.book(check, deployment, *demand, None))
    }

    /// Reserves what a request may use, with permission of the process that keeps the limits in place of this one. If no
    /// answer comes in time, this process admits up to its [`UnaskedShare`](super::unasked_share::UnaskedShare). If the
    /// connection is lost, it decides by its own account.
    ///
    /// # Errors
    /// The limit that the request would exceed.
    pub async fn reserve_with_permission(
        &self,
        keeper: &Arc<KeeperLink>,
        deployment: Option<&DeploymentName>,
        demand: &Demand,
        now: Instant,
        time: SystemTime,
    ) -> Result<Reservation, LimitReached> {
        let amounts = {
            let mut state = self.account.lock();
            let estimate = |estimate: TokenEstimate| estimate.amounts(demand);
            self.check(&mut state, Basis::Known, deployment, estimate, now, time).addition.amounts
        };
        let mut reservation = self.reserve_amounts(Some(keeper), deployment, amounts, now, time).await?;
        reservation.set_demand(*demand);
        Ok(reservation)
    }

    /// The same for a request whose tokens and cost are estimated. `keeper` is the process that keeps the limits in place of
    /// this one, if there is one.
    ///
    /// # Errors
    /// The limit that the request would exceed.
    pub async fn reserve_amounts(
        &self,
        keeper: Option<&Arc<KeeperLink>>,
        deployment: Option<&DeploymentName>,
        amounts: Amounts,
        now: Instant,
        time: SystemTime,
    ) -> Result<Reservation, LimitReached> {
        let keeper = keeper.filter(|keeper| self.mode == LimitMode::Enforce && !keeper.is_lost());
        let booking = Booking { scope: self.scope(deployment), amounts, reserved_at: [None; 2] };
        let answer = match keeper {
            Some(keeper) => keeper.ask(booking).await,
            None => None,
        };
        let grant = answer.transpose()?;
        let mut state = self.account.lock();
        let mut check = self.check(&mut state, Basis::Known, deployment, |_| amounts, now, time);
        if grant.is_none() {
            check = check.unless_refused(self.mode)?;
            if keeper.is_some_and(|keeper| !keeper.is_lost()) {
                check.take_unasked()?;
            }
        } else {
            // The keeper decides.
            check.reached = None;
        }
        Ok(self.book(check, deployment, Demand::default(), grant))
    }

    /// Adds tokens that were used without a reservation, and what they cost, in millionths of the currency.
    pub fn add_used(
        &self,
        deployment: Option<&DeploymentName>,
        used: &UsedTokens,
        cost_millionths: u64,
        now: Instant,
        time: SystemTime,
    ) {
        let used = Amounts { tokens: used.counted(self.cached_weight_permille), cost_millionths };
        let own_limits = deployment.and_then(|deployment| self.own_limits(deployment));
        let now = self.account.time_of(now);
        let time = self.account.wall_time(time);
        let mut state = self.account.lock();
        let (total, own) = state.scopes(deployment, own_limits.is_some());
        let limits = [Some(&self.limits.total), own_limits];
        for (scope, limits) in [Some(total), own].into_iter().zip(limits) {
            let Some(scope) = scope else { continue };
            scope.is_changed = true;
            scope.leases.take_excess(used);
            if limits.and_then(|limits| limits.tokens_per_minute).is_some() {
                scope.tokens.get_or_insert_default().add(used.tokens, now);
            }
            if let Some(budget) = &scope.budget {
                budget.add(used, time);
            }
        }
        self.account.on_change(&mut state.reports, false);
        if let Some(follower) = &state.follower {
            let booking = Booking {
                scope: self.scope(deployment),
                amounts: Amounts::default(),
                reserved_at: [None; 2],
            };
            follower.send(LimitMessage::Settled { booking, used: used.tokens });
        }
    }

    /// What happens to a request that exceeds a limit.
    pub fn mode(&self) -> LimitMode {
        self.mode
    }

    /// Whether a limit of a request for this deployment is about cost.
    pub fn limits_cost(&self, deployment: Option<&DeploymentName>) -> bool {
        limits_cost(&self.limits.total)
            || deployment.and_then(|deployment| self.own_limits(deployment)).is_some_and(limits_cost)
    }

    /// Whether any limit is about cost.
    pub fn has_cost_limits(&self) -> bool {
        limits_cost(&self.limits.total) || self.limits.deployments.values().any(limits_cost)
    }

    /// Whether a limit is a budget.
    pub fn has_budgets(&self) -> bool {
        scopes_with_budget(&self.limits).next().is_some()
    }

    /// Whether responses to the client have `x-ratelimit-*` of these limits instead of Azure's.
    pub fn tells_rates(&self) -> bool {
        let has_rate =
            |limits: &LimitSet| limits.requests_per_minute.is_some() || limits.tokens_per_minute.is_some();
        self.mode == LimitMode::Enforce
            && (has_rate(&self.limits.total) || self.limits.deployments.values().any(has_rate))
    }

    /// What is left of this rate for requests for this deployment: the tighter of the total and the deployment's
    /// own. `None` if there is no such limit.
    pub fn rate_state(
        &self,
        kind: LimitKind,
        deployment: Option<&DeploymentName>,
        now: Instant,
    ) -> Option<RateState> {
        let own_limits = deployment.and_then(|deployment| self.own_limits(deployment));
        let now = self.account.time_of(now);
        let mut state = self.account.lock();
        let (total, own) = state.scopes(deployment, own_limits.is_some());
        let total = rate_of(kind, &self.limits.total, total, now);
        let own = own_limits.zip(own).and_then(|(limits, own)| rate_of(kind, limits, own, now));
        [total, own].into_iter().flatten().min_by_key(|rate| rate.remaining)
    }

    /// How far each limit is used.
    pub fn uses(&self, now: Instant, time: SystemTime) -> Vec<LimitUse> {
        let (now, time) = (self.account.time_of(now), self.account.wall_time(time));
        let mut state = self.account.lock();
        let mut uses = Vec::new();
        let own = self.limits.deployments.iter().map(|(deployment, limits)| (Some(deployment), limits));
        for (deployment, limits) in std::iter::once((None, &self.limits.total)).chain(own) {
            let (total, own) = state.scopes(deployment, true);
            let used = own.unwrap_or(total);
            uses.extend(LimitKind::ALL.into_iter().filter_map(|kind| {
                let limit = kind.value_in(limits)?;
                let key = LimitKey { deployment: deployment.cloned(), kind };
                Some(LimitUse { key, limit, used: used.known_use(kind, now, time) })
            }));
        }
        uses
    }

    /// What a request adds to which limits, and which of them it would exceed.
    pub(super) fn check<'s>(
        &'s self,
        state: &'s mut AccountState,
        basis: Basis,
        deployment: Option<&'s DeploymentName>,
        amounts: impl FnOnce(TokenEstimate) -> Amounts,
        now: Instant,
        time: SystemTime,
    ) -> Check<'s> {
        let own_limits = deployment.and_then(|deployment| self.own_limits(deployment));
        let now = self.account.time_of(now);
        let time = self.account.wall_time(time);
        let Parts { total, own, ends, reports, follower } = state.parts(deployment, own_limits.is_some());
        let estimate = own.as_deref().map_or(total.estimate, |own| own.estimate);
        let addition = Addition { amounts: amounts(estimate), now, time, basis, ends };
        let mut total = Scope { deployment: None, limits: &self.limits.total, used: total };
        let mut own = own.map(|used| Scope { deployment, limits: own_limits.unwrap_or(&NO_LIMITS), used });
        let scopes = [Some(&mut total), own.as_mut()].into_iter().flatten();
        let reached = longest_of(scopes.filter_map(|scope| scope.reached(addition)));
        Check { total, own, addition, reached, reports, follower }
    }

    /// Admits a request, and reports it to a follower, unless the follower has granted it.
    pub(super) fn book(
        &self,
        mut check: Check<'_>,
        deployment: Option<&DeploymentName>,
        demand: Demand,
        grant: Option<Grant>,
    ) -> Reservation {
        if self.account.is_shared() {
            let is_low = check.take_lease(self.mode);
            self.account.on_change(check.reports, is_low);
        }
        let Check { mut total, mut own, addition, reached, follower, .. } = check;
        let amounts = addition.amounts;
        let reserved_at = [total.book(addition), own.as_mut().and_then(|own| own.book(addition))];
        // One that is not counted for its deployment must not end there: limits may be added to it meanwhile.
        let counted_deployment = deployment.filter(|_| own.is_some());
        let reserved_at_keeper = match (grant, follower) {
            (Some(grant), _) => grant.into_reserved_at(),
            (None, Some(follower)) => {
                let scope = self.scope(counted_deployment);
                follower.send(LimitMessage::Admitted(Booking { scope, amounts, reserved_at }));
                reserved_at
            }
            (None, None) => reserved_at,
        };
        let reserved = Reserved {
            cached_weight_permille: self.cached_weight_permille,
            deployment: counted_deployment.cloned(),
            demand,
            amounts,
            known_cost_millionths: None,
            reserved_at,
            reserved_at_keeper,
            exceeded: reached,
        };
        Reservation::new(Arc::clone(&self.account), reserved)
    }

    fn scope(&self, deployment: Option<&DeploymentName>) -> LimitScope {
        LimitScope::new(self.account.client.as_ref(), deployment)
    }

    fn own_limits(&self, deployment: &DeploymentName) -> Option<&LimitSet> {
        self.limits.deployments.get(deployment)
    }
}

/// What is left of a rate of one scope; `None` if it has no such limit.
fn rate_of(kind: LimitKind, limits: &LimitSet, used: &mut ScopeUse, now: Duration) -> Option<RateState> {
    let limit = kind.value_in(limits)?;
    let others = used.leases.others(kind, now);
    let own = used.window(kind).map_or(0, |window| window.total(now));
    let remaining = limit.saturating_sub(own.saturating_add(others));
    let reset = used.window(kind).map_or(Duration::ZERO, |window| window.time_until_empty(now));
    Some(RateState { limit, remaining, reset })
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
