//! Budgets: what was used in the current UTC day and month. Where that is kept is left to
//! `gateway/budget_books/`.

use std::cmp::Ordering;
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

/// What is counted in a day or a month. No sum ever falls while it counts: what was too much is refunded in a sum of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSums {
    /// Tokens.
    pub tokens: u64,
    /// Costs, in millionths of the currency.
    pub cost_millionths: u64,
    /// Tokens that were counted before and have turned out not to be used.
    pub refunded_tokens: u64,
    /// The same of costs.
    pub refunded_cost_millionths: u64,
    /// Responses that are part of what their backend costs by the hour.
    pub provisioned: u64,
    /// Responses whose cost is not known.
    pub without_cost: u64,
}

impl WindowSums {
    /// Whether nothing is counted.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Each of these sums with the same one of the other.
    fn combine(self, other: Self, operation: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            tokens: operation(self.tokens, other.tokens),
            cost_millionths: operation(self.cost_millionths, other.cost_millionths),
            refunded_tokens: operation(self.refunded_tokens, other.refunded_tokens),
            refunded_cost_millionths: operation(
                self.refunded_cost_millionths,
                other.refunded_cost_millionths,
            ),
            provisioned: operation(self.provisioned, other.provisioned),
            without_cost: operation(self.without_cost, other.without_cost),
        }
    }
}

/// What was used in a day and in a month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetUse {
    /// The latest day and month in which something was used.
    pub windows: UtcWindows,
    /// What was used on this day.
    pub day: WindowSums,
    /// What was used in this month.
    pub month: WindowSums,
}

impl BudgetUse {
    /// The same use of a day and of its month.
    pub fn of_both(sums: WindowSums, windows: UtcWindows) -> Self {
        Self { windows, day: sums, month: sums }
    }

    /// Adds what was used. A later day or month than the last one begins at 0. If the clock was set back, it counts in
    /// the last one.
    pub fn add(&mut self, sums: WindowSums, now: UtcWindows) {
        let windows =
            UtcWindows { day: now.day.max(self.windows.day), month: now.month.max(self.windows.month) };
        self.merge(Self::of_both(sums, windows));
    }

    /// Adds what was used elsewhere. What was used in an earlier day or month than the last one here does not
    /// count.
    pub fn merge(&mut self, other: Self) {
        let Self { windows, day, month } = self;
        merge_window((&mut windows.day, day), (other.windows.day, other.day));
        merge_window((&mut windows.month, month), (other.windows.month, other.month));
    }

    /// Raises what was used on a day to at least this. Returns whether anything has changed.
    pub fn raise_day(&mut self, day: u32, at_least: WindowSums) -> bool {
        raise_window((&mut self.windows.day, &mut self.day), (day, at_least))
    }

    /// Raises what was used in a month to at least this. Returns whether anything has changed.
    pub fn raise_month(&mut self, month: u32, at_least: WindowSums) -> bool {
        raise_window((&mut self.windows.month, &mut self.month), (month, at_least))
    }

    /// Takes this out of the day that it is now.
    pub fn reduce_day(&mut self, by: WindowSums, now: UtcWindows) {
        if now.day <= self.windows.day {
            self.day = self.day.combine(by, u64::saturating_sub);
        }
    }

    /// Takes this out of the month that it is now.
    pub fn reduce_month(&mut self, by: WindowSums, now: UtcWindows) {
        if now.month <= self.windows.month {
            self.month = self.month.combine(by, u64::saturating_sub);
        }
    }

    /// What was used on the day that it is now.
    pub fn used_in_day(&self, now: UtcWindows) -> WindowSums {
        if now.day > self.windows.day { WindowSums::default() } else { self.day }
    }

    /// What was used in the month that it is now.
    pub fn used_in_month(&self, now: UtcWindows) -> WindowSums {
        if now.month > self.windows.month { WindowSums::default() } else { self.month }
    }

    /// Whether nothing was used.
    pub fn is_empty(&self) -> bool {
        self.day.is_empty() && self.month.is_empty()
    }
}

fn merge_window((window, sums): (&mut u32, &mut WindowSums), (other, added): (u32, WindowSums)) {
    if other > *window {
        (*window, *sums) = (other, added);
    } else if other == *window {
        *sums = sums.combine(added, u64::saturating_add);
    }
}

fn raise_window((window, sums): (&mut u32, &mut WindowSums), (other, at_least): (u32, WindowSums)) -> bool {
    let raised = match other.cmp(window) {
        Ordering::Greater if !at_least.is_empty() => at_least,
        Ordering::Equal => sums.combine(at_least, u64::max),
        _ => return false,
    };
    let is_more = other > *window || raised != *sums;
    (*window, *sums) = (other, raised);
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

    fn tokens(tokens: u64) -> WindowSums {
        WindowSums { tokens, ..WindowSums::default() }
    }

    #[test]
    fn a_window_begins_at_zero_and_a_clock_that_was_set_back_does_not_begin_one() {
        let at = |day, month| UtcWindows { day, month };
        let mut used = BudgetUse::default();
        // The time of each addition, the tokens, and what is used in the day and in the month afterwards.
        for (now, added, day_tokens, month_tokens) in [
            (at(10, 5), 3, 3, 3),
            (at(10, 5), 4, 7, 7),
            (at(11, 5), 1, 1, 8),
            (at(10, 5), 2, 3, 10),
            (at(9, 4), 5, 8, 15),
            (at(12, 6), 1, 1, 1),
            (at(12, 6), u64::MAX, u64::MAX, u64::MAX),
            (at(13, 6), 0, 0, u64::MAX),
        ] {
            used.add(tokens(added), now);
            let found = (used.used_in_day(now).tokens, used.used_in_month(now).tokens);
            assert_eq!(found, (day_tokens, month_tokens), "{now:?}");
        }
        assert_eq!((used.used_in_day(at(14, 6)).tokens, used.used_in_month(at(14, 6)).tokens), (0, u64::MAX));
        assert_eq!(used.used_in_month(at(40, 7)).tokens, 0);
        assert!(BudgetUse::default().is_empty() && !used.is_empty());
    }

    #[test]
    fn what_was_used_elsewhere_counts_if_it_was_in_the_same_window_or_a_later_one() {
        let used = |day, month, day_tokens, month_tokens| BudgetUse {
            windows: UtcWindows { day, month },
            day: tokens(day_tokens),
            month: WindowSums { cost_millionths: month_tokens, ..tokens(month_tokens) },
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
        let sums = |tokens, cost_millionths| WindowSums { tokens, cost_millionths, ..WindowSums::default() };
        // The window, the tokens and the cost, whether anything changes, and what is known afterwards.
        for (window, at_least, is_news, expected) in [
            (10, sums(0, 0), false, (0, sums(0, 0))),
            (10, sums(7, 0), true, (10, sums(7, 0))),
            (10, sums(5, 0), false, (10, sums(7, 0))),
            (10, sums(0, 3), true, (10, sums(7, 3))),
            (10, sums(7, 2), false, (10, sums(7, 3))),
            (9, sums(100, 100), false, (10, sums(7, 3))),
            (10, sums(8, 4), true, (10, sums(8, 4))),
            (11, sums(0, 0), false, (10, sums(8, 4))),
            (11, sums(0, 2), true, (11, sums(0, 2))),
        ] {
            let found = (used.raise_day(window, at_least), used.raise_month(window, at_least));
            assert_eq!(found, (is_news, is_news), "{window} {at_least:?}");
            assert_eq!((used.windows.day, used.day), expected);
            assert_eq!((used.windows.month, used.month), expected);
        }
    }

    #[test]
    fn only_a_window_that_still_counts_is_reduced() {
        let sums = |tokens, cost_millionths| WindowSums { tokens, cost_millionths, ..WindowSums::default() };
        let windows = UtcWindows { day: 10, month: 5 };
        // The time, what the day is reduced by, and what is left of it and of the month.
        for (now, by, day, month) in [
            (windows, sums(2, 0), sums(5, 4), sums(5, 4)),
            (windows, sums(0, 3), sums(7, 1), sums(7, 1)),
            (windows, sums(100, 100), sums(0, 0), sums(0, 0)),
            (UtcWindows { day: 11, month: 5 }, sums(1, 1), sums(7, 4), sums(6, 3)),
            (UtcWindows { day: 40, month: 6 }, sums(1, 1), sums(7, 4), sums(7, 4)),
        ] {
            let mut used = BudgetUse::of_both(sums(7, 4), windows);
            used.reduce_day(by, now);
            used.reduce_month(by, now);
            assert_eq!((used.day, used.month), (day, month), "{now:?} {by:?}");
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
            for (count, (day, added)) in additions.iter().enumerate() {
                let now = windows_of(*day);
                used.add(tokens(*added), now);
                let so_far = || additions[..=count].iter().map(|(day, tokens)| (windows_of(*day), *tokens));
                let in_day = so_far().filter(|(at, _)| at.day == now.day).map(|(_, tokens)| tokens).sum::<u64>();
                let in_month = so_far().filter(|(at, _)| at.month == now.month).map(|(_, tokens)| tokens).sum::<u64>();
                prop_assert_eq!((used.used_in_day(now).tokens, used.used_in_month(now).tokens), (in_day, in_month));
            }
        }

        #[test]
        fn parts_that_are_merged_are_what_was_used_in_all(
            additions in proptest::collection::vec((0_u32..3, any::<bool>(), 0_u64..1000), 0..20),
        ) {
            let mut additions = additions;
            additions.sort_unstable_by_key(|(day, ..)| *day);
            let (mut all, mut here, mut elsewhere) = <(BudgetUse, BudgetUse, BudgetUse)>::default();
            for (day, is_here, added) in additions {
                let added = WindowSums { without_cost: added / 2, provisioned: added / 3, ..tokens(added) };
                let now = UtcWindows { day: 30 + day, month: 7 + day / 2 };
                all.add(added, now);
                if is_here { here.add(added, now) } else { elsewhere.add(added, now) }
            }
            let mut reversed = elsewhere;
            reversed.merge(here);
            here.merge(elsewhere);
            prop_assert_eq!((here, reversed), (all, all));
        }
    }
}
