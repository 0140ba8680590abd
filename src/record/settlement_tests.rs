use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::admission::budgets::UtcWindows;
use crate::admission::client::Client;
use crate::admission::limits::{
    Amounts, Budget, BudgetSums, BudgetWindow, ClientAccounts, ClientLimiter, Demand, TokenRates,
};
use crate::config::{ClientLimits, LimitSet, LimitsConfig};
use crate::money::Amount;
use crate::names::{BackendName, DeploymentName};
use crate::record::exchange::{AttemptRecord, WEBSOCKET_METHOD};
use crate::record::testing::answered_exchange;
use ExchangeOutcome::{Answered, ClientGone, Failed, Refused};

/// What the requests here are estimated at.
const ESTIMATE: u64 = 100;

#[derive(Debug, Default)]
struct MemoryBudget(Mutex<Amounts>);

impl Budget for MemoryBudget {
    fn add(&self, amounts: Amounts, _now: SystemTime) {
        let mut used = self.0.lock().unwrap();
        *used = used.saturating_add(amounts);
    }

    fn correct(&self, _windows: UtcWindows, _correction: BudgetSums) {}

    fn add_missing(&self, _window: BudgetWindow, sums: BudgetSums, now: SystemTime) {
        self.add(sums.booked, now);
    }

    fn counted(&self, _window: BudgetWindow, _now: SystemTime) -> BudgetSums {
        BudgetSums { booked: *self.0.lock().unwrap(), ..BudgetSums::default() }
    }

    fn give_up(&self, _window: BudgetWindow, _sums: BudgetSums, _now: SystemTime) {}

    fn note_others(&self, _window: BudgetWindow, _number: u32, _sums: BudgetSums) {}

    fn others(&self, _window: BudgetWindow, _number: u32) -> BudgetSums {
        BudgetSums::default()
    }
}

fn limiter() -> Arc<ClientLimiter> {
    limiter_of(LimitSet { tokens_per_minute: Some(1000), tokens_per_day: Some(1000), ..LimitSet::default() })
}

/// The limiter of a client with these limits, in total and for the deployment.
fn limiter_of(set: LimitSet) -> Arc<ClientLimiter> {
    let limits = ClientLimits { total: set, deployments: BTreeMap::from([(deployment(), set)]) };
    let account = ClientAccounts::new(Instant::now()).find_or_create(None);
    let open_budget = |_: Option<&DeploymentName>| Arc::new(MemoryBudget::default()) as Arc<dyn Budget>;
    Arc::new(ClientLimiter::new(Arc::new(limits), &LimitsConfig::default(), account, &open_budget))
}

fn deployment() -> DeploymentName {
    DeploymentName::parse("gpt-4o").unwrap()
}

/// The one amount that counts against all limits.
fn counted(limiter: &ClientLimiter) -> u64 {
    let uses = limiter.uses(Instant::now(), SystemTime::now());
    assert_eq!(uses.len(), 4);
    let first = uses.first().unwrap().used;
    assert!(uses.iter().all(|limit| limit.used == first), "{uses:?}");
    first
}

fn attempt((status, error_code): (Option<u16>, Option<&'static str>)) -> AttemptRecord {
    AttemptRecord {
        backend: BackendName::new("one"),
        status,
        error_code,
        start: Duration::ZERO,
        time_to_response_head: None,
        duration_ms: 0,
        retry_after_ms: None,
        verdict: None,
        span_id: None,
    }
}

fn usage(input: u64, output: u64) -> Option<TokenUsage> {
    Some(TokenUsage { input: Some(input), output: Some(output), ..TokenUsage::default() })
}

/// An exchange that has reserved the estimate of a limiter.
fn reserved_exchange(limiter: &Arc<ClientLimiter>) -> FinishedExchange {
    // A token costs a millionth.
    let rates = Some(TokenRates { input: None, output: Some(Amount::from_millionths(1_000_000)) });
    let demand = Demand {
        max_output_tokens: Some(ESTIMATE),
        choices: 1,
        has_output: true,
        rates,
        ..Demand::default()
    };
    let reserved = limiter.reserve(Some(&deployment()), &demand, Instant::now(), SystemTime::now());
    FinishedExchange {
        requested_deployment: Some(deployment()),
        reservation: Some(Box::new(reserved.unwrap())),
        ..answered_exchange()
    }
}

#[test]
fn what_counts_is_what_is_told_or_else_what_may_have_been_billed() {
    let (ok, none) = ((Some(200), None), (None, None));
    let gone = (None, Some("client_gone"));
    for (outcome, client_status, attempts, told, expected) in [
        // What is told counts, however the exchange ended.
        (Answered, Some(200), &[ok][..], usage(30, 12), 42),
        (Answered, Some(200), &[(Some(429), None), ok], usage(300, 12), 312),
        (Failed, Some(200), &[ok], usage(30, 12), 42),
        (ClientGone, Some(200), &[ok], usage(30, 12), 42),
        (ClientGone, None, &[ok], usage(30, 12), 42),
        (Answered, Some(200), &[ok], usage(0, 0), 0),
        // An answer that does not tell.
        (Answered, Some(200), &[ok], None, ESTIMATE),
        (Answered, Some(201), &[ok], None, ESTIMATE),
        (Answered, Some(399), &[ok], None, ESTIMATE),
        // Errors of a backend that reach the client.
        (Answered, Some(400), &[(Some(400), None)], None, 0),
        (Answered, Some(404), &[(Some(404), None)], None, 0),
        (Answered, Some(429), &[(Some(429), None), (Some(429), None)], None, 0),
        (Answered, Some(500), &[(Some(500), None)], None, 0),
        (Answered, None, &[], None, 0),
        // Refusals of the load balancer.
        (Refused, Some(429), &[], None, 0),
        (Refused, Some(429), &[(Some(429), None)], None, 0),
        (Refused, None, &[ok], None, 0),
        // The client has seen the beginning of it.
        (Failed, Some(200), &[(Some(200), Some("idle_timeout"))], None, ESTIMATE),
        // It has seen nothing of it.
        (Failed, Some(502), &[(None, Some("connect_refused"))], None, 0),
        (Failed, Some(502), &[(Some(200), Some("reset"))], None, 0),
        (Failed, Some(504), &[(None, Some("first_byte_timeout"))], None, 0),
        (Failed, None, &[(None, Some("reset"))], None, 0),
        // A backend may go on without the client.
        (ClientGone, Some(200), &[ok], None, ESTIMATE),
        (ClientGone, None, &[gone], None, ESTIMATE),
        (ClientGone, None, &[none], None, ESTIMATE),
        (ClientGone, None, &[ok], None, ESTIMATE),
        (ClientGone, None, &[(None, Some("first_byte_timeout"))], None, ESTIMATE),
        (ClientGone, None, &[(None, Some("reset"))], None, ESTIMATE),
        (ClientGone, None, &[(Some(429), None), gone], None, ESTIMATE),
        (ClientGone, None, &[(None, Some("dns")), gone], None, ESTIMATE),
        // None has begun.
        (ClientGone, None, &[], None, 0),
        (ClientGone, None, &[(Some(429), None)], None, 0),
        (ClientGone, None, &[(Some(400), None), (Some(503), None)], None, 0),
        (ClientGone, None, &[(None, Some("dns"))], None, 0),
        (ClientGone, None, &[(None, Some("connect"))], None, 0),
        (ClientGone, None, &[(None, Some("connect_refused")), (Some(429), None)], None, 0),
        (ClientGone, None, &[(None, Some("connect_timeout"))], None, 0),
        (ClientGone, None, &[(None, Some("tls"))], None, 0),
        (ClientGone, None, &[(None, Some("credential"))], None, 0),
    ] {
        let case = format!("{outcome:?} {client_status:?} {attempts:?} {told:?}");
        let limiter = limiter();
        let mut exchange = FinishedExchange {
            outcome,
            client_status,
            attempts: attempts.iter().copied().map(attempt).collect(),
            ..reserved_exchange(&limiter)
        };
        assert_eq!(counted(&limiter), ESTIMATE, "{case}");
        exchange.settle_limits(told.as_ref(), false, None);
        assert_eq!(counted(&limiter), expected, "{case}");
        assert!(exchange.reservation.is_none(), "{case}");
        drop(exchange);
        assert_eq!(counted(&limiter), expected, "{case}");
    }
}

#[test]
fn a_limit_by_cost_counts_the_known_cost_or_the_estimate_of_unknown_tokens() {
    use ResponseCost::{BilledLater, Known, NotBilled, Provisioned, Unknown};
    let known = Some(Known(Amount::from_millionths(77)));
    for (method, told, cost, expected) in [
        ("POST", usage(30, 12), known, 77),
        ("POST", None, known, 77),
        ("POST", usage(30, 12), Some(Provisioned), 0),
        ("POST", None, Some(Provisioned), 0),
        ("POST", None, Some(NotBilled), 0),
        // Without a price.
        ("POST", usage(30, 12), Some(Unknown), 0),
        ("POST", None, Some(Unknown), ESTIMATE),
        ("POST", None, Some(BilledLater), ESTIMATE),
        ("POST", usage(30, 12), None, 0),
        // The cost is that of an earlier request, which counts as estimated.
        ("GET", usage(30, 12), known, 0),
    ] {
        let limiter =
            limiter_of(LimitSet { cost_per_day: Some(Amount::from_millionths(1000)), ..LimitSet::default() });
        let mut exchange = FinishedExchange { method: method.to_owned(), ..reserved_exchange(&limiter) };
        exchange.settle_limits(told.as_ref(), false, cost);
        let uses = limiter.uses(Instant::now(), SystemTime::now());
        assert_eq!(
            uses.iter().map(|limit| limit.used).collect::<Vec<_>>(),
            [expected; 2],
            "{method} {told:?} {cost:?}"
        );
    }
}

#[test]
fn what_fetches_a_stored_object_uses_nothing() {
    for (method, told, expected) in [
        ("POST", usage(30, 12), 42),
        ("POST", None, ESTIMATE),
        (WEBSOCKET_METHOD, usage(30, 12), 42),
        (WEBSOCKET_METHOD, None, ESTIMATE),
        // The tokens are those of an earlier request.
        ("GET", usage(30, 12), 0),
        ("GET", None, 0),
        ("DELETE", None, 0),
    ] {
        let limiter = limiter();
        let mut exchange = FinishedExchange { method: method.to_owned(), ..reserved_exchange(&limiter) };
        exchange.settle_limits(told.as_ref(), false, None);
        assert_eq!(counted(&limiter), expected, "{method} {told:?}");
    }
}

#[test]
fn counts_that_are_not_told_follow_from_the_total() {
    let (some, none) = (Some, None);
    for (input, output, cached, total, expected) in [
        (some(30), some(12), some(10), some(42), (30, 10, 12)),
        (some(30), some(12), none, none, (30, 0, 12)),
        (some(30), none, none, some(30), (30, 0, 0)),
        (some(30), none, none, some(42), (30, 0, 12)),
        (none, some(12), none, some(42), (30, 0, 12)),
        (none, none, none, some(42), (42, 0, 0)),
        (some(30), some(12), none, some(99), (30, 0, 12)),
        (some(30), none, none, some(9), (30, 0, 0)),
        (none, none, none, none, (0, 0, 0)),
    ] {
        let usage = TokenUsage { input, output, cached, total, ..TokenUsage::default() };
        let used = used_tokens(&usage);
        assert_eq!((used.input, used.cached, used.output), expected, "{usage:?}");
    }
}

#[test]
fn a_response_of_a_session_counts_without_a_reservation() {
    let limiter = limiter();
    let mut client = Client::unrestricted();
    client.limiter = Some(Arc::clone(&limiter));
    let client = Arc::new(client);
    let exchange = || FinishedExchange {
        client: Some(Arc::clone(&client)),
        requested_deployment: Some(deployment()),
        method: WEBSOCKET_METHOD.to_owned(),
        ..answered_exchange()
    };
    exchange().settle_limits(usage(30, 12).as_ref(), false, None);
    assert_eq!(counted(&limiter), 42);
    exchange().settle_limits(None, false, None);
    FinishedExchange { method: "GET".to_owned(), ..exchange() }.settle_limits(
        usage(30, 12).as_ref(),
        false,
        None,
    );
    FinishedExchange { client: None, ..exchange() }.settle_limits(usage(30, 12).as_ref(), false, None);
    let without_limits = Some(Arc::new(Client::unrestricted()));
    FinishedExchange { client: without_limits, ..exchange() }.settle_limits(
        usage(30, 12).as_ref(),
        false,
        None,
    );
    assert_eq!(counted(&limiter), 42);
}
