//! Budgets: what was used in the current UTC day and month. Where that is kept is left to
//! `gateway/budget_books/`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, NaiveDate, Utc};

const SECONDS_PER_DAY: u64 = 86_400;

/// The UTC day and month of a time. Times before 1970 count as its first day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UtcWindows {
    /// Days since 1970-01-01.
    pub day: u32,
    /// `year * 12 + month`, where January is month 0.
    pub month: u32,
}

impl UtcWindows {
    /// The windows that a time is in.
    pub fn at(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let date = i64::try_from(seconds).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        let date = date.unwrap_or(DateTime::<Utc>::MAX_UTC);
        let year = u32::try_from(date.year()).unwrap_or_default();
        Self {
            day: u32::try_from(seconds / SECONDS_PER_DAY).unwrap_or(u32::MAX),
            month: year * 12 + date.month0(),
        }
    }
}

/// When the UTC day of a time ends.
pub fn end_of_day(time: SystemTime) -> SystemTime {
    start_of_day(u64::from(UtcWindows::at(time).day) + 1).unwrap_or(time)
}

/// When the UTC month of a time ends.
pub fn end_of_month(time: SystemTime) -> SystemTime {
    let next = UtcWindows::at(time).month + 1;
    let first_day =
        i32::try_from(next / 12).ok().and_then(|year| NaiveDate::from_ymd_opt(year, next % 12 + 1, 1));
    let days = first_day.and_then(|date| u64::try_from((date - NaiveDate::default()).num_days()).ok());
    days.and_then(start_of_day).unwrap_or(time)
}

fn start_of_day(day: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(day.checked_mul(SECONDS_PER_DAY)?))
}

/// What was used in a day and in a month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetUse {
    /// The latest day and month in which something was used.
    pub windows: UtcWindows,
    /// The tokens of this day.
    pub day_tokens: u64,
    /// The tokens of this month.
    pub month_tokens: u64,
}

impl BudgetUse {
    /// Adds tokens. A later day or month than the last one begins at 0. If the clock was set back, they count in
    /// the last one.
    pub fn add(&mut self, tokens: u64, now: UtcWindows) {
        let windows =
            UtcWindows { day: now.day.max(self.windows.day), month: now.month.max(self.windows.month) };
        self.merge(Self { windows, day_tokens: tokens, month_tokens: tokens });
    }

    /// Adds what was used elsewhere. What was used in an earlier day or month than the last one here does not
    /// count.
    pub fn merge(&mut self, other: Self) {
        let Self { windows, day_tokens, month_tokens } = self;
        merge_window((&mut windows.day, day_tokens), (other.windows.day, other.day_tokens));
        merge_window((&mut windows.month, month_tokens), (other.windows.month, other.month_tokens));
    }

    /// Raises the tokens of a day to at least this. Returns whether anything has changed.
    pub fn raise_day(&mut self, day: u32, tokens: u64) -> bool {
        raise_window((&mut self.windows.day, &mut self.day_tokens), (day, tokens))
    }

    /// Raises the tokens of a month to at least this. Returns whether anything has changed.
    pub fn raise_month(&mut self, month: u32, tokens: u64) -> bool {
        raise_window((&mut self.windows.month, &mut self.month_tokens), (month, tokens))
    }

    /// Takes tokens out of the day that it is now.
    pub fn reduce_day(&mut self, tokens: u64, now: UtcWindows) {
        if now.day <= self.windows.day {
            self.day_tokens = self.day_tokens.saturating_sub(tokens);
        }
    }

    /// Takes tokens out of the month that it is now.
    pub fn reduce_month(&mut self, tokens: u64, now: UtcWindows) {
        if now.month <= self.windows.month {
            self.month_tokens = self.month_tokens.saturating_sub(tokens);
        }
    }

    /// The tokens of the day that it is now.
    pub fn used_in_day(&self, now: UtcWindows) -> u64 {
        if now.day > self.windows.day { 0 } else { self.day_tokens }
    }

    /// The tokens of the month that it is now.
    pub fn used_in_month(&self, now: UtcWindows) -> u64 {
        if now.month > self.windows.month { 0 } else { self.month_tokens }
    }

    /// Whether nothing was used.
    pub fn is_empty(&self) -> bool {
        self.day_tokens == 0 && self.month_tokens == 0
    }
}

fn merge_window((window, tokens): (&mut u32, &mut u64), (other, added): (u32, u64)) {
    if other > *window {
        (*window, *tokens) = (other, added);
    } else if other == *window {
        *tokens = tokens.saturating_add(added);
    }
}

fn raise_window((window, tokens): (&mut u32, &mut u64), (other, at_least): (u32, u64)) -> bool {
    let is_more = other > *window && at_least > 0 || other == *window && at_least > *tokens;
    if is_more {
        (*window, *tokens) = (other, at_least);
    }
    is_more
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> SystemTime {
        DateTime::parse_from_rfc3339(text).unwrap().into()
    }

    #[test]
    fn days_and_months_begin_at_midnight_utc() {
        for (text, day, month, day_end, month_end) in [
            ("1969-12-31T23:00:00Z", 0, 1970 * 12, "1970-01-02T00:00:00Z", "1970-02-01T00:00:00Z"),
            ("1970-01-01T00:00:00Z", 0, 1970 * 12, "1970-01-02T00:00:00Z", "1970-02-01T00:00:00Z"),
            (
                "2024-02-28T23:59:59.999Z",
                19_781,
                2024 * 12 + 1,
                "2024-02-29T00:00:00Z",
                "2024-03-01T00:00:00Z",
            ),
            ("2024-02-29T00:00:00Z", 19_782, 2024 * 12 + 1, "2024-03-01T00:00:00Z", "2024-03-01T00:00:00Z"),
            ("2025-02-28T12:00:00Z", 20_147, 2025 * 12 + 1, "2025-03-01T00:00:00Z", "2025-03-01T00:00:00Z"),
            ("2026-12-31T23:30:00-02:00", 20_819, 2027 * 12, "2027-01-02T00:00:00Z", "2027-02-01T00:00:00Z"),
            ("2026-12-31T23:59:59Z", 20_818, 2026 * 12 + 11, "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            let at = time(text);
            assert_eq!(UtcWindows::at(at), UtcWindows { day, month }, "{text}");
            assert_eq!((end_of_day(at), end_of_month(at)), (time(day_end), time(month_end)), "{text}");
        }
    }

    #[test]
    fn a_window_begins_at_zero_and_a_clock_that_was_set_back_does_not_begin_one() {
        let at = |day, month| UtcWindows { day, month };
        let mut used = BudgetUse::default();
        // The time of each addition, the tokens, and what is used in the day and in the month afterwards.
        for (now, tokens, day_tokens, month_tokens) in [
            (at(10, 5), 3, 3, 3),
            (at(10, 5), 4, 7, 7),
            (at(11, 5), 1, 1, 8),
            (at(10, 5), 2, 3, 10),
            (at(9, 4), 5, 8, 15),
            (at(12, 6), 1, 1, 1),
            (at(12, 6), u64::MAX, u64::MAX, u64::MAX),
            (at(13, 6), 0, 0, u64::MAX),
        ] {
            used.add(tokens, now);
            let found = (used.used_in_day(now), used.used_in_month(now));
            assert_eq!(found, (day_tokens, month_tokens), "{now:?}");
        }
        assert_eq!((used.used_in_day(at(14, 6)), used.used_in_month(at(14, 6))), (0, u64::MAX));
        assert_eq!(used.used_in_month(at(40, 7)), 0);
        assert!(BudgetUse::default().is_empty() && !used.is_empty());
    }

    #[test]
    fn what_was_used_elsewhere_counts_if_it_was_in_the_same_window_or_a_later_one() {
        let used = |day, month, day_tokens, month_tokens| BudgetUse {
            windows: UtcWindows { day, month },
            day_tokens,
            month_tokens,
        };
        for (other, expected) in [
            (used(10, 5, 1, 2), used(10, 5, 11, 102)),
            (used(9, 5, 1, 2), used(10, 5, 10, 102)),
            (used(11, 5, 1, 2), used(11, 5, 1, 102)),
            (used(11, 6, 1, 2), used(11, 6, 1, 2)),
            (used(9, 4, 1, 2), used(10, 5, 10, 100)),
            (BudgetUse::default(), used(10, 5, 10, 100)),
        ] {
            let mut merged = used(10, 5, 10, 100);
            merged.merge(other);
            assert_eq!(merged, expected, "{other:?}");
        }
    }

    #[test]
    fn what_is_known_of_a_window_only_rises_and_a_later_window_begins_anew() {
        let mut used = BudgetUse::default();
        // The window, the tokens, whether anything changes, and what is known afterwards.
        for (window, tokens, is_news, expected) in [
            (10, 0, false, (0, 0)),
            (10, 7, true, (10, 7)),
            (10, 5, false, (10, 7)),
            (10, 7, false, (10, 7)),
            (9, 100, false, (10, 7)),
            (10, 8, true, (10, 8)),
            (11, 0, false, (10, 8)),
            (11, 3, true, (11, 3)),
        ] {
            assert_eq!(
                (used.raise_day(window, tokens), used.raise_month(window, tokens)),
                (is_news, is_news)
            );
            assert_eq!((used.windows.day, used.day_tokens), expected);
            assert_eq!((used.windows.month, used.month_tokens), expected);
        }
    }

    proptest! {
        #[test]
        fn any_time_is_before_the_end_of_its_windows(seconds in 0_u64..300_000_000_000) {
            let at = UNIX_EPOCH + Duration::from_secs(seconds);
            let (windows, nanosecond) = (UtcWindows::at(at), Duration::from_nanos(1));
            let (day_end, month_end) = (end_of_day(at), end_of_month(at));
            prop_assert!(at < day_end && day_end <= month_end);
            prop_assert_eq!(UtcWindows::at(day_end - nanosecond).day, windows.day);
            prop_assert_eq!(UtcWindows::at(day_end).day, windows.day + 1);
            prop_assert_eq!(UtcWindows::at(month_end - nanosecond).month, windows.month);
            prop_assert_eq!(UtcWindows::at(month_end).month, windows.month + 1);
        }

        #[test]
        fn no_time_is_too_late(seconds in any::<u64>()) {
            if let Some(at) = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
                let _ = (UtcWindows::at(at), end_of_day(at), end_of_month(at));
            }
        }

        #[test]
        fn what_is_used_is_the_sum_of_the_window(
            additions in proptest::collection::vec((0_u64..90, 0_u64..1_000_000), 1..60),
        ) {
            let mut additions = additions;
            additions.sort_unstable();
            let windows_of = |day: u64| UtcWindows::at(time("2026-01-01T00:00:00Z") + Duration::from_secs(day * 86_400));
            let mut used = BudgetUse::default();
            for (count, (day, tokens)) in additions.iter().enumerate() {
                let now = windows_of(*day);
                used.add(*tokens, now);
                let so_far = || additions[..=count].iter().map(|(day, tokens)| (windows_of(*day), *tokens));
                let in_day = so_far().filter(|(at, _)| at.day == now.day).map(|(_, tokens)| tokens).sum::<u64>();
                let in_month = so_far().filter(|(at, _)| at.month == now.month).map(|(_, tokens)| tokens).sum::<u64>();
                prop_assert_eq!((used.used_in_day(now), used.used_in_month(now)), (in_day, in_month));
            }
        }

        #[test]
        fn parts_that_are_merged_are_what_was_used_in_all(
            additions in proptest::collection::vec((0_u32..3, any::<bool>(), 0_u64..1000), 0..20),
        ) {
            let mut additions = additions;
            additions.sort_unstable_by_key(|(day, ..)| *day);
            let (mut all, mut here, mut elsewhere) = <(BudgetUse, BudgetUse, BudgetUse)>::default();
            for (day, is_here, tokens) in additions {
                let now = UtcWindows { day: 30 + day, month: 7 + day / 2 };
                all.add(tokens, now);
                if is_here { here.add(tokens, now) } else { elsewhere.add(tokens, now) }
            }
            let mut reversed = elsewhere;
            reversed.merge(here);
            here.merge(elsewhere);
            prop_assert_eq!((here, reversed), (all, all));
        }
    }
}
