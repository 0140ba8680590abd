//! What backends hold in flight, and the bound that keeps a key from overloading its backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::member::LoadedMember;
use super::spread::sort_members;
use crate::names::RoutedKey;

/// A backend within this many times its share of the tokens in flight takes what is its own by the order of the key
/// (Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018).
const MAX_SHARE_FACTOR: f64 = 1.25;
/// So does one that is above its share by no more standard deviations than this: keys are spread by chance, and of few
/// requests in flight some backend often has much more than its share.
const MAX_DEVIATIONS: f64 = 3.0;
/// Nor does it pass anything on with so few requests, for a backend of average weight: of a few requests one is most of
/// the tokens.
const MAX_REQUESTS_WITHIN_BOUND: f64 = 4.0;
/// What one request counts at most: the largest context window of a model. A `max_tokens` beyond it, which a client may send,
/// must not make a backend look full to others.
const MAX_TOKENS_OF_REQUEST: u64 = 1 << 20;

/// What one deployment on one backend holds in flight.
#[derive(Debug, Default)]
pub struct TokenLoad {
    tokens: AtomicU64,
    requests: AtomicU64,
}

/// An attempt in flight. It is given back when this is dropped.
#[derive(Debug)]
pub struct LoadTicket {
    load: Arc<TokenLoad>,
    tokens: u64,
}

impl TokenLoad {
    /// Adds an attempt of about this many tokens.
    pub fn add(self: &Arc<Self>, tokens: u64) -> LoadTicket {
        let tokens = tokens.min(MAX_TOKENS_OF_REQUEST);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        LoadTicket { load: Arc::clone(self), tokens }
    }

    pub(in crate::routing) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    pub(in crate::routing) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for LoadTicket {
    fn drop(&mut self) {
        self.load.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
        self.load.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The index of the first in the order of the key that is within the bound. It sorts the members.
pub(in crate::routing) fn choose_member(members: &mut [LoadedMember], routed: RoutedKey) -> Option<usize> {
    sort_members(members, routed);
    first_within_bound(members)
}

fn first_within_bound(members: &[LoadedMember]) -> Option<usize> {
    let weight: f64 = members.iter().map(|member| f64::from(member.ranked.weight().get())).sum();
    let tokens: f64 = members.iter().map(|member| member.tokens as f64).sum();
    let requests: f64 = members.iter().map(|member| member.requests as f64).sum();
    let is_within_bound = |member: &&LoadedMember| {
        let share = f64::from(member.ranked.weight().get()) / weight;
        let by_chance = 1.0 + MAX_DEVIATIONS / (share * requests).sqrt();
        member.tokens as f64 <= MAX_SHARE_FACTOR.max(by_chance) * share * tokens
            || member.requests as f64 <= MAX_REQUESTS_WITHIN_BOUND * share * members.len() as f64
    };
    // There is always one: not all can hold more than their share.
    members.iter().find(is_within_bound).map(|member| member.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{BackendName, Weight};
    use crate::routing::prompt_cache::RankedBackend;
    use proptest::prelude::*;

    /// Members with these weights, tokens and requests, in the order of the key.
    fn members(rows: &[(u16, u64, u64)]) -> Vec<LoadedMember> {
        let member = |(index, (weight, tokens, requests)): (usize, &(u16, u64, u64))| {
            let ranked = RankedBackend::new(&BackendName::new("any"), Weight::new(*weight).unwrap());
            LoadedMember::idle(index, ranked).holding(*tokens, *requests)
        };
        rows.iter().enumerate().map(member).collect()
    }

    #[test]
    fn no_request_counts_more_than_a_context_window() {
        let load = Arc::<TokenLoad>::default();
        let tickets = [load.add(u64::MAX), load.add(u64::MAX), load.add(7)];
        assert_eq!((load.tokens(), load.requests()), (2 * MAX_TOKENS_OF_REQUEST + 7, 3));
        drop(tickets);
        assert_eq!((load.tokens(), load.requests()), (0, 0));
    }

    #[test]
    fn a_backend_with_too_much_passes_the_request_on() {
        for (rows, expected) in [
            (&[][..], None),
            (&[(1, 0, 0)], Some(0)),
            (&[(1, 1_000, 9)], Some(0)),
            (&[(1, 0, 0), (1, 0, 0)], Some(0)),
            // Its share is 500 of 1,000, and of so many requests a quarter more is not chance.
            (&[(1, 625, 200), (1, 375, 200)], Some(0)),
            (&[(1, 626, 200), (1, 374, 200)], Some(1)),
            // Three standard deviations of 36 requests are 18, half of them.
            (&[(1, 750, 36), (1, 250, 36)], Some(0)),
            (&[(1, 751, 36), (1, 249, 36)], Some(1)),
            // With four requests it passes nothing on, with some more only what is far from its share.
            (&[(1, 1_000, 4), (1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0)], Some(0)),
            (&[(1, 1_000, 5), (1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0)], Some(1)),
            (&[(1, 466, 5), (1, 534, 20), (1, 0, 0), (1, 0, 0), (1, 0, 0)], Some(0)),
            (&[(1, 470, 5), (1, 530, 20), (1, 0, 0), (1, 0, 0), (1, 0, 0)], Some(2)),
            // With three times the weight of the other its share is 750, and that of the requests 6.
            (&[(3, 937, 999), (1, 63, 9)], Some(0)),
            (&[(3, 938, 999), (1, 62, 9)], Some(1)),
            (&[(3, 938, 6), (1, 62, 999)], Some(0)),
            (&[(3, 938, 7), (1, 62, 999)], Some(1)),
            (&[(1, 500, 200), (1, 450, 200), (1, 50, 100)], Some(2)),
        ] {
            assert_eq!(first_within_bound(&members(rows)), expected, "{rows:?}");
        }
    }

    #[test]
    fn what_ends_is_given_back() {
        let load = Arc::new(TokenLoad::default());
        let first = load.add(100);
        let second = load.add(50);
        assert_eq!((load.tokens(), load.requests()), (150, 2));
        drop(first);
        assert_eq!((load.tokens(), load.requests()), (50, 1));
        drop(second);
        assert_eq!((load.tokens(), load.requests()), (0, 0));
    }

    proptest! {
        #[test]
        fn some_backend_always_takes_the_request(
            rows in proptest::collection::vec((1_u16..=1000, 0_u64..1_000_000, 0_u64..100), 1..20),
        ) {
            prop_assert!(first_within_bound(&members(&rows)).is_some());
        }

        #[test]
        fn one_key_alone_loads_no_backend_with_much_more_than_its_share(count in 1_usize..400) {
            let mut held = [(1_u16, 0_u64, 0_u64); 5];
            for _ in 0..count {
                let index = first_within_bound(&members(&held)).unwrap();
                held[index].1 += 1_000;
                held[index].2 += 1;
            }
            let largest = held.iter().map(|(_, _, requests)| *requests).max().unwrap() as f64;
            let share = count as f64 / 5.0;
            let within_bound = (1.25 * share).max(share + 3.0 * share.sqrt());
            prop_assert!(largest <= (within_bound + 1.0).max(5.0), "{held:?}");
        }
    }
}
