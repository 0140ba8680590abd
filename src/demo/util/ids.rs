//! Identifiers that look like Azure's, from a scrambled counter. They are unique, not secret.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::unix_seconds_now;
use super::hash::splitmix64;

/// What SplitMix64 adds to its counter for each number: 2^64 divided by the golden ratio.
const SPLITMIX_INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;
const ALPHANUMERIC_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// What needs no encoding in a URL (RFC 3986, 2.3).
const UNRESERVED_CHARACTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
/// Characters after the prefix of an id of the mixed form. The shortest are still unique: 66^8 is above 10^14.
const MIXED_LENGTHS: [usize; 8] = [8, 9, 12, 22, 40, 64, 150, 240];
const HEX_DIGITS: &[u8] = b"0123456789abcdef";
/// Digits taken from one random number; 66^10 still fits into a `u64`.
const DIGITS_PER_RANDOM_NUMBER: u32 = 10;

/// What the ids of a response and of its items have in common: their first 16 digits.
#[derive(Debug, Clone)]
pub(in crate::demo) struct ChainKey(String);

/// What the ids of objects look like. Azure has changed it more than once, and documents none of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IdForm {
    /// As of late 2025: the ids of a response and of its items begin alike and tell their time.
    #[default]
    Chained,
    /// As of the middle of 2025: the ids of a response and of its items end alike.
    KeyAtEnd,
    /// As before that: hexadecimal digits that tell nothing.
    Plain,
    /// As never yet: from a few characters to many, with all that URLs leave as it is.
    Mixed,
}

/// Generates identifiers that do not repeat.
#[derive(Debug)]
pub(in crate::demo) struct IdGenerator {
    counter: AtomicU64,
    form: IdForm,
}

impl IdGenerator {
    /// A generator with a random seed, so that two runs give different identifiers.
    pub(in crate::demo) fn new(form: IdForm) -> Self {
        Self { counter: AtomicU64::new(RandomState::new().build_hasher().finish()), form }
    }

    /// `prefix` followed by `length` letters and digits.
    pub(in crate::demo) fn new_alphanumeric_id(&self, prefix: &str, length: usize) -> String {
        self.generate_id(prefix, length, ALPHANUMERIC_DIGITS)
    }

    /// `prefix` followed by `length` lower-case hexadecimal digits.
    pub(in crate::demo) fn new_hex_id(&self, prefix: &str, length: usize) -> String {
        self.generate_id(prefix, length, HEX_DIGITS)
    }

    pub(in crate::demo) fn new_chain_key(&self) -> ChainKey {
        ChainKey(self.new_hex_id("", 16))
    }

    /// The id of a response or an item; in the form of late 2025: `prefix`, the chain key, `00`, the time in 8 digits,
    /// 24 more digits.
    pub(in crate::demo) fn new_chained_id(&self, prefix: &str, chain_key: &ChainKey) -> String {
        let key = &chain_key.0;
        match self.form {
            IdForm::Chained => {
                format!("{prefix}{key}00{:08x}{}", unix_seconds_now(), self.new_hex_id("", 24))
            }
            IdForm::KeyAtEnd => format!("{}{key}", self.new_hex_id(prefix, 32)),
            IdForm::Plain => self.new_hex_id(prefix, 32),
            IdForm::Mixed => self.new_mixed_id(prefix),
        }
    }

    /// `prefix` followed by `length` digits; the first 8 of them are the time in the form of late 2025.
    pub(in crate::demo) fn new_timed_id(&self, prefix: &str, length: usize) -> String {
        match self.form {
            IdForm::Chained => {
                format!("{prefix}{:08x}{}", unix_seconds_now(), self.new_hex_id("", length.saturating_sub(8)))
            }
            IdForm::KeyAtEnd | IdForm::Plain => self.new_hex_id(prefix, length),
            IdForm::Mixed => self.new_mixed_id(prefix),
        }
    }

    /// The id of an object that tells no time in any form: `prefix` followed by `length` hexadecimal digits.
    pub(in crate::demo) fn new_untimed_id(&self, prefix: &str, length: usize) -> String {
        if self.form == IdForm::Mixed { self.new_mixed_id(prefix) } else { self.new_hex_id(prefix, length) }
    }

    fn new_mixed_id(&self, prefix: &str) -> String {
        let index = usize::try_from(self.next_random() % MIXED_LENGTHS.len() as u64).unwrap_or_default();
        let length = MIXED_LENGTHS.get(index).copied().unwrap_or_default();
        self.generate_id(prefix, length, UNRESERVED_CHARACTERS)
    }

    /// Bytes for keys and initialization vectors.
    pub(in crate::demo) fn new_bytes(&self) -> [u8; 16] {
        let (high, low) = (self.next_random(), self.next_random());
        ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
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
        splitmix64(self.counter.fetch_add(SPLITMIX_INCREMENT, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_have_the_requested_length_and_do_not_repeat() {
        let ids = IdGenerator::new(IdForm::Chained);
        let (first, second) = (ids.new_hex_id("resp_", 48), ids.new_hex_id("resp_", 48));
        assert_eq!(first.len(), 53);
        assert_ne!(first, second);
        assert_eq!(ids.new_timed_id("cntr_", 48).len(), 53);
    }

    #[test]
    fn a_response_and_its_items_share_a_chain_key_and_tell_their_time() {
        let ids = IdGenerator::new(IdForm::Chained);
        let key = ids.new_chain_key();
        let (response, item) = (ids.new_chained_id("resp_", &key), ids.new_chained_id("msg_", &key));
        assert_eq!((response.len(), item.len()), (55, 54));
        assert_eq!(response[5..23], item[4..22]);
        let seconds = u64::from_str_radix(&response[23..31], 16).unwrap();
        assert!(unix_seconds_now().abs_diff(seconds) < 60, "{response}");
        assert_ne!(response[31..], item[30..]);
    }

    #[test]
    fn other_forms_tell_no_time_and_do_not_repeat() {
        for form in [IdForm::KeyAtEnd, IdForm::Plain, IdForm::Mixed] {
            let ids = IdGenerator::new(form);
            let key = ids.new_chain_key();
            let made: HashSet<String> = (0..1_000)
                .flat_map(|_| {
                    [
                        ids.new_chained_id("resp_", &key),
                        ids.new_timed_id("conv_", 48),
                        ids.new_untimed_id("f", 32),
                    ]
                })
                .collect();
            assert_eq!(made.len(), 3_000, "{form:?}");
            let ends_with_key = |id: &&String| id.ends_with(key.0.as_str());
            let expected = if form == IdForm::KeyAtEnd { 1_000 } else { 0 };
            assert_eq!(made.iter().filter(ends_with_key).count(), expected, "{form:?}");
            let is_longest = made.iter().any(|id| id.len() > 240);
            assert_eq!(is_longest, form == IdForm::Mixed);
        }
    }
}
