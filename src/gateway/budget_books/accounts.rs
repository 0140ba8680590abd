//! All accounts of a process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::account::{BudgetAccount, BudgetScope, KnownUse, TakenUse};
use super::mailbox::Mailbox;
use super::save_problem::SaveProblem;
use super::subject::BookSubject;
use crate::admission::budgets::UtcWindows;
use crate::state::budget_log::BudgetEntry;

/// The accounts, and what they share with the thread that saves them.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub(super) subject: BookSubject,
    by_scope: Mutex<HashMap<BudgetScope, Arc<BudgetAccount>>>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) problem: SaveProblem,
}

impl Accounts {
    /// No accounts.
    pub(super) fn new(subject: BookSubject) -> Self {
        Self { subject, problem: SaveProblem::new(subject), ..Self::default() }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<(BudgetScope, Arc<BudgetAccount>)> {
        self.lock().iter().map(|(scope, account)| (scope.clone(), Arc::clone(account))).collect()
    }

    /// The account of a scope, which begins at 0 if it is new.
    pub(super) fn get_or_create(&self, scope: &BudgetScope) -> Arc<BudgetAccount> {
        let mut accounts = self.lock();
        if let Some(account) = accounts.get(scope) {
            return Arc::clone(account);
        }
        let account = Arc::new(BudgetAccount::new(scope.clone(), Arc::clone(&self.mailbox)));
        accounts.insert(scope.clone(), Arc::clone(&account));
        drop(accounts);
        self.problem.tell();
        account
    }

    /// Adds what a file tells, in the order of its lines: the last one of a scope counts.
    pub(super) fn restore(&self, entries: &[BudgetEntry]) {
        let last: HashMap<BudgetScope, KnownUse> = entries.iter().map(BudgetScope::read).collect();
        for (scope, used) in last.into_iter().filter(|(_, used)| !used.is_empty()) {
            self.get_or_create(&scope).restore(used);
        }
    }

    /// Adds what another process has counted.
    pub(super) fn add(&self, additions: &[BudgetEntry]) {
        for (scope, used) in additions.iter().map(BudgetScope::read) {
            self.get_or_create(&scope).add_use(used.own);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Takes what has to be saved.
    pub(super) fn take_unsaved(&self) -> Vec<TakenUse> {
        self.lock().values().filter_map(BudgetAccount::take_unsaved).collect()
    }

    /// Takes all that counts, and forgets accounts that nobody uses and of which nothing counts any longer.
    pub(super) fn take_all(&self, now: UtcWindows) -> Vec<TakenUse> {
        let mut accounts = self.lock();
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_outdated(now));
        let current = accounts.values().filter(|account| !account.is_outdated(now));
        current.map(BudgetAccount::take_all).collect()
    }

    /// They cannot be saved.
    pub(super) fn on_not_saved(&self, problem: String) {
        let is_used = self.len() > 0;
        self.problem.begin(problem, is_used);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BudgetScope, Arc<BudgetAccount>>> {
        self.by_scope.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
