//! Whether the disk that records are written to is quick.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A write that takes longer is slow: it takes some microseconds while the kernel has room in its page cache.
const MAX_QUICK_WRITE: Duration = Duration::from_millis(1);
/// How long the disk is called slow after a slow write.
const SLOW_PERIOD: Duration = Duration::from_secs(1);

/// How quick the last writes were.
#[derive(Debug)]
pub(super) struct WritePace {
    started: Instant,
    /// The end of the time in which the disk is called slow, in milliseconds after `started`.
    slow_until_ms: AtomicU64,
}

impl Default for WritePace {
    fn default() -> Self {
        Self { started: Instant::now(), slow_until_ms: AtomicU64::new(0) }
    }
}

impl WritePace {
    /// Whether no write was slow lately.
    pub(super) fn is_quick(&self) -> bool {
        self.is_quick_at(Instant::now())
    }

    fn is_quick_at(&self, now: Instant) -> bool {
        self.millis(now) >= self.slow_until_ms.load(Ordering::Relaxed)
    }

    /// Notes a write that began then and ends now.
    pub(super) fn note_write(&self, began: Instant) {
        self.note_write_until(began, Instant::now());
    }

    fn note_write_until(&self, began: Instant, ended: Instant) {
        if ended.saturating_duration_since(began) > MAX_QUICK_WRITE {
            self.slow_until_ms.fetch_max(self.millis(ended + SLOW_PERIOD), Ordering::Relaxed);
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_write_makes_the_disk_slow_for_a_while() {
        let pace = WritePace::default();
        let at = |millis| pace.started + Duration::from_millis(millis);
        pace.note_write_until(at(0), at(1));
        assert!(pace.is_quick_at(at(1)));
        pace.note_write_until(at(10), at(12));
        assert!(!pace.is_quick_at(at(12)) && !pace.is_quick_at(at(1_011)) && pace.is_quick_at(at(1_012)));
        // An earlier end does not shorten the time.
        pace.note_write_until(at(500), at(2_000));
        pace.note_write_until(at(600), at(700));
        assert!(!pace.is_quick_at(at(2_999)) && pace.is_quick_at(at(3_000)));
    }
}
