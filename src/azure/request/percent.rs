//! Percent-encoding (RFC 3986, section 2.1), one byte at a time.

use super::target_error::TargetError;

/// Reads the two hex digits after a percent sign.
pub(in crate::azure) fn decode_hex_pair(after_percent: &[u8]) -> Result<(u8, &[u8]), TargetError> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    match after_percent {
        [high, low, rest @ ..] => match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => Ok((high << 4 | low, rest)),
            _ => Err(TargetError::InvalidPercentEncoding),
        },
        _ => Err(TargetError::InvalidPercentEncoding),
    }
}

pub(in crate::azure) fn push_percent_encoded(out: &mut String, byte: u8) {
    const HEX_DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    for nibble in [byte >> 4, byte & 15] {
        out.push(char::from(HEX_DIGITS[usize::from(nibble)]));
    }
}

pub(in crate::azure) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}
