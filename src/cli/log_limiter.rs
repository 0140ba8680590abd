//! Limits log lines that clients can cause: of one place in the code at most one line a minute is written,
//! with the number of those that were left out since.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use log::Record;

/// Shortest time between two lines of one place.
const MIN_INTERVAL: Duration = Duration::from_secs(60);
/// Most places that are told apart. There are fewer; all further ones count as one.
const MAX_PLACES: usize = 512;

/// The lines of all places.
#[derive(Debug, Default)]
pub(super) struct LogLimiter {
    places: HashMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    last_line_at: Instant,
    /// Lines that were left out since then.
    left_out: u64,
}

impl LogLimiter {
    /// Whether a line of this place may be written now: `None` if not, else how many were left out before
    /// it.
    pub(super) fn permit(&mut self, place: u64, now: Instant) -> Option<u64> {
        let place =
            if self.places.len() < MAX_PLACES || self.places.contains_key(&place) { place } else { 0 };
        let Some(known) = self.places.get_mut(&place) else {
            self.places.insert(place, Place { last_line_at: now, left_out: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(known.last_line_at) < MIN_INTERVAL {
            known.left_out += 1;
            return None;
        }
        known.last_line_at = now;
        Some(std::mem::take(&mut known.left_out))
    }
}

/// The place in the code that a line comes from. Of our own code it includes the text, which clients cannot
/// change: the same place may tell of several listeners.
pub(super) fn place_of(record: &Record<'_>, is_own: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    (record.level(), record.target(), record.file(), record.line()).hash(&mut hasher);
    if is_own {
        record.args().to_string().hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_writes_one_line_a_minute_and_counts_the_others() {
        let (mut limiter, start) = (LogLimiter::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (seconds, place, expected) in [
            (0, 1, Some(0)),
            (0, 1, None),
            (1, 2, Some(0)),
            (59, 1, None),
            (60, 1, Some(2)),
            (61, 1, None),
            (60, 2, None),
            (119, 1, None),
            (500, 1, Some(2)),
            (501, 2, Some(1)),
            (600, 1, Some(0)),
        ] {
            assert_eq!(limiter.permit(place, at(seconds)), expected, "{seconds} {place}");
        }
    }

    #[test]
    fn the_number_of_places_is_limited() {
        let (mut limiter, now) = (LogLimiter::default(), Instant::now());
        let lines = (1..10_000).filter(|place| limiter.permit(*place, now).is_some()).count();
        assert_eq!(lines, MAX_PLACES + 1);
        assert!(limiter.places.len() <= MAX_PLACES + 1);
    }
}
