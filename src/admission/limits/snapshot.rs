//! What clients have used of their rates, as a process sends it to its successor.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::account::{AccountState, ClientAccount, ClientAccounts, ScopeUse};
use super::amounts::{Amounts, is_zero};
use super::predecessor_share::{Held, PredecessorShare};
use super::sliding_minute::{ReservedAt, SlidingMinute};
use crate::names::{ClientName, DeploymentName};

/// What was used of the rates of one client, in total or for one deployment, and what its requests hold.
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
    /// The second that ages count from. Earlier versions send neither this nor what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counted_at: Option<ReservedAt>,
    /// The part of `tokens` that is only reserved, by second. Second 0 has what was reserved more than a minute ago, which
    /// is not in `tokens`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reserved: Vec<(ReservedAt, u64)>,
    /// All tokens that are reserved, whether or not a rate limits them.
    #[serde(default, skip_serializing_if = "is_zero")]
    reserved_tokens: u64,
    /// What the requests in progress are expected to cost, in millionths of the currency.
    #[serde(default, skip_serializing_if = "is_zero")]
    reserved_cost_millionths: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    in_flight: u64,
}

impl ClientAccounts {
    /// What counts now against the limits of all clients. From then on, a successor that is preparing gets a report of each
    /// change.
    pub fn capture(&self, now: Instant) -> Vec<RateSnapshot> {
        let (follower, accounts) = self.begin_following();
        let capture = |account: Arc<ClientAccount>| {
            let mut state = account.lock();
            state.follower.clone_from(&follower);
            capture_scopes(&account, &mut state, now)
        };
        accounts.into_iter().flat_map(capture).collect()
    }

    /// What counts now against the rates of all clients, including what is reserved, for a process that starts after this
    /// one has ended.
    pub fn rates(&self, now: Instant) -> Vec<RateSnapshot> {
        let accounts = self.all().into_iter();
        let captured = accounts.flat_map(|account| capture_scopes(&account, &mut account.lock(), now));
        let without_requests = captured.map(|snapshot| RateSnapshot {
            reserved: Vec::new(),
            reserved_tokens: 0,
            reserved_cost_millionths: 0,
            in_flight: 0,
            ..snapshot
        });
        without_requests.filter(|rates| !rates.requests.is_empty() || !rates.tokens.is_empty()).collect()
    }

    /// Adds what was used in another process. Returns what its requests in progress hold, which counts as well.
    pub fn restore(&self, snapshots: &[RateSnapshot], now: Instant) -> PredecessorShare {
        let mut share = PredecessorShare::default();
        for snapshot in snapshots {
            let client = snapshot.client.as_deref().map(ClientName::new);
            let deployment = match snapshot.deployment.as_deref().map(DeploymentName::parse) {
                Some(Err(_)) => continue,
                name => name.and_then(Result::ok),
            };
            let account = self.find_or_create(client.as_ref());
            let now = account.time_of(now);
            let mut state = account.lock();
            let (total, own) = state.scopes(deployment.as_ref(), true);
            let scope = own.unwrap_or(total);
            let RateSnapshot { requests, tokens, counted_at, reserved, .. } = snapshot;
            if !requests.is_empty() {
                scope.requests.get_or_insert_default().restore(requests, &[], *counted_at, now);
            }
            let mut held = Held { in_flight: snapshot.in_flight, ..Held::default() };
            if !tokens.is_empty() || !reserved.is_empty() {
                let window = scope.tokens.get_or_insert_default();
                held.in_window = window.restore(tokens, reserved, *counted_at, now).into_iter().collect();
            }
            held.reserved = Amounts {
                tokens: snapshot.reserved_tokens,
                cost_millionths: snapshot.reserved_cost_millionths,
            };
            scope.in_flight += held.in_flight;
            scope.reserved = scope.reserved.saturating_add(held.reserved);
            share.insert(client, deployment, held);
        }
        share
    }
}

fn capture_scopes(account: &ClientAccount, state: &mut AccountState, now: Instant) -> Vec<RateSnapshot> {
    let now = account.time_of(now);
    let mut snapshots = Vec::new();
    for (deployment, scope) in state.all_scopes() {
        let mut ages = |window: fn(&mut ScopeUse) -> Option<&mut SlidingMinute>| {
            window(scope).map_or_else(Vec::new, |window| window.amounts_by_age(now))
        };
        let requests = ages(|scope| scope.requests.as_deref_mut());
        let tokens = ages(|scope| scope.tokens.as_deref_mut());
        let reserved = scope.tokens.as_deref_mut().map_or_else(Vec::new, |window| window.reserved(now));
        let (in_flight, amounts) = (scope.in_flight, scope.reserved);
        let holds_nothing = reserved.is_empty() && amounts.is_zero() && in_flight == 0;
        if requests.is_empty() && tokens.is_empty() && holds_nothing {
            continue;
        }
        snapshots.push(RateSnapshot {
            client: account.client.as_ref().map(ToString::to_string),
            deployment: deployment.map(ToString::to_string),
            requests,
            tokens,
            counted_at: Some(SlidingMinute::second_of(now)),
            reserved,
            reserved_tokens: amounts.tokens,
            reserved_cost_millionths: amounts.cost_millionths,
            in_flight,
        });
    }
    snapshots
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
        assert_eq!(accounts.capture(start + 100 * second).len(), 1, "only what is reserved counts");
        let text = serde_json::to_string(&snapshots).unwrap();
        let earlier = r#"[{"client":"a","deployment":null,"requests":[],"tokens":[[10,7],[30,5]]},
            {"client":"a","deployment":"gpt-4o","requests":[[10,1]],"tokens":[]}]"#;
        for text in [&*text, earlier] {
            let later = start + 40 * second;
            let successor = ClientAccounts::new(start);
            let snapshots: Vec<RateSnapshot> = serde_json::from_str(text).unwrap();
            successor.restore(&snapshots, later).settle_all(&successor, later);
            let account = successor.find_or_create(Some(&client));
            let mut state = account.lock();
            let (total, own) = state.scopes(Some(&deployment), true);
            let (tokens, requests) =
                (total.tokens.as_mut().unwrap(), own.unwrap().requests.as_mut().unwrap());
            for (seconds, expected) in [(40, (12, 1)), (69, (12, 1)), (72, (7, 1)), (92, (0, 0))] {
                let now = account.time_of(start + seconds * second);
                assert_eq!((tokens.total(now), requests.total(now)), expected, "{seconds} {text}");
            }
        }
    }

    #[test]
    fn the_serialized_form_does_not_change() {
        let snapshot = |counted_at, reserved, number, cost| RateSnapshot {
            client: Some("a".to_owned()),
            deployment: None,
            requests: Vec::new(),
            tokens: vec![(1, 2)],
            counted_at,
            reserved,
            reserved_tokens: number,
            reserved_cost_millionths: cost,
            in_flight: number,
        };
        let at = SlidingMinute::second_of(Duration::from_secs(9));
        for (snapshot, expected) in [
            (
                snapshot(None, Vec::new(), 0, 0),
                r#"{"client":"a","deployment":null,"requests":[],"tokens":[[1,2]]}"#,
            ),
            (
                snapshot(Some(at), vec![(at, 2)], 1, 0),
                r#"{"client":"a","deployment":null,"requests":[],"tokens":[[1,2]],"counted_at":9,"reserved":[[9,2]],"reserved_tokens":1,"in_flight":1}"#,
            ),
            (
                snapshot(None, Vec::new(), 1, 5),
                r#"{"client":"a","deployment":null,"requests":[],"tokens":[[1,2]],"reserved_tokens":1,"reserved_cost_millionths":5,"in_flight":1}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&snapshot).unwrap(), expected);
        }
    }
}
