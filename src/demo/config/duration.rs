//! Durations with a unit: `250ms`, `5s`, `2m`, `1h`.

use std::time::Duration;

/// Parses a duration.
///
/// # Errors
/// A message that says how a duration is written.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_number_with_unit(text).ok_or_else(|| {
        format!("{text:?} is not a duration; write a number and a unit, such as 250ms, 5s, 2m or 1h")
    })
}

fn parse_number_with_unit(text: &str) -> Option<Duration> {
    let unit_start = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(unit_start)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}
