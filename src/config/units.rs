//! Durations and sizes as text with a unit. Messages name no value: whether one may be
//! shown is for the caller to know.

use std::time::Duration;

use super::Ratio;

/// The longest duration a key takes: far below where sums with a clock could overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The largest size a key takes, for the same reason.
const LARGEST: u64 = 1 << 40;

const SIZES: [(&str, u64); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// What is wrong with a text that should be a quantity.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadQuantity {
    /// A number without a unit.
    NoUnit,
    /// No quantity, or one out of bounds: what it has to be instead.
    Must(&'static str),
}

/// Reads `250ms`, `5s`, `10m`, `1h` or a sum of such, up to 24 hours.
pub(super) fn duration(text: &str) -> Result<Duration, BadQuantity> {
    if is_bare_number(text) {
        return Err(BadQuantity::NoUnit);
    }
    let duration = humantime::parse_duration(text.trim())
        .map_err(|_| BadQuantity::Must("be a duration with its unit, such as 250ms, 5s, 10m or 1h"))?;
    if duration > LONGEST {
        Err(BadQuantity::Must("be at most 24h (m is minutes, M months)"))
    } else {
        Ok(duration)
    }
}

/// Reads a whole number of percent, up to 100.
pub(super) fn ratio(text: &str) -> Result<Ratio, BadQuantity> {
    const MUST: BadQuantity = BadQuantity::Must("be a whole number of percent from 0% to 100%");
    if is_bare_number(text) {
        return Err(BadQuantity::NoUnit);
    }
    let number = text.trim().strip_suffix('%').ok_or(MUST)?.trim_end();
    number.parse().ok().and_then(Ratio::new).ok_or(MUST)
}

/// Reads a whole number of bytes with a binary or decimal unit, up to 1024 GiB.
pub(super) fn size(text: &str) -> Result<u64, BadQuantity> {
    const MUST: BadQuantity =
        BadQuantity::Must("be a whole number of B, KiB, MiB, GiB, KB, MB or GB, such as 100MiB");
    if is_bare_number(text) {
        return Err(BadQuantity::NoUnit);
    }
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, factor) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(MUST)?;
    if digits == 0 {
        return Err(MUST);
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .filter(|bytes| *bytes <= LARGEST)
        .ok_or(BadQuantity::Must("be at most 1024GiB"))
}

fn is_bare_number(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_their_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("0s", 0),
            ("1m 30s", 90_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!((duration("5"), duration("0")), (Err(BadQuantity::NoUnit), Err(BadQuantity::NoUnit)));
        for bad in ["", "s", "-5s", "5 parsecs", "25h", "5M", "99999999999999999999s", "9999999999999999999y"]
        {
            assert!(matches!(duration(bad), Err(BadQuantity::Must(_))), "{bad}");
        }
    }

    #[test]
    fn sizes_carry_their_unit() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("100MiB", 104_857_600),
            ("1 GiB", 1 << 30),
            ("10MB", 10_000_000),
            ("0B", 0),
            ("1kib", 1024),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size("100"), Err(BadQuantity::NoUnit));
        for bad in
            ["", "MiB", "1.5GiB", "-1B", "1M", "1025GiB", "99999999999999999999B", "18446744073709551615GiB"]
        {
            assert!(matches!(size(bad), Err(BadQuantity::Must(_))), "{bad}");
        }
    }
}
