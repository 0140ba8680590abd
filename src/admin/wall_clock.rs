//! Times as the admin API writes them: RFC 3339 in UTC.

use std::time::{Instant, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};

/// Converts moments of the monotonic clock to wall-clock time.
#[derive(Clone, Copy)]
pub(super) struct WallClockConverter {
    pub(super) monotonic_now: Instant,
    pub(super) wall_now: SystemTime,
}

impl WallClockConverter {
    pub(super) fn millis_until(self, until: Instant) -> u64 {
        u64::try_from(until.saturating_duration_since(self.monotonic_now).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn to_rfc3339(self, moment: Instant) -> String {
        format_rfc3339(match moment.checked_duration_since(self.monotonic_now) {
            Some(ahead) => self.wall_now + ahead,
            None => self.wall_now - self.monotonic_now.saturating_duration_since(moment),
        })
    }
}

/// Formats a time as RFC 3339 in UTC with milliseconds.
pub(super) fn format_rfc3339(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}
