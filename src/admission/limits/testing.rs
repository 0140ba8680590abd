//! Limits, clients and budgets for the tests of this module.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::account::ClientAccounts;
use super::amounts::Amounts;
use super::budget::Budget;
use super::budget_sums::BudgetSums;
use super::budget_window::BudgetWindow;
use super::keeper_link::KeeperLink;
use super::limit_key::LimitReached;
use super::limiter::ClientLimiter;
use super::reservation::{Reservation, Settlement};
use super::token_estimate::{Demand, TokenRates, UsedTokens};
use crate::admission::budgets::UtcWindows;
use crate::config::{ClientLimits, LimitMode, LimitSet, LimitsConfig};
use crate::money::Amount;
use crate::names::DeploymentName;

/// 2024-02-28, 18:00 UTC: six hours before the end of the day, thirty before that of the month.
const START_SECONDS: u64 = 1_709_143_200;

/// A budget that no day or month ends.
#[derive(Debug, Default)]
pub(super) struct MemoryBudget {
    own: Mutex<[BudgetSums; 2]>,
    others: Mutex<[BudgetSums; 2]>,
}

impl Budget for MemoryBudget {
    fn add(&self, amounts: Amounts, now: SystemTime) {
        for window in [BudgetWindow::Day, BudgetWindow::Month] {
            self.add_missing(window, BudgetSums { booked: amounts, ..BudgetSums::default() }, now);
        }
    }

    fn correct(&self, _windows: UtcWindows, correction: BudgetSums) {
        for window in [BudgetWindow::Day, BudgetWindow::Month] {
            self.add_missing(window, correction, UNIX_EPOCH);
        }
    }

    fn add_missing(&self, window: BudgetWindow, sums: BudgetSums, _now: SystemTime) {
        let BudgetSums { booked, refunded } = &mut self.own.lock().unwrap()[window as usize];
        (*booked, *refunded) = (booked.saturating_add(sums.booked), refunded.saturating_add(sums.refunded));
    }

    fn counted(&self, window: BudgetWindow, _now: SystemTime) -> BudgetSums {
        self.own.lock().unwrap()[window as usize]
    }

    fn give_up(&self, window: BudgetWindow, sums: BudgetSums, _now: SystemTime) {
        let BudgetSums { booked, refunded } = &mut self.own.lock().unwrap()[window as usize];
        (*booked, *refunded) = (booked.saturating_sub(sums.booked), refunded.saturating_sub(sums.refunded));
    }

    fn note_others(&self, window: BudgetWindow, _number: u32, sums: BudgetSums) {
        let known = &mut self.others.lock().unwrap()[window as usize];
        let max = |one: Amounts, other: Amounts| Amounts {
            tokens: one.tokens.max(other.tokens),
            cost_millionths: one.cost_millionths.max(other.cost_millionths),
        };
        known.booked = max(known.booked, sums.booked);
        known.refunded = max(known.refunded, sums.refunded);
    }

    fn others(&self, window: BudgetWindow, _number: u32) -> BudgetSums {
        self.others.lock().unwrap()[window as usize]
    }
}

/// One client, with an account and budgets that all its limiters share.
pub(super) struct TestClient {
    pub(super) accounts: ClientAccounts,
    start: Instant,
    budgets: Arc<Mutex<HashMap<Option<DeploymentName>, Arc<MemoryBudget>>>>,
}

impl TestClient {
    pub(super) fn new() -> Self {
        let start = Instant::now();
        Self { accounts: ClientAccounts::new(start), start, budgets: Arc::default() }
    }

    /// The same client in a process that takes over: with an empty account, and with the same budgets.
    pub(super) fn successor(&self) -> Self {
        let accounts = ClientAccounts::new(self.start);
        Self { accounts, start: self.start, budgets: Arc::clone(&self.budgets) }
    }

    pub(super) fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    /// The limiter of a configuration with these limits; see [`limits`].
    pub(super) fn limiter(&self, keys: &[(&str, u64)]) -> TestLimiter {
        self.limiter_with(keys, LimitMode::Enforce, 1000)
    }

    pub(super) fn limiter_with(
        &self,
        keys: &[(&str, u64)],
        mode: LimitMode,
        cached_weight_permille: u32,
    ) -> TestLimiter {
        let config = LimitsConfig { mode, default: None, cached_weight_permille };
        let open_budget = |deployment: Option<&DeploymentName>| -> Arc<dyn Budget> {
            Arc::clone(self.budgets.lock().unwrap().entry(deployment.cloned()).or_default())
                as Arc<dyn Budget>
        };
        let account = self.accounts.find_or_create(None);
        let limiter = ClientLimiter::new(Arc::new(limits(keys)), &config, account, &open_budget);
        TestLimiter { limiter: Arc::new(limiter), start: self.start }
    }
}

/// A limiter that takes times in milliseconds since the client's account was made.
#[derive(Clone)]
pub(super) struct TestLimiter {
    pub(super) limiter: Arc<ClientLimiter>,
    start: Instant,
}

impl TestLimiter {
    pub(super) fn reserve(
        &self,
        deployment: Option<&str>,
        tokens: u64,
        millis: u64,
    ) -> Result<TestReservation, LimitReached> {
        let deployment = deployment.map(name);
        let reservation =
            self.limiter.reserve(deployment.as_ref(), &demand(tokens), self.at(millis), time(millis))?;
        Ok(TestReservation { reservation, start: self.start })
    }

    /// Reserves with permission of another process.
    pub(super) async fn reserve_with_permission(
        &self,
        keeper: &Arc<KeeperLink>,
        tokens: u64,
        millis: u64,
    ) -> Result<TestReservation, LimitReached> {
        let reserved = self
            .limiter
            .reserve_with_permission(keeper, None, &demand(tokens), self.at(millis), time(millis))
            .await?;
        Ok(TestReservation { reservation: reserved, start: self.start })
    }

    /// The key of each limit, with what counts against it.
    pub(super) fn uses(&self, millis: u64) -> Vec<(String, u64)> {
        let uses = self.limiter.uses(self.at(millis), time(millis));
        uses.into_iter().map(|limit| (limit.key.to_string(), limit.used)).collect()
    }

    pub(super) fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }
}

/// A reservation that takes times as [`TestLimiter`] does.
#[derive(Debug)]
pub(super) struct TestReservation {
    pub(super) reservation: Reservation,
    start: Instant,
}

impl TestReservation {
    pub(super) fn settle(&mut self, settlement: Settlement, millis: u64) {
        self.reservation.settle(settlement, self.start + Duration::from_millis(millis), time(millis));
    }

    pub(super) fn leave_in_flight(&mut self, millis: u64) {
        self.reservation.leave_in_flight(self.start + Duration::from_millis(millis));
    }
}

pub(super) fn time(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(START_SECONDS) + Duration::from_millis(millis)
}

pub(super) fn name(name: &str) -> DeploymentName {
    DeploymentName::parse(name).unwrap()
}

/// A request that is estimated at exactly so many tokens, each of which costs a millionth.
pub(super) fn demand(tokens: u64) -> Demand {
    let rates = Some(TokenRates { input: None, output: Some(Amount::from_millionths(1_000_000)) });
    Demand { max_output_tokens: Some(tokens), choices: 1, has_output: true, rates, ..Demand::default() }
}

pub(super) fn used(tokens: u64) -> Settlement {
    Settlement::Used(UsedTokens { input: tokens, cached: 0, output: 0 })
}

/// Limits by their keys, such as `deployments.gpt-4o.tokens_per_minute`.
pub(super) fn limits(keys: &[(&str, u64)]) -> ClientLimits {
    let mut limits = ClientLimits::default();
    for (key, value) in keys {
        let (set, kind) = match key.strip_prefix("deployments.").and_then(|rest| rest.rsplit_once('.')) {
            Some((deployment, kind)) => (limits.deployments.entry(name(deployment)).or_default(), kind),
            None => (&mut limits.total, *key),
        };
        set_value(set, kind, *value);
    }
    limits
}

/// Sets a limit; one by cost to this many millionths.
fn set_value(set: &mut LimitSet, kind: &str, value: u64) {
    let cost = Some(Amount::from_millionths(value));
    match kind {
        "requests_per_minute" => set.requests_per_minute = Some(value),
        "tokens_per_minute" => set.tokens_per_minute = Some(value),
        "tokens_per_day" => set.tokens_per_day = Some(value),
        "tokens_per_month" => set.tokens_per_month = Some(value),
        "cost_per_day" => set.cost_per_day = cost,
        "cost_per_month" => set.cost_per_month = cost,
        "in_flight" => set.in_flight = Some(value),
        other => panic!("{other} is no limit"),
    }
}
