//! How far clients use their limits.

use std::cmp::Reverse;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::admission::client_registry::ClientRegistry;
use crate::admission::limits::LimitUse;

/// How many clients are listed at most: those that are closest to a limit.
const MAX_LISTED_CLIENTS: usize = 500;

/// The limits of clients, and how far they are used.
#[derive(Debug, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// `enforce`, or `observe`: nothing is refused.
    pub mode: String,
    /// Why the use of budgets is forgotten when the process ends, if it is; `null` if no client has a budget.
    pub budgets_not_saved: Option<String>,
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
    pub value: u64,
    /// Including what requests in progress have reserved. It may be more than the value.
    pub used: u64,
    pub remaining: u64,
}

impl LimitUsage {
    /// How much of it is used, in whole per cent. It is 100 or more only if nothing is left.
    pub fn used_percent(&self) -> u64 {
        let percent = u128::from(self.used) * 100 / u128::from(self.value.max(1));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }
}

impl From<LimitUse> for LimitUsage {
    fn from(limit: LimitUse) -> Self {
        Self {
            limit: limit.key.to_string(),
            value: limit.limit,
            used: limit.used,
            remaining: limit.remaining(),
        }
    }
}

impl LimitedClient {
    /// How much of the limit that it is closest to is used.
    fn highest_percent(&self) -> u64 {
        self.limits.iter().map(LimitUsage::used_percent).max().unwrap_or(0)
    }
}

/// How far these clients use their limits; `None` if none has limits. `budgets_not_saved` tells why the use of budgets
/// does not outlive the process.
pub(in crate::admin) fn limits_status(
    clients: &ClientRegistry,
    budgets_not_saved: impl FnOnce() -> Option<String>,
    now: Instant,
    wall_now: SystemTime,
) -> Option<LimitsStatus> {
    let limited =
        || clients.all_clients().iter().filter_map(|client| Some((client, client.limiter.as_ref()?)));
    let mode = limited().next()?.1.mode();
    let has_budgets = limited().any(|(_, limiter)| limiter.has_budgets());
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
        serde_json::to_value(limits_status(&clients.registry, not_saved, clients.now, clients.wall_now))
            .unwrap()
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
            json!({ "mode": "enforce", "budgets_not_saved": "disk full", "clients": [
                { "client": "busy", "class": "batch", "limits": busy },
                { "client": "idle", "class": "standard", "limits": [limit("in_flight", 2, 0, 2)] },
            ] })
        );
        clients.reload("limits: { mode: observe, default: { tokens_per_minute: 5 } }\nclients: open");
        assert_eq!(
            status(&clients),
            json!({ "mode": "observe", "budgets_not_saved": null, "clients": [
                { "client": null, "class": "standard", "limits": [limit("tokens_per_minute", 5, 0, 5)] },
            ] })
        );
        clients.reload("clients: open");
        assert_eq!(status(&clients), Value::Null);
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
            let usage = LimitUsage { limit: String::new(), value, used, remaining: 0 };
            assert_eq!(usage.used_percent(), percent, "{used} of {value}");
        }
    }
}
