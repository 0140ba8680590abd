//! Identifiers that look like Azure's, from a scrambled counter. They are unique, not secret.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use super::hash::splitmix64;

/// What SplitMix64 adds to its counter for each number: 2^64 divided by the golden ratio.
const SPLITMIX_INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;
const ALPHANUMERIC_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const HEX_DIGITS: &[u8] = b"0123456789abcdef";
/// Digits taken from one random number; 62^10 still fits into a `u64`.
const DIGITS_PER_RANDOM_NUMBER: u32 = 10;

/// Generates identifiers that do not repeat.
#[derive(Debug)]
pub(in crate::demo) struct IdGenerator(AtomicU64);

impl IdGenerator {
    /// A generator with a random seed, so that two runs give different identifiers.
    pub(in crate::demo) fn new() -> Self {
        Self(AtomicU64::new(RandomState::new().build_hasher().finish()))
    }

    /// `prefix` followed by `length` letters and digits.
    pub(in crate::demo) fn new_alphanumeric_id(&self, prefix: &str, length: usize) -> String {
        self.generate_id(prefix, length, ALPHANUMERIC_DIGITS)
    }

    /// `prefix` followed by `length` lower-case hexadecimal digits.
    pub(in crate::demo) fn new_hex_id(&self, prefix: &str, length: usize) -> String {
        self.generate_id(prefix, length, HEX_DIGITS)
    }

    /// A UUID of version 4.
    pub(in crate::demo) fn new_uuid_v4(&self) -> String {
        format!(
            "{}-{}-4{}-a{}-{}",
            self.new_hex_id("", 8),
            self.new_hex_id("", 4),
            self.new_hex_id("", 3),
            self.new_hex_id("", 3),
            self.new_hex_id("", 12)
        )
    }

    fn generate_id(&self, prefix: &str, length: usize, digits: &[u8]) -> String {
        let mut id = String::with_capacity(prefix.len() + length);
        id.push_str(prefix);
        let (mut random, mut digits_left) = (0, 0);
        for _ in 0..length {
            if digits_left == 0 {
                (random, digits_left) = (self.next_random(), DIGITS_PER_RANDOM_NUMBER);
            }
            let index = usize::try_from(random % digits.len() as u64).unwrap_or_default();
            id.push(char::from(digits.get(index).copied().unwrap_or(b'0')));
            random /= digits.len() as u64;
            digits_left -= 1;
        }
        id
    }

    fn next_random(&self) -> u64 {
        splitmix64(self.0.fetch_add(SPLITMIX_INCREMENT, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_requested_length_and_do_not_repeat() {
        let ids = IdGenerator::new();
        let (first, second) = (ids.new_hex_id("resp_", 48), ids.new_hex_id("resp_", 48));
        assert_eq!(first.len(), 53);
        assert_ne!(first, second);
    }
}
