//! Base64, percent-encoding, and SHA-1 (for the WebSocket handshake only).

const BASE64_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard Base64 with padding (RFC 4648 section 4).
pub(in crate::demo) fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = 0u32;
        for index in 0..3 {
            bits = (bits << 8) | u32::from(group.get(index).copied().unwrap_or(0));
        }
        for position in 0..4usize {
            if position <= group.len() {
                let digit = (bits >> (18 - 6 * position)) & 63;
                text.push(char::from(BASE64_DIGITS.get(digit as usize).copied().unwrap_or(b'A')));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// SHA-1, which only `Sec-WebSocket-Accept` needs (RFC 6455 section 4.2.2).
pub(in crate::demo) fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize(padded.len().next_multiple_of(64), 0);
    if padded.len() - message.len() < 9 {
        padded.resize(padded.len() + 64, 0);
    }
    // The last 8 bytes of the padding are the length of the message in bits.
    padded.truncate(padded.len() - 8);
    padded.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());

    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks_exact(64) {
        let mut words: Vec<u32> = block
            .chunks_exact(4)
            .map(|quad| quad.iter().fold(0, |word, byte| (word << 8) | u32::from(*byte)))
            .collect();
        // The 16 words of the block are extended to 80. `words` grows by one each time, so that the
        // indices are always in range.
        for index in 16..80 {
            let word = words[index - 3] ^ words[index - 8] ^ words[index - 14] ^ words[index - 16];
            words.push(word.rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (round, word) in words.iter().enumerate() {
            let (mix, constant) = match round {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next =
                a.rotate_left(5).wrapping_add(mix).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut digest = [0; 20];
    for (target, byte) in digest.iter_mut().zip(state.iter().flat_map(|word| word.to_be_bytes())) {
        *target = byte;
    }
    digest
}

/// Decodes percent-encoding, and in queries `+` as a space. Invalid escapes are left as they are.
pub(in crate::demo) fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut remaining = text.bytes();
    while let Some(byte) = remaining.next() {
        let mut lookahead = remaining.clone();
        let digits = (lookahead.next().and_then(hex_digit_value), lookahead.next().and_then(hex_digit_value));
        match (byte, digits) {
            (b'%', (Some(high), Some(low))) => {
                bytes.push(high * 16 + low);
                remaining = lookahead;
            }
            (b'+', _) if plus_is_space => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_digit_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_match_their_published_examples() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in cases {
            assert_eq!(base64_encode(plain.as_bytes()), encoded);
        }
        // RFC 6455 section 1.3.
        let accept = sha1(b"dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        assert_eq!(base64_encode(&accept), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for length in [0, 55, 56, 63, 64, 65, 119, 120] {
            assert_eq!(sha1(&vec![b'a'; length]).len(), 20, "{length}");
        }
        assert_eq!(base64_encode(&sha1(b"abc")), "qZk+NkcGgWq6PiVxeFDCbJzQ2J0=");
    }

    #[test]
    fn percent_decoding_leaves_invalid_escapes_alone() {
        for (encoded, decoded) in
            [("a%20b", "a b"), ("100%", "100%"), ("%zz", "%zz"), ("%C3%A9", "é"), ("a+b", "a b")]
        {
            assert_eq!(percent_decode(encoded, true), decoded);
        }
    }
}
