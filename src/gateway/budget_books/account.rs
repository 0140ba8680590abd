//! What was used in one scope.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::mailbox::Mailbox;
use crate::admission::budgets::{BudgetUse, UtcWindows};
use crate::admission::limits::{Budget, LimitKind};
use crate::names::{ClientName, DeploymentName};
use crate::state::budget_log::BudgetEntry;

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
        let of = |day_tokens, month_tokens| BudgetUse { windows, day_tokens, month_tokens };
        let own = of(entry.day_tokens, entry.month_tokens);
        (scope, KnownUse { own, others: of(entry.others_day_tokens, entry.others_month_tokens) })
    }

    /// The entry for what was used. It has the later day and month of the two; what was used before does not count.
    pub(super) fn to_entry(&self, KnownUse { own, others }: KnownUse) -> BudgetEntry {
        let windows = UtcWindows {
            day: own.windows.day.max(others.windows.day),
            month: own.windows.month.max(others.windows.month),
        };
        BudgetEntry {
            client: self.client.clone(),
            deployment: self.deployment.clone(),
            day: windows.day,
            day_tokens: own.used_in_day(windows),
            month: windows.month,
            month_tokens: own.used_in_month(windows),
            others_day_tokens: others.used_in_day(windows),
            others_month_tokens: others.used_in_month(windows),
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
        [self.own, self.others].iter().all(|used| used.used_in_day(now) == 0 && used.used_in_month(now) == 0)
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
        let BudgetUse { windows, day_tokens, month_tokens } = used.others;
        state.used.others.raise_day(windows.day, day_tokens);
        state.used.others.raise_month(windows.month, month_tokens);
    }

    /// Adds what another process has counted.
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

    fn lock(&self) -> MutexGuard<'_, AccountState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Budget for BudgetAccount {
    fn add(&self, tokens: u64, now: SystemTime) {
        if tokens == 0 {
            return;
        }
        let windows = UtcWindows::at(now);
        let mut state = self.lock();
        state.used.own.add(tokens, windows);
        // As it was counted: the clock may have been set back.
        let counted = BudgetUse { windows: state.used.own.windows, day_tokens: tokens, month_tokens: tokens };
        state.unsaved.merge(counted);
        drop(state);
        self.mailbox.on_change();
    }

    fn add_missing(&self, kind: LimitKind, tokens: u64, now: SystemTime) {
        if tokens == 0 {
            return;
        }
        let [day_tokens, month_tokens] = [LimitKind::TokensPerDay, LimitKind::TokensPerMonth]
            .map(|of| if of == kind { tokens } else { 0 });
        self.add_use(BudgetUse { windows: UtcWindows::at(now), day_tokens, month_tokens });
    }

    fn give_up(&self, kind: LimitKind, tokens: u64, now: SystemTime) {
        let windows = UtcWindows::at(now);
        let mut state = self.lock();
        match kind {
            LimitKind::TokensPerDay => state.used.own.reduce_day(tokens, windows),
            LimitKind::TokensPerMonth => state.used.own.reduce_month(tokens, windows),
            LimitKind::RequestsPerMinute | LimitKind::TokensPerMinute | LimitKind::InFlight => {}
        }
        state.is_file_behind = true;
        drop(state);
        self.mailbox.on_change();
    }

    fn used(&self, now: SystemTime) -> (u64, u64) {
        let (windows, state) = (UtcWindows::at(now), self.lock());
        (state.used.own.used_in_day(windows), state.used.own.used_in_month(windows))
    }

    fn note_others(&self, kind: LimitKind, window: u32, tokens: u64) {
        let mut state = self.lock();
        let others = &mut state.used.others;
        let is_news = match kind {
            LimitKind::TokensPerDay => others.raise_day(window, tokens),
            LimitKind::TokensPerMonth => others.raise_month(window, tokens),
            LimitKind::RequestsPerMinute | LimitKind::TokensPerMinute | LimitKind::InFlight => false,
        };
        state.is_file_behind |= is_news;
        drop(state);
        if is_news {
            self.mailbox.on_change();
        }
    }

    fn others(&self, kind: LimitKind, window: u32) -> u64 {
        let state = self.lock();
        match kind {
            LimitKind::TokensPerDay => state.used.others.used_in_day(UtcWindows { day: window, month: 0 }),
            LimitKind::TokensPerMonth => {
                state.used.others.used_in_month(UtcWindows { day: 0, month: window })
            }
            LimitKind::RequestsPerMinute | LimitKind::TokensPerMinute | LimitKind::InFlight => 0,
        }
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
