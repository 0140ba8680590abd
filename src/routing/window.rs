//! Counts events over a sliding window of time, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The window is divided into this many buckets. An event leaves the count with its bucket, after nine
/// tenths of the window at the earliest and a whole window at the latest.
const BUCKET_COUNT: usize = 10;
/// Bits of each of the two counts in a bucket.
const COUNT_BITS: u32 = 20;
const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;
/// The bits of a bucket number that a bucket keeps.
const STORED_BUCKET_NUMBER_MASK: u64 = 0xff_ffff;

/// A sliding window over events, some of which are marked.
#[derive(Debug)]
pub(super) struct SlidingWindow {
    origin: Instant,
    /// Each packs its bucket number (24 bits), the total (20) and the marked events (20) into one word.
    buckets: [AtomicU64; BUCKET_COUNT],
}

/// The events in a window, and those of them that are marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EventCounts {
    pub(super) total: u64,
    pub(super) marked: u64,
}

impl SlidingWindow {
    pub(super) fn new(origin: Instant) -> Self {
        Self { origin, buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Counts these events at `now`. `length` is that of the window, the same in every call.
    pub(super) fn record(&self, events: EventCounts, length: Duration, now: Instant) {
        let number = self.bucket_number(length, now);
        let Some(bucket) = self.buckets.get(usize::try_from(number).unwrap_or(0) % BUCKET_COUNT) else {
            return;
        };
        let add = |word: u64| {
            let (total, marked) = if word >> (2 * COUNT_BITS) == number & STORED_BUCKET_NUMBER_MASK {
                ((word >> COUNT_BITS) & MAX_COUNT, word & MAX_COUNT)
            } else {
                (0, 0)
            };
            let total = (total + events.total).min(MAX_COUNT);
            let marked = (marked + events.marked).min(MAX_COUNT);
            Some(((number & STORED_BUCKET_NUMBER_MASK) << (2 * COUNT_BITS)) | (total << COUNT_BITS) | marked)
        };
        // Cannot fail: the closure always returns a value.
        let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    /// The events of the window that ends now.
    pub(super) fn counts(&self, length: Duration, now: Instant) -> EventCounts {
        let number = self.bucket_number(length, now);
        let mut counts = EventCounts::default();
        for bucket in &self.buckets {
            let word = bucket.load(Ordering::Acquire);
            let age = (number & STORED_BUCKET_NUMBER_MASK).wrapping_sub(word >> (2 * COUNT_BITS))
                & STORED_BUCKET_NUMBER_MASK;
            if age < BUCKET_COUNT as u64 {
                counts.total += (word >> COUNT_BITS) & MAX_COUNT;
                counts.marked += word & MAX_COUNT;
            }
        }
        counts
    }

    /// Removes all events.
    pub(super) fn clear(&self) {
        self.buckets.iter().for_each(|bucket| bucket.store(0, Ordering::Release));
    }

    /// The number of the bucket for this moment. The first is above 0, which is what an empty bucket has.
    fn bucket_number(&self, length: Duration, now: Instant) -> u64 {
        let bucket_nanos = (length.as_nanos() / BUCKET_COUNT as u128).max(1);
        let number =
            now.saturating_duration_since(self.origin).as_nanos() / bucket_nanos + BUCKET_COUNT as u128;
        u64::try_from(number).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_older_than_the_window_do_not_count() {
        let origin = Instant::now();
        let window = SlidingWindow::new(origin);
        let (length, at) = (Duration::from_secs(10), |ms| origin + Duration::from_millis(ms));
        let event = |marked| EventCounts { total: 1, marked };
        assert_eq!(window.counts(length, at(0)), EventCounts::default());
        window.record(event(1), length, at(500));
        window.record(event(0), length, at(9_500));
        assert_eq!(window.counts(length, at(9_999)), EventCounts { total: 2, marked: 1 });
        assert_eq!(window.counts(length, at(10_000)), EventCounts { total: 1, marked: 0 });
        window.record(event(1), length, at(10_400));
        assert_eq!(window.counts(length, at(10_500)), EventCounts { total: 2, marked: 1 });
        assert_eq!(window.counts(length, at(60_000)), EventCounts::default());
        window.record(event(1), length, at(60_000));
        window.clear();
        assert_eq!(window.counts(length, at(60_000)), EventCounts::default());
    }
}
