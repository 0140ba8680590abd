//! How often keys are asked, and what becomes of those that are asked very often.
//!
//! Above about 15 requests a minute for one prefix and key, Azure sends the rest to machines that do not have it cached
//! (<https://learn.microsoft.com/azure/ai-foundry/openai/how-to/prompt-caching>). Such a key is spread over several
//! backends instead, each of which keeps it cached.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::key::mix;
use crate::names::CacheKey;

/// A key that is asked more often in a minute is spread, so that each part of it is asked no more often than this.
const MAX_REQUESTS_PER_MINUTE: u32 = 12;
const MINUTE: Duration = Duration::from_secs(60);
const SHARDS: usize = 64;
/// Keys that a shard counts. If there are more, those that are asked least often are not counted.
const KEYS_PER_SHARD: usize = 32;

/// How often keys were asked in the last minute, of the 2,048 that are asked most often.
#[derive(Debug)]
pub struct HotKeys {
    started_at: Instant,
    shards: Box<[Mutex<Shard>]>,
}

type Shard = [KeyCount; KEYS_PER_SHARD];

/// The requests of one key by minutes of the clock.
#[derive(Clone, Copy, Debug, Default)]
struct KeyCount {
    key: u64,
    /// The minute that `current` is counted in, from 1; 0 for an unused place.
    minute: u64,
    current: u32,
    /// The requests of the minute before.
    previous: u32,
}

/// How often a key is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRate {
    /// About how many requests it had in the last 60 seconds, this one included.
    pub per_minute: u32,
    /// The number of this request among those of the key, in an order without meaning.
    pub number: u32,
}

impl KeyRate {
    /// The keys that it has to be spread over so that each is asked no more often than Azure keeps up with.
    pub fn parts(self) -> u32 {
        self.per_minute.div_ceil(MAX_REQUESTS_PER_MINUTE).max(1)
    }
}

impl HotKeys {
    /// Counts from now on; no later call may pass an earlier `now`.
    pub fn new(now: Instant) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new([KeyCount::default(); KEYS_PER_SHARD]));
        Self { started_at: now, shards: shards.collect() }
    }

    /// Counts a request, and returns how often its key is asked.
    pub fn count(&self, key: CacheKey, now: Instant) -> KeyRate {
        let hash = key.hash();
        let elapsed = now.saturating_duration_since(self.started_at);
        let minute = elapsed.as_secs() / MINUTE.as_secs() + 1;
        let once = KeyRate { per_minute: 1, number: 1 };
        let Some(shard) = self.shards.get(hash as usize % SHARDS) else { return once };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match shard.iter().position(|count| count.key == hash && count.minute > 0) {
            Some(place) => Some(place),
            None => (0..KEYS_PER_SHARD).min_by_key(|place| shard.get(*place).map(|count| count.rank(minute))),
        };
        let Some(count) = place.and_then(|place| shard.get_mut(place)) else { return once };
        if count.key != hash {
            *count = KeyCount { key: hash, minute, current: 0, previous: 0 };
        }
        count.advance_to(minute);
        count.current = count.current.saturating_add(1);
        // Of the minute before, the part that is less than a minute ago.
        let left = 1.0 - (elapsed.as_secs_f64() / MINUTE.as_secs_f64()).fract();
        let per_minute = f64::from(count.current) + f64::from(count.previous) * left;
        // Positive and finite; a cast saturates.
        KeyRate { per_minute: per_minute as u32, number: count.current }
    }
}

impl KeyCount {
    fn advance_to(&mut self, minute: u64) {
        match minute.saturating_sub(self.minute) {
            0 => {}
            1 => (self.previous, self.current) = (self.current, 0),
            _ => (self.previous, self.current) = (0, 0),
        }
        self.minute = self.minute.max(minute);
    }

    /// The lowest is replaced: an unused or old place, or a key that is seldom asked.
    fn rank(&self, minute: u64) -> (bool, u64) {
        let is_recent = self.minute > 0 && self.minute + 1 >= minute;
        (is_recent, u64::from(self.current) + u64::from(self.previous))
    }
}

/// The key that a request of a hot key is routed by, one of `parts`. `conversation` is what the request shares with its
/// own conversation only, and `rate` how often that is asked: as long as it is not hot itself, it stays together.
pub fn spread_key(key: CacheKey, parts: u32, conversation: CacheKey, rate: KeyRate) -> CacheKey {
    let first = jump_hash(mix(conversation.hash(), 1), parts);
    // Which parts a conversation has that is hot itself does not matter, as long as they are the same ones.
    let part = (first + rate.number % rate.parts()) % parts.max(1);
    if part == 0 { key } else { CacheKey::from_hash(mix(key.hash(), u64::from(part))) }
}

/// A number below `buckets` for this hash. With one bucket more, as few numbers as possible change (Lamping and Veach,
/// "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014).
fn jump_hash(mut hash: u64, buckets: u32) -> u32 {
    let (mut bucket, mut next) = (0, 0);
    while next < u64::from(buckets) {
        bucket = next;
        hash = hash.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let scale = (1_u64 << 31) as f64 / ((hash >> 33) + 1) as f64;
        next = ((bucket + 1) as f64 * scale) as u64;
    }
    bucket as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> CacheKey {
        CacheKey::from_hash(mix(number, 0))
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let start = Instant::now();
        let keys = HotKeys::new(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let count = |number: u64, seconds, requests: u32| {
            (0..requests).fold(0, |_, _| keys.count(key(number), at(seconds)).per_minute)
        };
        assert_eq!(count(1, 0, 12), 12);
        assert_eq!(count(2, 30, 1), 1);
        assert_eq!(count(1, 59, 1), 13);
        // Half of the minute before is more than a minute ago.
        assert_eq!(count(1, 90, 1), 7);
        assert_eq!(count(1, 240, 1), 1);
    }

    #[test]
    fn parts_are_asked_no_more_often_than_azure_keeps_up_with() {
        for (per_minute, parts) in [(0, 1), (1, 1), (12, 1), (13, 2), (24, 2), (25, 3), (1200, 100)] {
            assert_eq!(KeyRate { per_minute, number: 1 }.parts(), parts, "{per_minute}");
        }
    }

    #[test]
    fn a_hot_key_is_counted_among_any_number_of_others() {
        let start = Instant::now();
        let keys = HotKeys::new(start);
        let mut rate = 0;
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            rate = keys.count(key(u64::MAX), now).per_minute;
            for other in 0..500 {
                assert_eq!(keys.count(key(1000 * second + other), now).per_minute, 1);
            }
        }
        assert_eq!(rate, 60);
    }

    #[test]
    fn a_hot_key_is_spread_by_conversations_which_stay_together() {
        let hot = key(7);
        let quiet = KeyRate { per_minute: 3, number: 3 };
        let spread = |conversation, parts, rate| spread_key(hot, parts, key(conversation), rate);
        for conversation in 0..50 {
            let routed = spread(conversation, 4, quiet);
            for number in 0..12 {
                assert_eq!(spread(conversation, 4, KeyRate { per_minute: 12, number }), routed);
            }
            assert_eq!(spread(conversation, 1, quiet), hot, "not hot: its own order");
        }
        let count = |parts| {
            let mut routed: Vec<u64> = (0..200).map(|number| spread(number, parts, quiet).hash()).collect();
            routed.sort_unstable();
            routed.dedup();
            routed.len()
        };
        assert_eq!([count(1), count(2), count(5)], [1, 2, 5]);
        let moved = (0..1000).filter(|number| spread(*number, 4, quiet) != spread(*number, 5, quiet)).count();
        assert!((150..250).contains(&moved), "a fifth of the conversations: {moved}");
        // A conversation that is hot itself takes turns.
        let mut parts: Vec<u64> =
            (1..=30).map(|number| spread(1, 5, KeyRate { per_minute: 30, number }).hash()).collect();
        parts.sort_unstable();
        parts.dedup();
        assert_eq!(parts.len(), 3);
    }
}
