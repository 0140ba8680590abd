//! Parses numbers as YAML 1.2 writes them.

/// A number of digits, with or without decimals. Only such a text has one reading for everybody.
pub(super) fn parse_decimal(text: &str) -> Option<f64> {
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if is_digits(whole) && is_digits(decimals) { text.parse().ok() } else { None }
}

/// A whole number as YAML 1.2 writes it: decimal, `0x` or `0o`.
pub(super) fn parse_integer(text: &str) -> Option<u64> {
    match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => u64::from_str_radix(digits, 16).ok(),
        (_, Some(digits)) => u64::from_str_radix(digits, 8).ok(),
        _ => text.parse().ok(),
    }
}
