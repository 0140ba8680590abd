//! Clients with limits, for tests.

use std::path::Path;
use std::time::{Instant, SystemTime};

use crate::admission::client_registry::ClientRegistry;
use crate::admission::limits::{ClientAccounts, LimitBooks, UsedTokens};
use crate::config::parse_and_check_yaml;
use crate::gateway::budget_books::BudgetBooks;
use crate::names::DeploymentName;

/// The clients of a configuration, and the moment at which they are looked at.
pub(super) struct TestClients {
    pub(super) registry: ClientRegistry,
    pub(super) now: Instant,
    pub(super) wall_now: SystemTime,
    accounts: ClientAccounts,
    budgets: BudgetBooks,
}

/// So many tokens of a prompt.
pub(super) fn tokens(input: u64) -> UsedTokens {
    UsedTokens { input, ..UsedTokens::default() }
}

impl TestClients {
    /// The clients of this YAML, which has `clients`, and `limits` if it likes.
    pub(super) fn new(yaml: &str) -> Self {
        let now = Instant::now();
        let (accounts, budgets) = (ClientAccounts::new(now), BudgetBooks::default());
        let registry = registry(yaml, &accounts, &budgets);
        Self { registry, now, wall_now: SystemTime::now(), accounts, budgets }
    }

    /// Replaces the configuration.
    pub(super) fn reload(&mut self, yaml: &str) {
        self.registry = registry(yaml, &self.accounts, &self.budgets);
    }

    /// Adds what this client has used.
    pub(super) fn add_used(&self, client: &str, deployment: Option<&str>, used: &UsedTokens) {
        let deployment = deployment.map(|name| DeploymentName::parse(name).unwrap());
        let client = self.registry.find_by_name(client).unwrap();
        client.limiter.as_ref().unwrap().add_used(deployment.as_ref(), used, self.now, self.wall_now);
    }
}

fn registry(yaml: &str, accounts: &ClientAccounts, budgets: &BudgetBooks) -> ClientRegistry {
    let yaml = format!(
        "listeners: [ {{ address: '127.0.0.1:8080' }} ]\n\
         backends: [ {{ name: w, endpoint: 'https://a.b', credential: {{ api_key: k }} }} ]\n{yaml}"
    );
    let config = parse_and_check_yaml(&yaml, Path::new("/"), &|_| None).unwrap().config;
    let open_budget = |client: Option<&_>, deployment: Option<&_>| -> _ { budgets.open(client, deployment) };
    let books = LimitBooks { accounts, open_budget: &open_budget };
    ClientRegistry::new(&config.clients, &config.limits, books, None, None)
}
