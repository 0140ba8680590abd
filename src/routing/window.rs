//! Two counts over a sliding window of time, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Parts of the window; what is older than one whole window by up to one part still counts.
const PARTS: usize = 10;
const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// All events, and those of them that are marked, over a window.
#[derive(Debug)]
pub(super) struct Window {
    birth: Instant,
    /// Each: number of the part of time (24 bits), all (20), marked (20).
    parts: [AtomicU64; PARTS],
}

/// What happened in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) all: u64,
    pub(super) marked: u64,
}

impl Window {
    pub(super) fn new(birth: Instant) -> Self {
        Self { birth, parts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Counts into the part of the moment.
    pub(super) fn add(&self, add: Counts, length: Duration, now: Instant) {
        let number = self.number(length, now);
        let Some(part) = self.parts.get(usize::try_from(number).unwrap_or(0) % PARTS) else { return };
        let count = |word: u64| {
            let (all, marked) = if word >> (2 * COUNT_BITS) == number & 0xff_ffff {
                ((word >> COUNT_BITS) & COUNT_MAX, word & COUNT_MAX)
            } else {
                (0, 0)
            };
            let all = (all + add.all).min(COUNT_MAX);
            let marked = (marked + add.marked).min(COUNT_MAX);
            Some(((number & 0xff_ffff) << (2 * COUNT_BITS)) | (all << COUNT_BITS) | marked)
        };
        // The closure never declines.
        let _ = part.fetch_update(Ordering::AcqRel, Ordering::Acquire, count);
    }

    /// The counts of the window that ends now.
    pub(super) fn counts(&self, length: Duration, now: Instant) -> Counts {
        let number = self.number(length, now);
        let mut counts = Counts::default();
        for part in &self.parts {
            let word = part.load(Ordering::Acquire);
            let age = (number & 0xff_ffff).wrapping_sub(word >> (2 * COUNT_BITS)) & 0xff_ffff;
            if age < PARTS as u64 {
                counts.all += (word >> COUNT_BITS) & COUNT_MAX;
                counts.marked += word & COUNT_MAX;
            }
        }
        counts
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.parts.iter().for_each(|part| part.store(0, Ordering::Release));
    }

    /// The number of the part of time, from 1: an empty word is no part's.
    fn number(&self, length: Duration, now: Instant) -> u64 {
        let part = (length.as_nanos() / PARTS as u128).max(1);
        let number = now.saturating_duration_since(self.birth).as_nanos() / part + PARTS as u128;
        u64::try_from(number).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let birth = Instant::now();
        let window = Window::new(birth);
        let (length, at) = (Duration::from_secs(10), |ms| birth + Duration::from_millis(ms));
        let one = |marked| Counts { all: 1, marked };
        assert_eq!(window.counts(length, at(0)), Counts::default());
        window.add(one(1), length, at(500));
        window.add(one(0), length, at(9_500));
        assert_eq!(window.counts(length, at(9_999)), Counts { all: 2, marked: 1 });
        assert_eq!(window.counts(length, at(10_000)), Counts { all: 1, marked: 0 });
        window.add(one(1), length, at(10_400));
        assert_eq!(window.counts(length, at(10_500)), Counts { all: 2, marked: 1 });
        assert_eq!(window.counts(length, at(60_000)), Counts::default());
        window.add(one(1), length, at(60_000));
        window.clear();
        assert_eq!(window.counts(length, at(60_000)), Counts::default());
    }
}
