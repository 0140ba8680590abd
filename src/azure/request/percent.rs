//! Percent-encoding of single bytes (RFC 3986, section 2.1).

use super::target_error::TargetError;

/// Decodes the two hex digits after a percent sign and returns the byte and the rest.
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

/// Whether a byte is an unreserved character (RFC 3986, section 2.3): encoded or not, it means the same.
pub(in crate::azure) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}
