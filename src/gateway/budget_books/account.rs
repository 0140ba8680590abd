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

impl BudgetScope {
    /// The scope and the use that an entry tells.
    pub(super) fn read(entry: &BudgetEntry) -> (Self, BudgetUse) {
        let scope = Self { client: entry.client.clone(), deployment: entry.deployment.clone() };
        let windows = UtcWindows { day: entry.day, month: entry.month };
        (scope, BudgetUse { windows, day_tokens: entry.day_tokens, month_tokens: entry.month_tokens })
    }

    /// The entry that tells this use.
    pub(super) fn to_entry(&self, used: BudgetUse) -> BudgetEntry {
        BudgetEntry {
            client: self.client.clone(),
            deployment: self.deployment.clone(),
            day: used.windows.day,
            day_tokens: used.day_tokens,
            month: used.windows.month,
            month_tokens: used.month_tokens,
        }
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
    used: BudgetUse,
    /// The part of it that neither the file nor another process has.
    unsaved: BudgetUse,
}

/// What was taken from an account in order to save it.
#[derive(Debug)]
pub(super) struct TakenUse {
    account: Arc<BudgetAccount>,
    used: BudgetUse,
    unsaved: BudgetUse,
}

impl BudgetAccount {
    pub(super) fn new(scope: BudgetScope, mailbox: Arc<Mailbox>) -> Self {
        Self { scope, state: Mutex::default(), mailbox }
    }

    /// Adds what the file tells.
    pub(super) fn restore(&self, used: BudgetUse) {
        self.lock().used.merge(used);
    }

    /// Adds what another process has counted.
    pub(super) fn add_use(&self, used: BudgetUse) {
        let mut state = self.lock();
        state.used.merge(used);
        state.unsaved.merge(used);
        drop(state);
        self.mailbox.on_change();
    }

    /// Whether nothing of it counts any longer, and all of it is saved.
    pub(super) fn is_outdated(&self, now: UtcWindows) -> bool {
        let state = self.lock();
        state.unsaved.is_empty() && state.used.used_in_month(now) == 0 && state.used.used_in_day(now) == 0
    }

    /// Takes what has to be saved; `None` if that is nothing.
    pub(super) fn take_unsaved(self: &Arc<Self>) -> Option<TakenUse> {
        let mut state = self.lock();
        let (used, unsaved) = (state.used, std::mem::take(&mut state.unsaved));
        drop(state);
        (!unsaved.is_empty()).then(|| TakenUse { account: Arc::clone(self), used, unsaved })
    }

    /// Takes what is used, whether or not it is saved.
    pub(super) fn take_all(self: &Arc<Self>) -> TakenUse {
        let mut state = self.lock();
        let (used, unsaved) = (state.used, std::mem::take(&mut state.unsaved));
        drop(state);
        TakenUse { account: Arc::clone(self), used, unsaved }
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
        state.used.add(tokens, windows);
        // As it was counted: the clock may have been set back.
        let counted = BudgetUse { windows: state.used.windows, day_tokens: tokens, month_tokens: tokens };
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

    fn used(&self, now: SystemTime) -> (u64, u64) {
        let (windows, state) = (UtcWindows::at(now), self.lock());
        (state.used.used_in_day(windows), state.used.used_in_month(windows))
    }
}

impl TakenUse {
    /// All that is used.
    pub(super) fn total(&self) -> BudgetEntry {
        self.account.scope.to_entry(self.used)
    }

    /// What was added since it was last taken.
    pub(super) fn addition(&self) -> BudgetEntry {
        self.account.scope.to_entry(self.unsaved)
    }

    /// It could not be saved.
    pub(super) fn put_back(self) {
        self.account.lock().unsaved.merge(self.unsaved);
    }
}
