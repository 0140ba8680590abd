//! The time that a budget is for.

use std::time::{Duration, SystemTime};

use crate::admission::budgets::{UtcWindows, end_of_day, end_of_month};

/// A day or a calendar month, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetWindow {
    /// A day.
    Day,
    /// A calendar month.
    Month,
}

impl BudgetWindow {
    /// How long the window that a time is in goes on.
    pub(super) fn time_left(self, now: SystemTime) -> Duration {
        let end = match self {
            Self::Day => end_of_day(now),
            Self::Month => end_of_month(now),
        };
        end.duration_since(now).unwrap_or_default()
    }

    /// The number of the day or month that a time is in, as in [`UtcWindows`].
    pub(super) fn number_at(self, time: SystemTime) -> u32 {
        let windows = UtcWindows::at(time);
        match self {
            Self::Day => windows.day,
            Self::Month => windows.month,
        }
    }

    /// About how many seconds it has.
    pub(super) fn seconds(self) -> u64 {
        const SECONDS_PER_DAY: u64 = 86_400;
        match self {
            Self::Day => SECONDS_PER_DAY,
            Self::Month => 30 * SECONDS_PER_DAY,
        }
    }
}
