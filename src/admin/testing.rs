//! Clients with limits, and a queue, for tests.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::admission::client_registry::ClientRegistry;
use crate::admission::limits::{ClientAccounts, ClientLimiter, LimitBooks, UsedTokens};
use crate::admission::queue::{Choice, QueueBounds, QueueLimits, QueuePlace, QueuedRequest, RequestQueue};
use crate::config::{RequestClass, parse_and_check_yaml};
use crate::gateway::budget_books::BudgetBooks;
use crate::names::{Caller, DeploymentName, RoutedKey};

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
        self.limiter(client).add_used(deployment.as_ref(), used, 0, self.now, self.wall_now);
    }

    /// Adds what this client has used, at this cost in millionths of the currency.
    pub(super) fn add_cost(&self, client: &str, used: &UsedTokens, cost: u64) {
        self.limiter(client).add_used(None, used, cost, self.now, self.wall_now);
    }

    fn limiter(&self, client: &str) -> &ClientLimiter {
        self.registry.find_by_name(client).unwrap().limiter.as_deref().unwrap()
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

/// Nothing is ever free.
#[derive(PartialEq)]
pub(super) struct NothingFree;

impl Choice for NothingFree {
    type Turn = ();

    fn try_take(&self, _key: Option<RoutedKey>, _now: Instant) -> Option<()> {
        None
    }

    fn next_chance(&self, _now: Instant) -> Option<Instant> {
        None
    }
}

/// A queue in which requests wait until they leave.
pub(super) struct TestQueue {
    pub(super) queue: Arc<RequestQueue<NothingFree>>,
    places: Vec<QueuePlace<NothingFree>>,
}

impl TestQueue {
    pub(super) fn new() -> Self {
        Self { queue: Arc::default(), places: Vec::new() }
    }

    /// Has a request of this class wait in the line of this name.
    pub(super) fn join(&mut self, line: &str, class: RequestClass) {
        let (now, line) = (Instant::now(), self.queue.line(line));
        let caller = Caller::of(None, None);
        let request = QueuedRequest {
            class,
            caller,
            since: now,
            tokens: 1,
            bytes: 1,
            holds_up_others: true,
            key: None,
        };
        let bounds = QueueBounds { max_requests: 100, max_bytes: 100 };
        let deadline = now + Duration::from_secs(60);
        self.places.push(self.queue.join(
            &line,
            &request,
            NothingFree,
            None,
            QueueLimits { bounds, deadline },
            now,
        ));
    }

    /// All requests give up.
    pub(super) fn leave_all(&mut self) {
        self.places.clear();
    }
}
