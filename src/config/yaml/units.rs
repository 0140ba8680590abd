//! Parses durations, sizes and percentages, which are written with their unit. Errors do not repeat the
//! value: whether it may be shown is for the caller to decide.

use std::time::Duration;

use crate::config::values::Percentage;

/// The longest duration that is accepted: far below where adding it to a point in time could overflow.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);
/// The largest size that is accepted, in bytes: far below where sums could overflow.
const MAX_BYTE_SIZE: u64 = 1 << 40;

const BYTE_UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Why a text is not a quantity.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum QuantityError {
    /// It is a number without a unit.
    MissingUnit,
    /// It is something else, or out of bounds. Says what is expected, to be put after "must".
    Expected(&'static str),
}

/// Parses `250ms`, `5s`, `10m`, `1h` or a sum such as `1m 30s`, up to 24 hours.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    if is_bare_number(text) {
        return Err(QuantityError::MissingUnit);
    }
    let duration = humantime::parse_duration(text.trim())
        .map_err(|_| QuantityError::Expected("be a duration with its unit, such as 250ms, 5s, 10m or 1h"))?;
    if duration > MAX_DURATION {
        Err(QuantityError::Expected("be at most 24h (m is minutes, M months)"))
    } else {
        Ok(duration)
    }
}

/// Parses a whole number of percent, up to 100.
pub(crate) fn parse_percentage(text: &str) -> Result<Percentage, QuantityError> {
    const MUST: QuantityError = QuantityError::Expected("be a whole number of percent from 0% to 100%");
    if is_bare_number(text) {
        return Err(QuantityError::MissingUnit);
    }
    let number = text.trim().strip_suffix('%').ok_or(MUST)?.trim_end();
    number.parse().ok().and_then(Percentage::new).ok_or(MUST)
}

/// Parses a whole number of bytes with a binary or decimal unit, up to 1024 GiB.
pub(crate) fn parse_byte_size(text: &str) -> Result<u64, QuantityError> {
    const MUST: QuantityError =
        QuantityError::Expected("be a whole number of B, KiB, MiB, GiB, KB, MB or GB, such as 100MiB");
    if is_bare_number(text) {
        return Err(QuantityError::MissingUnit);
    }
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, factor) = BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(MUST)?;
    if digits == 0 {
        return Err(MUST);
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .filter(|bytes| *bytes <= MAX_BYTE_SIZE)
        .ok_or(QuantityError::Expected("be at most 1024GiB"))
}

fn is_bare_number(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("0s", 0),
            ("1m 30s", 90_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(
            (parse_duration("5"), parse_duration("0")),
            (Err(QuantityError::MissingUnit), Err(QuantityError::MissingUnit))
        );
        for bad in ["", "s", "-5s", "5 parsecs", "25h", "5M", "99999999999999999999s", "9999999999999999999y"]
        {
            assert!(matches!(parse_duration(bad), Err(QuantityError::Expected(_))), "{bad}");
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("100MiB", 104_857_600),
            ("1 GiB", 1 << 30),
            ("10MB", 10_000_000),
            ("0B", 0),
            ("1kib", 1024),
        ] {
            assert_eq!(parse_byte_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_byte_size("100"), Err(QuantityError::MissingUnit));
        for bad in
            ["", "MiB", "1.5GiB", "-1B", "1M", "1025GiB", "99999999999999999999B", "18446744073709551615GiB"]
        {
            assert!(matches!(parse_byte_size(bad), Err(QuantityError::Expected(_))), "{bad}");
        }
    }
}
