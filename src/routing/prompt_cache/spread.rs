//! Where the requests of a key go that is asked very often: over several of the first backends in its order.

use super::hot_keys::KeyRate;
use super::key::mix;
use super::member::LoadedMember;
use crate::names::{CacheKey, KeySpread, RoutedKey};

/// How a key is spread that is asked as often as `rate`, for a request of a conversation that is asked as often as
/// `conversation_rate`; `None` if one backend can keep up with it.
pub fn spread_key(rate: KeyRate, conversation: CacheKey, conversation_rate: KeyRate) -> Option<KeySpread> {
    let backends = rate.backends();
    (backends > 1).then(|| KeySpread {
        backends,
        conversation,
        conversation_backends: conversation_rate.backends(),
        number: conversation_rate.number,
    })
}

/// Sorts the members of a tier in the order in which they get a request.
///
/// Each choice is by rendezvous hashing, so that weights are kept, and few requests change their backend with the
/// number of backends: of the first members in the order of the key one for the conversation, and if that is asked
/// very often itself, of its first ones one for each request.
pub(super) fn sort_members(members: &mut [LoadedMember], routed: RoutedKey) {
    sort_by_score(members, routed.key);
    let Some(KeySpread { backends, conversation, conversation_backends, number }) = routed.spread else {
        return;
    };
    let Some(members) = first_mut(members, backends) else { return };
    sort_by_score(members, salted(conversation, 1));
    if conversation_backends > 1
        && let Some(members) = first_mut(members, conversation_backends)
    {
        sort_by_score(members, salted(salted(conversation, 2), number));
    }
}

/// The first `count` of them, or all if there are fewer.
fn first_mut(members: &mut [LoadedMember], count: u32) -> Option<&mut [LoadedMember]> {
    let count = members.len().min(count as usize);
    members.get_mut(..count)
}

fn sort_by_score(members: &mut [LoadedMember], key: CacheKey) {
    for member in members.iter_mut() {
        member.score = member.ranked.score(key);
    }
    members.sort_unstable_by(|a, b| b.score.total_cmp(&a.score));
}

/// Another key, whose order has nothing to do with that of `key`.
fn salted(key: CacheKey, salt: u32) -> CacheKey {
    CacheKey::from_hash(mix(key.hash(), u64::from(salt)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{BackendName, Weight};
    use crate::routing::prompt_cache::RankedBackend;

    fn members(weights: &[u16]) -> Vec<LoadedMember> {
        let ranked = |(index, weight): (usize, &u16)| {
            let name = BackendName::new(&format!("backend-{index}"));
            LoadedMember::idle(index, RankedBackend::new(&name, Weight::new(*weight).unwrap()))
        };
        weights.iter().enumerate().map(ranked).collect()
    }

    fn order(weights: &[u16], routed: RoutedKey) -> Vec<usize> {
        let mut members = members(weights);
        sort_members(&mut members, routed);
        members.iter().map(|member| member.index).collect()
    }

    fn rate(per_minute: u32, number: u32) -> KeyRate {
        KeyRate { per_minute, number }
    }

    fn key(number: u32) -> CacheKey {
        salted(CacheKey::from_hash(7), number)
    }

    /// A request of a conversation that is asked seldom, whose key is asked so often.
    fn of_conversation(per_minute: u32, conversation: u32) -> RoutedKey {
        RoutedKey { key: key(0), spread: spread_key(rate(per_minute, 9), key(conversation), rate(1, 1)) }
    }

    /// How many of the requests each of the members gets first.
    fn counts(weights: &[u16], requests: impl Iterator<Item = RoutedKey>) -> Vec<usize> {
        let mut counts = vec![0; weights.len()];
        requests.for_each(|routed| counts[order(weights, routed)[0]] += 1);
        counts
    }

    #[test]
    fn a_hot_key_has_as_many_of_its_first_backends_as_it_needs() {
        let own_order = order(&[1; 5], key(0).into());
        for (per_minute, backends) in
            [(1, 1), (12, 1), (13, 2), (36, 3), (48, 4), (60, 5), (61, 5), (1200, 5)]
        {
            let orders: Vec<_> = (1..=200)
                .map(|conversation| order(&[1; 5], of_conversation(per_minute, conversation)))
                .collect();
            let mut firsts: Vec<usize> = orders.iter().map(|order| order[0]).collect();
            firsts.sort_unstable();
            firsts.dedup();
            let mut expected = own_order[..backends].to_vec();
            expected.sort_unstable();
            assert_eq!(firsts, expected, "{per_minute}");
            // The others follow in the order of the key.
            assert!(orders.iter().all(|order| order[backends..] == own_order[backends..]), "{per_minute}");
        }
    }

    #[test]
    fn the_backends_of_a_hot_key_get_their_shares_of_its_conversations() {
        for (weights, expected) in [
            (&[1, 1, 1, 1, 1][..], &[0.2, 0.2, 0.2, 0.2, 0.2][..]),
            (&[4, 1], &[0.8, 0.2]),
            (&[1, 2, 1], &[0.25, 0.5, 0.25]),
        ] {
            let counts =
                counts(weights, (1..=2_000).map(|conversation| of_conversation(1_000, conversation)));
            for (count, expected) in counts.iter().zip(expected) {
                let share = *count as f64 / 2_000.0;
                assert!((share - expected).abs() < 0.03, "{share} of {weights:?} for {expected}");
            }
        }
    }

    #[test]
    fn a_conversation_keeps_its_backend_when_the_key_is_spread_over_one_more() {
        let first = |per_minute, conversation| order(&[1; 5], of_conversation(per_minute, conversation))[0];
        let moved = (1..=1_000).filter(|conversation| first(48, *conversation) != first(60, *conversation));
        let moved = moved.count();
        assert!((150..250).contains(&moved), "a fifth of the conversations: {moved}");
    }

    #[test]
    fn the_requests_of_a_conversation_that_is_hot_itself_are_spread() {
        // The key is made from the prompt, and is that of the conversation.
        let of_key = |number| RoutedKey {
            key: key(0),
            spread: spread_key(rate(60, number), key(0), rate(60, number)),
        };
        let of_one_of_several = |number| RoutedKey {
            key: key(0),
            spread: spread_key(rate(600, number), key(1), rate(20, number)),
        };
        let used = |requests: &[usize]| requests.iter().filter(|count| **count > 0).count();
        let counts_of_key = counts(&[1; 5], (1..=1_000).map(of_key));
        assert!(counts_of_key.iter().all(|count| (150..250).contains(count)), "{counts_of_key:?}");
        assert_eq!(used(&counts(&[1; 5], (1..=1_000).map(of_one_of_several))), 2);
    }
}
