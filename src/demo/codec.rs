//! Small encodings, and identifiers that look like Azure's: Base64, SHA-1 (for the WebSocket handshake
//! only), a hash, and a counter that is scrambled into ids. Nothing here is meant to be secret.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const ALNUM: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const HEX: &[u8] = b"0123456789abcdef";
const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A source of fresh identifiers.
#[derive(Debug)]
pub(super) struct Ids(AtomicU64);

impl Ids {
    /// A source that differs from run to run.
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(RandomState::new().build_hasher().finish()))
    }

    /// `prefix` and `length` letters and digits.
    pub(super) fn alnum(&self, prefix: &str, length: usize) -> String {
        self.draw(prefix, length, ALNUM)
    }

    /// `prefix` and `length` lower-case hex digits.
    pub(super) fn hex(&self, prefix: &str, length: usize) -> String {
        self.draw(prefix, length, HEX)
    }

    /// A UUID of version 4.
    pub(super) fn uuid(&self) -> String {
        format!(
            "{}-{}-4{}-a{}-{}",
            self.hex("", 8),
            self.hex("", 4),
            self.hex("", 3),
            self.hex("", 3),
            self.hex("", 12)
        )
    }

    fn draw(&self, prefix: &str, length: usize, alphabet: &[u8]) -> String {
        let mut id = String::with_capacity(prefix.len() + length);
        id.push_str(prefix);
        let (mut pool, mut left) = (0, 0);
        for _ in 0..length {
            if left == 0 {
                (pool, left) = (self.next(), 10);
            }
            let pick = usize::try_from(pool % alphabet.len() as u64).unwrap_or_default();
            id.push(char::from(alphabet.get(pick).copied().unwrap_or(b'0')));
            pool /= alphabet.len() as u64;
            left -= 1;
        }
        id
    }

    fn next(&self) -> u64 {
        scramble(self.0.fetch_add(GOLDEN, Ordering::Relaxed))
    }
}

/// The finishing step of SplitMix64: spreads neighbouring numbers over the whole range.
pub(super) fn scramble(seed: u64) -> u64 {
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// FNV-1a, carried on from `seed`; the same in every run, so that answers are reproducible.
pub(super) fn fingerprint(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Standard Base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = 0u32;
        for at in 0..3 {
            word = (word << 8) | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for at in 0..4usize {
            if at <= group.len() {
                let index = (word >> (18 - 6 * at)) & 63;
                text.push(char::from(BASE64.get(index as usize).copied().unwrap_or(b'A')));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// SHA-1, needed for `Sec-WebSocket-Accept` (RFC 6455 section 4.2.2) and for nothing else.
pub(super) fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize(padded.len().next_multiple_of(64), 0);
    if padded.len() - message.len() < 9 {
        padded.resize(padded.len() + 64, 0);
    }
    let tail = padded.len() - 8;
    padded.truncate(tail);
    padded.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());

    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks_exact(64) {
        let mut words: Vec<u32> = block
            .chunks_exact(4)
            .map(|quad| quad.iter().fold(0, |word, byte| (word << 8) | u32::from(*byte)))
            .collect();
        // 80 words from the 16 of the block: indices below are bounded by the loop itself.
        for at in 16..80 {
            let word = words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16];
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
    for (place, byte) in digest.iter_mut().zip(state.iter().flat_map(|word| word.to_be_bytes())) {
        *place = byte;
    }
    digest
}

/// Undoes percent-encoding (and `+`, in queries); what is not valid stays as it is.
pub(super) fn percent_decoded(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let pair = (ahead.next().and_then(hex_value), ahead.next().and_then(hex_value));
        match (byte, pair) {
            (b'%', (Some(high), Some(low))) => {
                bytes.push(high * 16 + low);
                rest = ahead;
            }
            (b'+', _) if plus_is_space => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_match_their_published_examples() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in cases {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        // RFC 6455 section 1.3.
        let accept = sha1(b"dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        assert_eq!(base64(&accept), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for length in [0, 55, 56, 63, 64, 65, 119, 120] {
            assert_eq!(sha1(&vec![b'a'; length]).len(), 20, "{length}");
        }
        assert_eq!(base64(&sha1(b"abc")), "qZk+NkcGgWq6PiVxeFDCbJzQ2J0=");
    }

    #[test]
    fn percent_decoding_leaves_broken_escapes_alone() {
        for (from, to) in
            [("a%20b", "a b"), ("100%", "100%"), ("%zz", "%zz"), ("%C3%A9", "é"), ("a+b", "a b")]
        {
            assert_eq!(percent_decoded(from, true), to);
        }
    }

    #[test]
    fn ids_have_their_shape_and_do_not_repeat() {
        let ids = Ids::new();
        let (one, two) = (ids.hex("resp_", 48), ids.hex("resp_", 48));
        assert_eq!(one.len(), 53);
        assert_ne!(one, two);
    }
}
