//! How often keys are asked, and over how many backends those have to be spread that are asked very often.
//!
//! Above about 15 requests a minute for one prefix and key, Azure sends the rest to machines that do not have it cached
//! (<https://learn.microsoft.com/azure/ai-foundry/openai/how-to/prompt-caching>). Such a key is spread over several
//! backends instead (`spread.rs`), each of which keeps it cached.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::names::CacheKey;

/// A key that is asked more often in a minute is spread over so many backends that each is asked no more often than this.
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
    /// The number of this request among those of the key in this minute.
    pub number: u32,
}

impl KeyRate {
    /// The backends that it has to be spread over so that each is asked no more often than Azure keeps up with.
    pub fn backends(self) -> u32 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::prompt_cache::key::mix;

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
    fn backends_are_asked_no_more_often_than_azure_keeps_up_with() {
        for (per_minute, backends) in [(0, 1), (1, 1), (12, 1), (13, 2), (24, 2), (25, 3), (1200, 100)] {
            assert_eq!(KeyRate { per_minute, number: 1 }.backends(), backends, "{per_minute}");
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
}
