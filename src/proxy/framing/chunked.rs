//! Checks the chunked encoding of a body (RFC 9112, section 7.1) as its bytes arrive.

/// Longest chunk size: 15 hexadecimal digits, which fit into 64 bits with room to spare.
const MAX_SIZE_DIGITS: u8 = 15;
/// Maximum bytes of all chunk extensions of a body together. Nobody sends any.
const MAX_EXTENSION_BYTES: usize = 4 * 1024;
/// Maximum bytes of the trailer fields of a body.
const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// The state of one chunked body.
#[derive(Debug)]
pub(in crate::proxy) struct ChunkedBody {
    position: Position,
    extension_bytes: usize,
    trailer_bytes: usize,
}

/// What is due next.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// The first digit of a chunk size.
    Size,
    /// More digits, an extension or the end of the line.
    SizeRest {
        size: u64,
        digits: u8,
    },
    /// Blanks that have to be followed by an extension.
    BlankBeforeExtension {
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeLineFeed {
        size: u64,
    },
    Data {
        remaining: u64,
    },
    DataCarriageReturn,
    DataLineFeed,
    /// The name of a trailer field, or the empty line that ends the body.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    Ended,
    Malformed,
}

/// What bytes of a connection turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy) enum CheckedBytes {
    /// All of them are well-formed; further ones belong to the body.
    WellFormed,
    /// The body ended after this many of them; the rest is not part of it.
    EndOfBody(usize),
    /// This many of them are well-formed, and the next one is not.
    MalformedAfter(usize),
}

impl ChunkedBody {
    /// What is malformed, for an error.
    pub(in crate::proxy) const MALFORMED: &str = "the chunked encoding is malformed";

    /// A body of which nothing has arrived.
    pub(in crate::proxy) fn new() -> Self {
        Self { position: Position::Size, extension_bytes: 0, trailer_bytes: 0 }
    }

    /// Checks the next bytes of the connection. After the end of the body it returns `EndOfBody(0)`.
    pub(in crate::proxy) fn check(&mut self, bytes: &[u8]) -> CheckedBytes {
        let mut at = 0;
        loop {
            match self.position {
                Position::Ended => return CheckedBytes::EndOfBody(at),
                Position::Malformed => return CheckedBytes::MalformedAfter(at),
                Position::Data { remaining } => {
                    let available = bytes.len() - at;
                    let taken = usize::try_from(remaining).unwrap_or(usize::MAX).min(available);
                    at += taken;
                    let remaining = remaining - taken as u64;
                    if remaining > 0 {
                        self.position = Position::Data { remaining };
                        return CheckedBytes::WellFormed;
                    }
                    self.position = Position::DataCarriageReturn;
                }
                _ => {
                    let Some(byte) = bytes.get(at) else { return CheckedBytes::WellFormed };
                    self.position = self.next_position(*byte);
                    if !matches!(self.position, Position::Malformed) {
                        at += 1;
                    }
                }
            }
        }
    }

    /// The position after this byte, which is not part of a chunk's data.
    fn next_position(&mut self, byte: u8) -> Position {
        use Position as P;
        match (self.position, byte) {
            (P::Size, _) => digit(byte).map_or(P::Malformed, |size| P::SizeRest { size, digits: 1 }),
            (P::SizeRest { size, .. } | P::Extension { size }, b'\r') => P::SizeLineFeed { size },
            (P::SizeRest { size, .. } | P::BlankBeforeExtension { size }, b';') => P::Extension { size },
            (P::SizeRest { size, .. } | P::BlankBeforeExtension { size }, b' ' | b'\t') => {
                self.count_extension_byte(P::BlankBeforeExtension { size })
            }
            (P::SizeRest { size, digits }, _) => match digit(byte) {
                Some(value) if digits < MAX_SIZE_DIGITS => {
                    P::SizeRest { size: size * 16 + value, digits: digits + 1 }
                }
                _ => P::Malformed,
            },
            (P::Extension { size }, _) if is_text(byte) => self.count_extension_byte(P::Extension { size }),
            (P::SizeLineFeed { size: 0 }, b'\n') => P::Trailer,
            (P::SizeLineFeed { size }, b'\n') => P::Data { remaining: size },
            (P::DataCarriageReturn, b'\r') => P::DataLineFeed,
            (P::DataLineFeed, b'\n') => P::Size,
            (P::Trailer, b'\r') => P::LastLineFeed,
            (P::TrailerName, b':') => self.count_trailer_byte(P::TrailerValue),
            (P::Trailer | P::TrailerName, _) if is_token(byte) => self.count_trailer_byte(P::TrailerName),
            (P::TrailerValue, b'\r') => P::TrailerLineFeed,
            (P::TrailerValue, _) if is_text(byte) => self.count_trailer_byte(P::TrailerValue),
            (P::TrailerLineFeed, b'\n') => P::Trailer,
            (P::LastLineFeed, b'\n') => P::Ended,
            _ => P::Malformed,
        }
    }

    fn count_extension_byte(&mut self, next: Position) -> Position {
        self.extension_bytes += 1;
        if self.extension_bytes > MAX_EXTENSION_BYTES { Position::Malformed } else { next }
    }

    fn count_trailer_byte(&mut self, next: Position) -> Position {
        self.trailer_bytes += 1;
        if self.trailer_bytes > MAX_TRAILER_BYTES { Position::Malformed } else { next }
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// Whether a field value or a quoted string may contain this byte: no control character but a tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Whether a field name may contain this byte (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_bodies_end_where_they_say() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A\r\n0123456789\r\n000\r\n\r\n",
            "00005\r\n\r\n\r\n\r\r\n0\r\n\r\n",
            "5;a\r\nhello\r\n0;b=\"c;d\"\r\n\r\n",
            "5 \t; a=b\r\nhello\r\n0\r\n\r\n",
            "0\r\nX-Sum: 1\r\nY:\r\n\r\n",
        ] {
            for split in 0..=body.len() {
                let (first, second) = body.split_at(split);
                let mut framing = ChunkedBody::new();
                let expected = if second.is_empty() {
                    CheckedBytes::EndOfBody(first.len())
                } else {
                    CheckedBytes::WellFormed
                };
                assert_eq!(framing.check(first.as_bytes()), expected, "{body:?} {split}");
                if !second.is_empty() {
                    let pipelined = format!("{second}GET / HTTP/1.1");
                    assert_eq!(
                        framing.check(pipelined.as_bytes()),
                        CheckedBytes::EndOfBody(second.len()),
                        "{body:?} {split}"
                    );
                }
                assert_eq!(framing.check(b"x"), CheckedBytes::EndOfBody(0), "what follows is not checked");
            }
        }
    }

    #[test]
    fn malformed_bodies_are_well_formed_up_to_the_first_wrong_byte() {
        let many_digits = format!("{}5\r\n", "0".repeat(15));
        let long_extension = format!("5;{}", "a".repeat(MAX_EXTENSION_BYTES + 1));
        let long_trailer = format!("0\r\nX:{}", "a".repeat(MAX_TRAILER_BYTES - 1));
        for (well_formed, rest) in [
            ("", "\r\n\r\n"),
            ("", ";a\r\n\r\n"),
            ("", " \r\n\r\n"),
            ("", " 5\r\nhello\r\n"),
            ("", "\n"),
            ("", "-5\r\n"),
            ("", "+5\r\n"),
            ("0", "x5\r\n"),
            ("5 ", "\r\nhello\r\n"),
            ("5 ", "5\r\nhello\r\n"),
            ("5", "_\r\nhello\r\n"),
            ("5", "\nhello\r\n"),
            ("5\r", "hello\r\n"),
            ("5;a", "\nhello\r\n"),
            ("5;a\r", "\rhello\r\n"),
            ("5;a", "\0\r\nhello\r\n"),
            ("5\r\nhello", "\n0\r\n\r\n"),
            ("5\r\nhello", "0\r\n\r\n"),
            ("5\r\nhello\r", "0\r\n\r\n"),
            ("5\r\nhello\r\n", "\r\n"),
            ("5\r\nhello\r\n", ";last\r\n\r\n"),
            ("5\r\nhello\r\n0\r\n", "\n"),
            ("5\r\nhello\r\n0\r\n\r", "G"),
            ("0\r\n", " folded: 1\r\n"),
            ("0\r\n", ": 1\r\n"),
            ("0\r\nX", " : 1\r\n"),
            ("0\r\nX", "\r\n"),
            ("0\r\nX: a", "\0b\r\n"),
            ("0\r\nX: a", "\nY: b\r\n"),
            ("0\r\nX: a\r", "b\r\n"),
            (&many_digits[..15], &many_digits[15..]),
            (&long_extension[..long_extension.len() - 1], "a"),
            (&long_trailer[..long_trailer.len() - 1], "a"),
        ] {
            let mut framing = ChunkedBody::new();
            let bytes = format!("{well_formed}{rest}");
            let expected = CheckedBytes::MalformedAfter(well_formed.len());
            assert_eq!(framing.check(bytes.as_bytes()), expected, "{bytes:?}");
            assert_eq!(framing.check(b"0\r\n\r\n"), CheckedBytes::MalformedAfter(0), "it stays malformed");
            // Byte by byte as well.
            let mut framing = ChunkedBody::new();
            for byte in well_formed.bytes() {
                assert_eq!(framing.check(&[byte]), CheckedBytes::WellFormed, "{bytes:?}");
            }
            assert_eq!(framing.check(rest.as_bytes()), CheckedBytes::MalformedAfter(0), "{bytes:?}");
        }
    }
}
