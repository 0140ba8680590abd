//! When a certificate is valid, in words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::x509::X509Ref;

const SECONDS_PER_DAY: i64 = 24 * 60 * 60;
/// A certificate that expires within this many days gets a warning.
const EXPIRY_WARNING_DAYS: i64 = 14;

/// From when until when a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ValidityPeriod {
    not_before: i64,
    not_after: i64,
}

impl ValidityPeriod {
    /// That of a certificate; `None` if its times cannot be read.
    pub(super) fn of(certificate: &X509Ref) -> Option<Self> {
        Some(Self {
            not_before: unix_seconds(certificate.not_before())?,
            not_after: unix_seconds(certificate.not_after())?,
        })
    }

    /// Its end; `None` if that is before 1970.
    pub(super) fn end(self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(self.not_after).ok()?))
    }

    /// Why it is not valid now, such as "expired 12 days ago, on 2026-11-14".
    pub(super) fn problem(self, now: SystemTime) -> Option<String> {
        let now = seconds_since_1970(now);
        if now > self.not_after {
            let (ago, date) = (show_duration(now - self.not_after), show_date(self.not_after));
            return Some(format!("expired {ago} ago, on {date}; install a renewed certificate"));
        }
        if now < self.not_before {
            let (wait, date) = (show_duration(self.not_before - now), show_date(self.not_before));
            return Some(format!(
                "is not valid before {date}, in {wait}; install it then, or correct the clock of this machine"
            ));
        }
        None
    }

    /// When it expires if that is soon, such as "expires in 9 days, on 2026-12-05".
    pub(super) fn expiry_warning(self, now: SystemTime) -> Option<String> {
        let left = self.not_after - seconds_since_1970(now);
        (0..EXPIRY_WARNING_DAYS * SECONDS_PER_DAY).contains(&left).then(|| {
            format!("expires in {}, on {}; renew it", show_duration(left), show_date(self.not_after))
        })
    }
}

fn unix_seconds(time: &Asn1TimeRef) -> Option<i64> {
    let difference = Asn1Time::from_unix(0).ok()?.diff(time).ok()?;
    Some(i64::from(difference.days) * SECONDS_PER_DAY + i64::from(difference.secs))
}

fn seconds_since_1970(now: SystemTime) -> i64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Whole days, or whole hours of the last one.
fn show_duration(seconds: i64) -> String {
    let count = |number: i64, unit: &str| format!("{number} {unit}{}", if number == 1 { "" } else { "s" });
    match (seconds / SECONDS_PER_DAY, seconds / 3600) {
        (0, 0) => "less than an hour".to_owned(),
        (0, hours) => count(hours, "hour"),
        (days, _) => count(days, "day"),
    }
}

/// The day in UTC.
fn show_date(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0)
        .map_or_else(|| "an unknown day".to_owned(), |time| time.format("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openssl::pkey::PKey;
    use openssl::rsa::Rsa;
    use openssl::x509::X509;

    use super::*;

    #[test]
    fn an_invalid_certificate_and_one_that_is_about_to_expire_are_told_with_days_and_date() {
        // 2026-11-26, 12:00 UTC.
        let now = 1_795_694_400;
        let days = |days: f64| now + (days * 86_400.0) as i64;
        let none = (None, None);
        for (from, until, (problem, warning)) in [
            (-30.0, 60.0, none),
            (-30.0, 14.0, none),
            (-30.0, 13.9, (None, Some("expires in 13 days, on 2026-12-10; renew it"))),
            (-30.0, 1.0, (None, Some("expires in 1 day, on 2026-11-27; renew it"))),
            (-30.0, 0.25, (None, Some("expires in 6 hours, on 2026-11-26; renew it"))),
            (-30.0, 0.001, (None, Some("expires in less than an hour, on 2026-11-26; renew it"))),
            (-30.0, -0.5, (Some("expired 12 hours ago, on 2026-11-26; install a renewed certificate"), None)),
            (-30.0, -12.0, (Some("expired 12 days ago, on 2026-11-14; install a renewed certificate"), None)),
            (
                1.5,
                60.0,
                (
                    Some(
                        "is not valid before 2026-11-28, in 1 day; install it then, or correct the clock of this machine",
                    ),
                    None,
                ),
            ),
        ] {
            let period = ValidityPeriod { not_before: days(from), not_after: days(until) };
            let now = UNIX_EPOCH + Duration::from_secs(now as u64);
            let told = (period.problem(now), period.expiry_warning(now));
            assert_eq!((told.0.as_deref(), told.1.as_deref()), (problem, warning), "{from} {until}");
        }
    }

    #[test]
    fn the_times_of_a_certificate_are_read() {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::from_unix(1_000_000_000).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::from_str("20991231235959Z").unwrap()).unwrap();
        builder.sign(&key, openssl::hash::MessageDigest::sha256()).unwrap();
        let expected = ValidityPeriod { not_before: 1_000_000_000, not_after: 4_102_444_799 };
        assert_eq!(ValidityPeriod::of(&builder.build()), Some(expected));
    }
}
