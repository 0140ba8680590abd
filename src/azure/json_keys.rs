//! Sets of keys, which are compared without case. Other keys are told apart by their length and letters, so that most
//! cost no comparison.

/// Some keys, in the order of their indices.
#[derive(Debug)]
pub(super) struct KeySet<const N: usize> {
    names: [&'static str; N],
    filter: KeyFilter,
}

impl<const N: usize> KeySet<N> {
    /// The set of these keys, each shorter than 32 bytes.
    pub(super) const fn new(names: [&'static str; N]) -> Self {
        let (mut filter, mut index) = (KeyFilter::NOTHING, 0);
        while index < N {
            filter = filter.with_key(names[index].as_bytes(), 0);
            index += 1;
        }
        Self { names, filter }
    }

    /// The index of a key.
    #[inline]
    pub(super) fn index_of(&self, key: &[u8]) -> Option<usize> {
        if !self.filter.accepts(key) {
            return None;
        }
        self.names.iter().position(|name| name.as_bytes().eq_ignore_ascii_case(key))
    }

    /// The keys.
    pub(super) const fn names(&self) -> &[&'static str; N] {
        &self.names
    }
}

/// Bits of the lengths, first and last letters of some keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyFilter {
    length_bits: u32,
    first_letter_bits: u32,
    last_letter_bits: u32,
}

impl KeyFilter {
    /// Accepts no key.
    pub(super) const NOTHING: Self = Self { length_bits: 0, first_letter_bits: 0, last_letter_bits: 0 };

    /// Accepts the key that begins at `start` of `bytes` as well.
    pub(super) const fn with_key(mut self, bytes: &[u8], start: usize) -> Self {
        self.length_bits |= 1 << (bytes.len() - start);
        self.first_letter_bits |= letter_bit(bytes[start]);
        self.last_letter_bits |= letter_bit(bytes[bytes.len() - 1]);
        self
    }

    /// Whether this can be one of the keys.
    #[inline]
    pub(super) fn accepts(&self, key: &[u8]) -> bool {
        let ([first, .., last] | [first @ last]) = key else { return false };
        key.len() < 32
            && self.length_bits >> key.len() & 1 == 1
            && self.last_letter_bits & letter_bit(*last) != 0
            && self.first_letter_bits & letter_bit(*first) != 0
    }
}

/// The same bit for both cases of a letter.
const fn letter_bit(byte: u8) -> u32 {
    1 << (byte & 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_any_case() {
        const KEYS: KeySet<3> = KeySet::new(["model", "stream", "a"]);
        for (key, index) in [
            ("model", Some(0)),
            ("MODEL", Some(0)),
            ("Stream", Some(1)),
            ("A", Some(2)),
            ("", None),
            ("modal", None),
            ("steam", None),
            ("models", None),
            ("mode\u{c}", None),
            ("m_this_key_is_longer_than_any_of_the_keys_l", None),
        ] {
            assert_eq!(KEYS.index_of(key.as_bytes()), index, "{key}");
        }
    }
}
