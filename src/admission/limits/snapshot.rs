//! What clients have used of their rates, as a process tells it to its successor.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::account::{ClientAccounts, ScopeUse};
use super::sliding_minute::SlidingMinute;
use crate::names::{ClientName, DeploymentName};

/// What was used of the rates of one client, in total or for one deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateSnapshot {
    /// `None`: of all clients that need not authenticate.
    client: Option<String>,
    /// `None`: for all requests.
    deployment: Option<String>,
    /// Pairs of an age in seconds and the requests of that second.
    #[serde(default)]
    requests: Vec<(u64, u64)>,
    /// The same of tokens. What is still reserved counts as used.
    #[serde(default)]
    tokens: Vec<(u64, u64)>,
}

impl ClientAccounts {
    /// What counts now against the rates of all clients.
    pub fn capture(&self, now: Instant) -> Vec<RateSnapshot> {
        let mut snapshots = Vec::new();
        for (client, account) in self.all() {
            let now = account.time_of(now);
            let mut state = account.lock();
            for (deployment, scope) in state.all_scopes() {
                let mut ages = |window: fn(&mut ScopeUse) -> Option<&mut SlidingMinute>| {
                    window(scope).map_or_else(Vec::new, |window| window.amounts_by_age(now))
                };
                let requests = ages(|scope| scope.requests.as_deref_mut());
                let tokens = ages(|scope| scope.tokens.as_deref_mut());
                if !requests.is_empty() || !tokens.is_empty() {
                    let client = client.as_ref().map(ToString::to_string);
                    let deployment = deployment.map(ToString::to_string);
                    snapshots.push(RateSnapshot { client, deployment, requests, tokens });
                }
            }
        }
        snapshots
    }

    /// Adds what was used in another process, at this moment.
    pub fn restore(&self, snapshots: &[RateSnapshot], now: Instant) {
        for RateSnapshot { client, deployment, requests, tokens } in snapshots {
            let account = self.find_or_create(client.as_deref().map(ClientName::new).as_ref());
            let now = account.time_of(now);
            let mut state = account.lock();
            let deployment = match deployment.as_deref().map(DeploymentName::parse) {
                Some(Err(_)) => continue,
                name => name.and_then(Result::ok),
            };
            let (total, own) = state.scopes(deployment.as_ref(), true);
            let scope = own.unwrap_or(total);
            if !requests.is_empty() {
                scope.requests.get_or_insert_default().add_amounts_by_age(requests, now);
            }
            if !tokens.is_empty() {
                scope.tokens.get_or_insert_default().add_amounts_by_age(tokens, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_successor_knows_what_was_used_in_the_last_minute() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let accounts = ClientAccounts::new(start);
        let (client, deployment) = (ClientName::new("a"), DeploymentName::parse("gpt-4o").unwrap());
        let account = accounts.find_or_create(Some(&client));
        let times = [10, 30].map(|seconds| account.time_of(start + seconds * second));
        {
            let mut state = account.lock();
            let (total, own) = state.scopes(Some(&deployment), true);
            let tokens = total.tokens.get_or_insert_default();
            tokens.add(5, times[0]);
            tokens.reserve(7, times[1]);
            own.unwrap().requests.get_or_insert_default().add(1, times[1]);
        }
        let snapshots = accounts.capture(start + 40 * second);
        assert_eq!(accounts.capture(start + 100 * second), [], "nothing counts any longer");
        let text = serde_json::to_string(&snapshots).unwrap();
        // It has just started.
        let later = start + 40 * second;
        let successor = ClientAccounts::new(later);
        successor.restore(&serde_json::from_str::<Vec<RateSnapshot>>(&text).unwrap(), later);
        let account = successor.find_or_create(Some(&client));
        let mut state = account.lock();
        let (total, own) = state.scopes(Some(&deployment), true);
        let (tokens, requests) = (total.tokens.as_mut().unwrap(), own.unwrap().requests.as_mut().unwrap());
        for (seconds, expected) in [(40, (12, 1)), (69, (12, 1)), (72, (7, 1)), (92, (0, 0))] {
            let now = account.time_of(start + seconds * second);
            assert_eq!((tokens.total(now), requests.total(now)), expected, "{seconds}");
        }
    }
}
