//! How far clients use their limits.

use std::cmp::Reverse;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::admission::client_registry::ClientRegistry;
use crate::admission::limits::{LimitUse, ShownAmount};

/// How many clients are listed at most: those that are closest to a limit.
const MAX_LISTED_CLIENTS: usize = 500;

/// The limits of clients, and how far they are used.
#[derive(Debug, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// `enforce`, or `observe`: nothing is refused.
    pub mode: String,
    /// Why the use of budgets is forgotten when the process ends, if it is; `null` if no client has a budget.
    pub budgets_not_saved: Option<String>,
    /// The currency of limits by cost; `null` if no client has one.
    #[serde(default)]
    pub currency: Option<String>,
    /// The clients that have limits, the one that is closest to a limit first.
    pub clients: Vec<LimitedClient>,
}

/// A client that has limits.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/operations.md has them")]
pub struct LimitedClient {
    /// `null` stands for all clients together, if they need no key.
    pub client: Option<String>,
    pub class: String,
    pub limits: Vec<LimitUsage>,
}

/// How far a limit is used.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct LimitUsage {
    /// The key of the limit, such as `tokens_per_minute` or `deployments.gpt-4o.tokens_per_minute`.
    pub limit: String,
    /// A limit by cost is a decimal number in the currency of the prices, as are the other two.
    pub value: ShownAmount,
    /// Including what requests in progress have reserved. It may be more than the value.
    pub used: ShownAmount,
    pub remaining: ShownAmount,
}

impl LimitUsage {
    /// How much of it is used, in whole per cent. It is 100 or more only if nothing is left.
    pub fn used_percent(&self) -> u64 {
        let (value, used) = (whole_number(self.value), whole_number(self.used));
        let percent = u128::from(used) * 100 / u128::from(value.max(1));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }
}

/// An amount in whole numbers of its smallest part: of requests, of tokens, or of millionths of the currency.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
fn whole_number(amount: ShownAmount) -> u64 {
    match amount {
        ShownAmount::Count(count) => count,
        ShownAmount::Money(amount) => (amount * 1e6).round() as u64,
    }
}

impl From<LimitUse> for LimitUsage {
    fn from(limit: LimitUse) -> Self {
        let shown = |amount| limit.key.kind.shown(amount);
        Self {
            limit: limit.key.to_string(),
            value: shown(limit.limit),
            used: shown(limit.used),
            remaining: shown(limit.remaining()),
        }
    }
}

impl LimitedClient {
    /// How much of the limit that it is closest to is used.
    fn highest_percent(&self) -> u64 {
        self.limits.iter().map(LimitUsage::used_percent).max().unwrap_or(0)
    }
}

/// How far these clients use their limits; `None` if none has limits. `budgets_not_saved` returns why the use of budgets
/// does not outlive the process, and `currency` that of the prices.
pub(in crate::admin) fn limits_status(
    clients: &ClientRegistry,
    budgets_not_saved: impl FnOnce() -> Option<String>,
    currency: impl FnOnce() -> Option<String>,
    now: Instant,
    wall_now: SystemTime,
) -> Option<LimitsStatus> {
    let limited =
        || clients.all_clients().iter().filter_map(|client| Some((client, client.limiter.as_ref()?)));
    let mode = limited().next()?.1.mode();
    let has_budgets = limited().any(|(_, limiter)| limiter.has_budgets());
    let has_costs = limited().any(|(_, limiter)| limiter.has_cost_limits());
    let mut clients: Vec<LimitedClient> = limited()
        .map(|(client, limiter)| LimitedClient {
            client: client.name.as_ref().map(ToString::to_string),
            class: client.class.as_str().to_owned(),
            limits: limiter.uses(now, wall_now).into_iter().map(LimitUsage::from).collect(),
        })
        .collect();
    clients.sort_by_cached_key(|client| (Reverse(client.highest_percent()), client.client.clone()));
    clients.truncate(MAX_LISTED_CLIENTS);
    Some(LimitsStatus {
        mode: mode.as_str().to_owned(),
        budgets_not_saved: has_budgets.then(budgets_not_saved).flatten(),
        currency: has_costs.then(currency).flatten(),
        clients,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::admin::testing::{TestClients, tokens};

    const KEY: &str = "keys: [ { sha256: 000000000000000000000000000000000000000000000000000000000000000";

    fn status(clients: &TestClients) -> Value {
        let not_saved = || Some("disk full".to_owned());
        let currency = || Some("USD".to_owned());
        let limits = limits_status(&clients.registry, not_saved, currency, clients.now, clients.wall_now);
        serde_json::to_value(limits).unwrap()
    }

    #[test]
    fn each_client_with_limits_is_listed_with_what_it_uses_the_closest_to_a_limit_first() {
        let mut clients = TestClients::new(&format!(
            "
clients:
  - {{ name: idle, {KEY}1 }} ], limits: {{ in_flight: 2 }} }}
  - {{ name: free, {KEY}2 }} ] }}
  - {{ name: busy, class: batch, {KEY}3 }} ],
      limits: {{ tokens_per_day: 1000, deployments: {{ gpt-4o: {{ tokens_per_minute: 100 }} }} }} }}
"
        ));
        clients.add_used("busy", Some("gpt-4o"), &tokens(120));
        clients.add_used("busy", None, &tokens(80));
        let limit = |limit, value, used, remaining| json!({ "limit": limit, "value": value, "used": used, "remaining": remaining });
        let busy = [
            limit("tokens_per_day", 1000, 200, 800),
            limit("deployments.gpt-4o.tokens_per_minute", 100, 120, 0),
        ];
        assert_eq!(
            status(&clients),
            json!({ "mode": "enforce", "budgets_not_saved": "disk full", "currency": null, "clients": [
                { "client": "busy", "class": "batch", "limits": busy },
                { "client": "idle", "class": "standard", "limits": [limit("in_flight", 2, 0, 2)] },
            ] })
        );
        clients.reload("limits: { mode: observe, default: { tokens_per_minute: 5 } }\nclients: open");
        assert_eq!(
            status(&clients),
            json!({ "mode": "observe", "budgets_not_saved": null, "currency": null, "clients": [
                { "client": null, "class": "standard", "limits": [limit("tokens_per_minute", 5, 0, 5)] },
            ] })
        );
        clients.reload("clients: open");
        assert_eq!(status(&clients), Value::Null);
    }

    #[test]
    fn limits_by_cost_are_in_the_currency() {
        let clients = TestClients::new(&format!(
            "
prices: {{ currency: USD, rows: [ {{ model: m, input: 1 }} ] }}
clients:
  - {{ name: a, {KEY}1 }} ], limits: {{ cost_per_day: 0.5, cost_per_month: 2.00, in_flight: 4 }} }}
"
        ));
        clients.add_cost("a", &tokens(10), 700_001);
        let limit = |limit: &str, value: Value, used: Value, remaining: Value| json!({ "limit": limit, "value": value, "used": used, "remaining": remaining });
        let limits = [
            limit("cost_per_day", json!(0.5), json!(0.700_001), json!(0.0)),
            limit("cost_per_month", json!(2.0), json!(0.700_001), json!(1.299_999)),
            limit("in_flight", json!(4), json!(0), json!(4)),
        ];
        assert_eq!(
            status(&clients),
            json!({ "mode": "enforce", "budgets_not_saved": "disk full", "currency": "USD", "clients": [
                { "client": "a", "class": "standard", "limits": limits },
            ] })
        );
    }

    #[test]
    fn a_limit_is_used_up_only_if_nothing_is_left() {
        for (value, used, percent) in [
            (10, 0, 0),
            (1000, 799, 79),
            (10, 8, 80),
            (1000, 999, 99),
            (10, 10, 100),
            (10, 25, 250),
            (1, u64::MAX, u64::MAX),
        ] {
            let usage = |value, used| LimitUsage { limit: String::new(), value, used, remaining: value };
            let counts = usage(ShownAmount::Count(value), ShownAmount::Count(used));
            assert_eq!(counts.used_percent(), percent, "{used} of {value}");
        }
        let money = |value, used| {
            let [value, used, remaining] = [value, used, 0.0].map(ShownAmount::Money);
            LimitUsage { limit: String::new(), value, used, remaining }.used_percent()
        };
        assert_eq!([money(0.1, 0.099_999), money(0.3, 0.3), money(1.0, 2.5)], [99, 100, 250]);
    }
}
