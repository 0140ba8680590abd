//! What was used in one scope.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::mailbox::Mailbox;
use crate::admission::budgets::{BudgetUse, UtcWindows, WindowSums};
use crate::admission::limits::{Amounts, Budget, BudgetSums, BudgetWindow};
use crate::names::{ClientName, DeploymentName};
use crate::state::budget_log::{BudgetEntry, CostCounts, RefundCounts};

/// What an account is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BudgetScope {
    /// The client; `None` for clients without a name.
    pub client: Option<ClientName>,
    /// The deployment; `None` for all of them.
    pub deployment: Option<DeploymentName>,
}

/// What was used in a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KnownUse {
    /// By this instance.
    pub(super) own: BudgetUse,
    /// By the other instances, when that was last known.
    pub(super) others: BudgetUse,
}

impl BudgetScope {
    /// The scope of an entry, and what was used in it.
    pub(super) fn read(entry: &BudgetEntry) -> (Self, KnownUse) {
        let scope = Self { client: entry.client.clone(), deployment: entry.deployment.clone() };
        let windows = UtcWindows { day: entry.day, month: entry.month };
        let sums = |tokens, costs: CostCounts, refunds: RefundCounts| WindowSums {
            tokens,
            cost_millionths: costs.millionths,
            refunded_tokens: refunds.tokens,
            refunded_cost_millionths: refunds.millionths,
            provisioned: costs.provisioned,
            without_cost: costs.unknown,
        };
        let own = BudgetUse {
            windows,
            day: sums(entry.day_tokens, entry.day_costs, entry.day_refunds),
            month: sums(entry.month_tokens, entry.month_costs, entry.month_refunds),
        };
        let others = BudgetUse {
            windows,
            day: sums(entry.others_day_tokens, entry.others_day_costs, entry.others_day_refunds),
            month: sums(entry.others_month_tokens, entry.others_month_costs, entry.others_month_refunds),
        };
        (scope, KnownUse { own, others })
    }

    /// The entry for what was used. It has the later day and month of the two; what was used before does not count.
    pub(super) fn to_entry(&self, KnownUse { own, others }: KnownUse) -> BudgetEntry {
        let windows = UtcWindows {
            day: own.windows.day.max(others.windows.day),
            month: own.windows.month.max(others.windows.month),
        };
        let used = |used: BudgetUse| (used.used_in_day(windows), used.used_in_month(windows));
        let ((day, month), (others_day, others_month)) = (used(own), used(others));
        let costs = |sums: WindowSums| CostCounts {
            millionths: sums.cost_millionths,
            provisioned: sums.provisioned,
            unknown: sums.without_cost,
        };
        let refunds = |sums: WindowSums| RefundCounts {
            tokens: sums.refunded_tokens,
            millionths: sums.refunded_cost_millionths,
        };
        BudgetEntry {
            client: self.client.clone(),
            deployment: self.deployment.clone(),
            day: windows.day,
            day_tokens: day.tokens,
            month: windows.month,
            month_tokens: month.tokens,
            day_costs: costs(day),
            month_costs: costs(month),
            others_day_tokens: others_day.tokens,
            others_month_tokens: others_month.tokens,
            others_day_costs: costs(others_day),
            others_month_costs: costs(others_month),
            day_refunds: refunds(day),
            month_refunds: refunds(month),
            others_day_refunds: refunds(others_day),
            others_month_refunds: refunds(others_month),
        }
    }
}

impl KnownUse {
    /// Whether nothing was used.
    pub(super) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.others.is_empty()
    }

    /// Whether nothing of it counts any longer.
    fn is_outdated(&self, now: UtcWindows) -> bool {
        [self.own, self.others]
            .iter()
            .all(|used| used.used_in_day(now).is_empty() && used.used_in_month(now).is_empty())
    }
}

/// The account of a scope, which all its requests share.
#[derive(Debug)]
pub struct BudgetAccount {
    scope: BudgetScope,
    state: Mutex<AccountState>,
    mailbox: Arc<Mailbox>,
}

#[derive(Debug, Default)]
struct AccountState {
    used: KnownUse,
    /// The part of what this instance has used that neither the file nor another process has.
    unsaved: BudgetUse,
    /// Something else has changed that the file does not have.
    is_file_behind: bool,
}

/// What was taken from an account in order to save it.
#[derive(Debug)]
pub(super) struct TakenUse {
    account: Arc<BudgetAccount>,
    used: KnownUse,
    unsaved: BudgetUse,
    was_file_behind: bool,
}

impl BudgetAccount {
    pub(super) fn new(scope: BudgetScope, mailbox: Arc<Mailbox>) -> Self {
        Self { scope, state: Mutex::default(), mailbox }
    }

    /// Adds what the file has.
    pub(super) fn restore(&self, used: KnownUse) {
        let mut state = self.lock();
        state.used.own.merge(used.own);
        let BudgetUse { windows, day, month } = used.others;
        state.used.others.raise_day(windows.day, day);
        state.used.others.raise_month(windows.month, month);
    }

    /// Adds what was counted elsewhere, or for a day that may have passed.
    pub(super) fn add_use(&self, used: BudgetUse) {
        let mut state = self.lock();
        state.used.own.merge(used);
        state.unsaved.merge(used);
        drop(state);
        self.mailbox.on_change();
    }

    /// Whether nothing of it counts any longer, and all of it is saved.
    pub(super) fn is_outdated(&self, now: UtcWindows) -> bool {
        let state = self.lock();
        state.unsaved.is_empty() && !state.is_file_behind && state.used.is_outdated(now)
    }

    /// Takes what has to be saved; `None` if that is nothing.
    pub(super) fn take_unsaved(self: &Arc<Self>) -> Option<TakenUse> {
        let taken = self.take_all();
        (!taken.unsaved.is_empty() || taken.was_file_behind).then_some(taken)
    }

    /// Takes what is used, whether or not it is saved.
    pub(super) fn take_all(self: &Arc<Self>) -> TakenUse {
        let mut state = self.lock();
        let (used, unsaved) = (state.used, std::mem::take(&mut state.unsaved));
        let was_file_behind = std::mem::take(&mut state.is_file_behind);
        drop(state);
        TakenUse { account: Arc::clone(self), used, unsaved, was_file_behind }
    }

    /// What this instance has counted in the day or month of these windows.
    pub(super) fn sums(&self, window: BudgetWindow, now: UtcWindows) -> WindowSums {
        let used = self.lock().used.own;
        match window {
            BudgetWindow::Day => used.used_in_day(now),
            BudgetWindow::Month => used.used_in_month(now),
        }
    }

    fn lock(&self) -> MutexGuard<'_, AccountState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Budget for BudgetAccount {
    fn add(&self, amounts: Amounts, now: SystemTime) {
        if amounts.is_zero() {
            return;
        }
        let sums = WindowSums {
            tokens: amounts.tokens,
            cost_millionths: amounts.cost_millionths,
            ..WindowSums::default()
        };
        let windows = UtcWindows::at(now);
        let mut state = self.lock();
        state.used.own.add(sums, windows);
        // As it was counted: the clock may have been set back.
        let counted = BudgetUse::of_both(sums, state.used.own.windows);
        state.unsaved.merge(counted);
        drop(state);
        self.mailbox.on_change();
    }

    fn correct(&self, windows: UtcWindows, correction: BudgetSums) {
        // A booking of a day that is over is corrected in the month alone.
        self.add_use(BudgetUse::of_both(sums_of(correction), windows));
    }

    fn add_missing(&self, window: BudgetWindow, sums: BudgetSums, now: SystemTime) {
        if sums.is_zero() {
            return;
        }
        let mut missing = BudgetUse { windows: UtcWindows::at(now), ..BudgetUse::default() };
        match window {
            BudgetWindow::Day => missing.day = sums_of(sums),
            BudgetWindow::Month => missing.month = sums_of(sums),
        }
        self.add_use(missing);
    }

    fn give_up(&self, window: BudgetWindow, sums: BudgetSums, now: SystemTime) {
        let (sums, windows) = (sums_of(sums), UtcWindows::at(now));
        let mut state = self.lock();
        match window {
            BudgetWindow::Day => state.used.own.reduce_day(sums, windows),
            BudgetWindow::Month => state.used.own.reduce_month(sums, windows),
        }
        state.is_file_behind = true;
        drop(state);
        self.mailbox.on_change();
    }

    fn counted(&self, window: BudgetWindow, now: SystemTime) -> BudgetSums {
        budget_sums_of(self.sums(window, UtcWindows::at(now)))
    }

    fn note_others(&self, window: BudgetWindow, number: u32, sums: BudgetSums) {
        let sums = sums_of(sums);
        let mut state = self.lock();
        let others = &mut state.used.others;
        let is_news = match window {
            BudgetWindow::Day => others.raise_day(number, sums),
            BudgetWindow::Month => others.raise_month(number, sums),
        };
        state.is_file_behind |= is_news;
        drop(state);
        if is_news {
            self.mailbox.on_change();
        }
    }

    fn others(&self, window: BudgetWindow, number: u32) -> BudgetSums {
        let others = self.lock().used.others;
        budget_sums_of(match window {
            BudgetWindow::Day => others.used_in_day(UtcWindows { day: number, month: 0 }),
            BudgetWindow::Month => others.used_in_month(UtcWindows { day: 0, month: number }),
        })
    }
}

fn sums_of(BudgetSums { booked, refunded }: BudgetSums) -> WindowSums {
    WindowSums {
        tokens: booked.tokens,
        cost_millionths: booked.cost_millionths,
        refunded_tokens: refunded.tokens,
        refunded_cost_millionths: refunded.cost_millionths,
        ..WindowSums::default()
    }
}

fn budget_sums_of(sums: WindowSums) -> BudgetSums {
    BudgetSums {
        booked: Amounts { tokens: sums.tokens, cost_millionths: sums.cost_millionths },
        refunded: Amounts { tokens: sums.refunded_tokens, cost_millionths: sums.refunded_cost_millionths },
    }
}

impl TakenUse {
    /// All that is used.
    pub(super) fn total(&self) -> BudgetEntry {
        self.account.scope.to_entry(self.used)
    }

    /// What was added since it was last taken.
    pub(super) fn addition(&self) -> BudgetEntry {
        self.account.scope.to_entry(KnownUse { own: self.unsaved, others: BudgetUse::default() })
    }

    /// It could not be saved.
    pub(super) fn put_back(self) {
        let mut state = self.account.lock();
        state.unsaved.merge(self.unsaved);
        state.is_file_behind |= self.was_file_behind;
    }
}
