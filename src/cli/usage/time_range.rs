//! Which records the report of `aoai-lb usage` counts: `--since` and `--until`.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, SecondsFormat, TimeDelta, Utc};

/// A point in time as it is given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimePoint {
    /// So long before now.
    Ago(Duration),
    /// This time.
    At(DateTime<Utc>),
}

impl TimePoint {
    /// Parses a duration back from now (`7d`), a date (`2026-11-01`, midnight UTC) or a time in the format
    /// of RFC 3339.
    ///
    /// # Errors
    /// If it is something else: what is expected.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected a duration back from now with its unit, such as 30m, 24h or 7d, a date such as \
             2026-11-01, or a time such as 2026-11-01T08:00:00Z";
        let text = text.trim();
        // The parser of durations takes a 0 without its unit.
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number && let Ok(duration) = humantime::parse_duration(text) {
            return Ok(Self::Ago(duration));
        }
        let time = DateTime::parse_from_rfc3339(text)
            .or_else(|_| DateTime::parse_from_rfc3339(&format!("{text}T00:00:00Z")));
        time.map(|time| Self::At(time.to_utc())).map_err(|_| EXPECTED)
    }

    /// The time that it is. What is longer ago than any time can tell is the first of all times.
    fn resolve(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(time) => time,
            Self::Ago(duration) => TimeDelta::from_std(duration)
                .ok()
                .and_then(|duration| now.checked_sub_signed(duration))
                .unwrap_or(DateTime::<Utc>::MIN_UTC),
        }
    }
}

/// No time is in the range.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--since ({}) must be before --until ({})", format_time(*since), format_time(*until))]
pub(super) struct EmptyRange {
    since: DateTime<Utc>,
    until: DateTime<Utc>,
}

fn format_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The times whose records count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TimeRange {
    /// The first of them.
    since: Option<DateTime<Utc>>,
    /// The first after them.
    until: Option<DateTime<Utc>>,
}

impl TimeRange {
    /// The range from one point until just before another; without one it has no bound on that side.
    ///
    /// # Errors
    /// If there is no time in it.
    pub(super) fn new(
        since: Option<TimePoint>,
        until: Option<TimePoint>,
        now: DateTime<Utc>,
    ) -> Result<Self, EmptyRange> {
        let (since, until) = (since.map(|point| point.resolve(now)), until.map(|point| point.resolve(now)));
        match (since, until) {
            (Some(since), Some(until)) if since >= until => Err(EmptyRange { since, until }),
            _ => Ok(Self { since, until }),
        }
    }

    /// The part of a span of time that is in the range; an empty one if none is.
    pub(super) fn clamp(&self, begin: DateTime<Utc>, end: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
        let begin = self.since.map_or(begin, |since| since.max(begin));
        let end = self.until.map_or(end, |until| until.min(end));
        (begin, end.max(begin))
    }

    /// The first and the last UTC day of the range: from `first_record` on if it has no beginning, and until now if it
    /// has no end.
    pub(super) fn days(&self, first_record: NaiveDate, now: DateTime<Utc>) -> (NaiveDate, NaiveDate) {
        let first = self.since.map_or(first_record, |since| since.date_naive());
        // The end is the first moment that is not in the range.
        let end = self.until.map_or(now, |until| until.min(now));
        (first, (end - TimeDelta::microseconds(1)).date_naive())
    }

    /// Whether the time of a record, in the format of RFC 3339, is in the range; `None` if it is not a time
    /// and the range has a bound.
    pub(super) fn contains(&self, time: &str) -> Option<bool> {
        if *self == Self::default() {
            return Some(true);
        }
        let time = DateTime::parse_from_rfc3339(time).ok()?.to_utc();
        let is_early = self.since.is_some_and(|since| time < since);
        let is_late = self.until.is_some_and(|until| time >= until);
        Some(!is_early && !is_late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    #[test]
    fn a_point_in_time_is_a_duration_a_date_or_a_time() {
        let now = time("2026-11-27T10:30:00.5Z");
        for (text, expected) in [
            ("30m", "2026-11-27T10:00:00.5Z"),
            ("24h", "2026-11-26T10:30:00.5Z"),
            ("7d", "2026-11-20T10:30:00.5Z"),
            ("1d 12h", "2026-11-25T22:30:00.5Z"),
            ("2w", "2026-11-13T10:30:00.5Z"),
            ("0s", "2026-11-27T10:30:00.5Z"),
            (" 7d ", "2026-11-20T10:30:00.5Z"),
            ("2026-11-01", "2026-11-01T00:00:00Z"),
            ("2024-02-29", "2024-02-29T00:00:00Z"),
            ("2026-11-01T08:00:00Z", "2026-11-01T08:00:00Z"),
            ("2026-11-01T08:00:00.25Z", "2026-11-01T08:00:00.25Z"),
            ("2026-11-01T08:00:00+01:00", "2026-11-01T07:00:00Z"),
            ("2027-01-01", "2027-01-01T00:00:00Z"),
        ] {
            let point = TimePoint::parse(text).unwrap();
            assert_eq!(point.resolve(now), time(expected), "{text}");
        }
        for ages in ["500000y", "9000000000000000000s"] {
            let point = TimePoint::parse(ages).unwrap();
            assert_eq!(point.resolve(now), DateTime::<Utc>::MIN_UTC, "{ages}");
        }
    }

    #[test]
    fn anything_else_is_no_point_in_time() {
        for text in [
            "",
            " ",
            "0",
            "7",
            "7 ",
            "d",
            "-7d",
            "7x",
            "yesterday",
            "2026",
            "2026-11",
            "2026-11-31",
            "2026-02-29",
            "2026-1-1",
            "01.11.2026",
            "2026-11-01T08:00",
            "2026-11-01T08:00:00",
            "2026-11-01T24:00:00Z",
            "99999999999999999999s",
        ] {
            let problem = TimePoint::parse(text).expect_err(text);
            for expected in ["7d", "2026-11-01,", "2026-11-01T08:00:00Z"] {
                assert!(problem.contains(expected), "{problem}");
            }
        }
    }

    #[test]
    fn a_range_begins_with_since_and_ends_before_until() {
        let now = time("2026-11-27T00:00:00Z");
        let (early, late) = (Some("2026-11-20"), Some("2026-11-25T12:00:00Z"));
        for (since, until, record, expected) in [
            (None, None, "2026-11-23T08:00:00.000000Z", Some(true)),
            (None, None, "2026-11-23 of any kind", Some(true)),
            (early, None, "2026-11-19T23:59:59.999999Z", Some(false)),
            (early, None, "2026-11-20T00:00:00.000000Z", Some(true)),
            (early, None, "2026-11-20T00:30:00+01:00", Some(false)),
            (early, None, "2099-01-01T00:00:00.000000Z", Some(true)),
            (None, late, "1999-01-01T00:00:00.000000Z", Some(true)),
            (None, late, "2026-11-25T11:59:59.999999Z", Some(true)),
            (None, late, "2026-11-25T12:00:00.000000Z", Some(false)),
            (early, late, "2026-11-19T00:00:00.000000Z", Some(false)),
            (early, late, "2026-11-22T00:00:00.000000Z", Some(true)),
            (early, late, "2026-11-26T00:00:00.000000Z", Some(false)),
            (Some("2d"), Some("1d"), "2026-11-24T23:59:59.999999Z", Some(false)),
            (Some("2d"), Some("1d"), "2026-11-25T00:00:00.000000Z", Some(true)),
            (Some("2d"), Some("1d"), "2026-11-26T00:00:00.000000Z", Some(false)),
            (early, None, "2026-11-23 of any kind", None),
            (None, late, "2026-11-23", None),
        ] {
            let point = |text: Option<&str>| text.map(|text| TimePoint::parse(text).unwrap());
            let range = TimeRange::new(point(since), point(until), now).unwrap();
            assert_eq!(range.contains(record), expected, "{since:?} {until:?} {record}");
        }
    }

    #[test]
    fn a_range_without_any_time_is_an_error() {
        let now = time("2026-11-27T00:00:00Z");
        for (since, until) in
            [("1d", "2d"), ("1d", "1d"), ("2026-11-26", "1d"), ("2026-11-26T00:00:00Z", "2026-11-26")]
        {
            let point = |text| Some(TimePoint::parse(text).unwrap());
            let problem = TimeRange::new(point(since), point(until), now).unwrap_err().to_string();
            assert!(problem.starts_with("--since (2026-11-26T00:00:00Z) must be before --until (2026-11-2"));
        }
    }
}
