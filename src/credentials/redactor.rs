//! Removes a credential from the text of an error response. Azure and proxies in front of compatible servers
//! quote the key or token that they refuse: whole, masked in the middle, or cut.
//!
//! What is removed is replaced by as many bytes, so that the response keeps its length.

use bytes::Bytes;
use memchr::{memchr_iter, memmem};

use crate::config::Secret;

/// Shorter secrets are left alone: they would be found in ordinary text.
const MIN_SECRET_BYTES: usize = 8;
/// So many first bytes of the secret are removed wherever they are.
const LONG_PREFIX_BYTES: usize = 16;
/// So few first or last bytes are removed beside a mask, as in `abc***yz0`.
const SHORT_PART_BYTES: usize = 3;
/// Longest word that is held back until it is complete, so that its mask and what follows it are seen together.
const MAX_WORD_BYTES: usize = 8 * 1024;
/// What stands for a part of a key in error messages, and how many of them in a row do.
const MASKS: [(&[u8], usize); 7] =
    [(b"*", 3), (b".", 3), (b"x", 3), (b"X", 3), (b"#", 3), ("•".as_bytes(), 3), ("…".as_bytes(), 1)];
const PLACEHOLDER: &[u8] = b"[redacted]";

/// Removes one credential from texts. It has no `Debug`, which would show the credential.
pub struct CredentialRedactor {
    secret: Secret,
    /// The end of what has arrived, which may be the beginning of the secret.
    held_back: Vec<u8>,
}

impl CredentialRedactor {
    /// A redactor of this secret; `None` if it is too short to be recognized.
    pub fn new(secret: &Secret) -> Option<Self> {
        let is_recognizable = secret.expose_secret().len() >= MIN_SECRET_BYTES;
        is_recognizable.then(|| Self { secret: secret.clone(), held_back: Vec::new() })
    }

    fn secret(&self) -> &[u8] {
        self.secret.expose_secret().as_bytes()
    }

    /// The text without the secret; `None` if the secret is not in it.
    pub fn redact_if_found(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = text.to_vec();
        self.redact_in_place(&mut bytes).then_some(bytes)
    }

    /// Removes the secret from the next part of a text. Unless this part is the last, its last word, which
    /// may be the beginning of the secret, is held back and comes with the next part.
    pub fn redact_part(&mut self, part: &[u8], is_end: bool) -> Bytes {
        let mut bytes = std::mem::take(&mut self.held_back);
        bytes.extend_from_slice(part);
        self.redact_whole(&mut bytes);
        if !is_end {
            let held_back = undecided_length(&bytes, self.secret()).max(last_word_length(&bytes));
            self.held_back = bytes.split_off(bytes.len() - held_back);
        }
        self.redact_masked_and_cut(&mut bytes);
        Bytes::from(bytes)
    }

    /// Replaces the secret in this text; returns whether it was there.
    fn redact_in_place(&self, text: &mut [u8]) -> bool {
        let is_whole = self.redact_whole(text);
        self.redact_masked_and_cut(text) || is_whole
    }

    /// Replaces the secret where it is whole.
    fn redact_whole(&self, text: &mut [u8]) -> bool {
        let secret = self.secret();
        let mut is_found = false;
        for at in starts(text, secret) {
            let prefix = spelled_prefix(text.get(at..).unwrap_or_default(), secret);
            if prefix.secret_bytes == secret.len() {
                is_found |= overwrite(text, at, at + prefix.text_bytes);
            }
        }
        is_found
    }

    /// Replaces what is left of the secret where a mask or an end cuts it.
    fn redact_masked_and_cut(&self, text: &mut [u8]) -> bool {
        let secret = self.secret();
        let mut is_found = false;
        for at in starts(text, secret) {
            let rest = text.get(at..).unwrap_or_default();
            let prefix = spelled_prefix(rest, secret);
            let after_prefix = rest.get(prefix.text_bytes..).unwrap_or_default();
            let mask = mask_length(after_prefix);
            let is_masked = mask > 0 && prefix.secret_bytes >= SHORT_PART_BYTES;
            if is_masked || prefix.secret_bytes >= LONG_PREFIX_BYTES {
                let suffix = suffix_length(after_prefix.get(mask..).unwrap_or_default(), secret);
                is_found |= overwrite(text, at, at + prefix.text_bytes + mask + suffix);
            }
        }
        let last = secret.get(secret.len() - SHORT_PART_BYTES..).unwrap_or_default();
        for at in memmem::find_iter(text, last).collect::<Vec<_>>() {
            let before = text.get(..at + SHORT_PART_BYTES).unwrap_or_default();
            let start = before.len() - common_suffix_length(before, secret);
            if ends_with_mask(before.get(..start).unwrap_or_default()) {
                is_found |= overwrite(text, start, at + SHORT_PART_BYTES);
            }
        }
        is_found
    }
}

/// A beginning of the secret in a text, which may escape some of its bytes.
struct SpelledPrefix {
    /// So many bytes of the secret are spelled
    secret_bytes: usize,
    /// with so many bytes of text.
    text_bytes: usize,
}

/// The longest beginning of the secret that this text begins with.
fn spelled_prefix(text: &[u8], secret: &[u8]) -> SpelledPrefix {
    let mut prefix = SpelledPrefix { secret_bytes: 0, text_bytes: 0 };
    for byte in secret {
        let length = spelling_length(text.get(prefix.text_bytes..).unwrap_or_default(), *byte);
        if length == 0 {
            break;
        }
        prefix.secret_bytes += 1;
        prefix.text_bytes += length;
    }
    prefix
}

/// The length of what spells this byte at the beginning of the text: the byte itself, or how JSON or a URL
/// may escape it. 0 if it is something else.
fn spelling_length(text: &[u8], byte: u8) -> usize {
    let is_hex = |digits: [u8; 2]| {
        std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok()) == Some(byte)
    };
    match *text {
        [first, ..] if first == byte => 1,
        [b'\\', second, ..] if second == byte => 2,
        [b'\\', b'u', b'0', b'0', high, low, ..] if is_hex([high, low]) => 6,
        [b'%', high, low, ..] if is_hex([high, low]) => 3,
        _ => 0,
    }
}

/// Where the first byte of the secret occurs.
fn starts(text: &[u8], secret: &[u8]) -> Vec<usize> {
    secret.first().map_or_else(Vec::new, |first| memchr_iter(*first, text).collect())
}

/// Overwrites a part of the text with the placeholder, cut or filled up to the same length.
fn overwrite(text: &mut [u8], start: usize, end: usize) -> bool {
    let Some(part) = text.get_mut(start..end) else { return false };
    let placeholder = if part.len() < PLACEHOLDER.len() { &b""[..] } else { PLACEHOLDER };
    for (index, byte) in part.iter_mut().enumerate() {
        *byte = placeholder.get(index).copied().unwrap_or(b'*');
    }
    true
}

fn common_suffix_length(text: &[u8], secret: &[u8]) -> usize {
    text.iter().rev().zip(secret.iter().rev()).take_while(|(a, b)| a == b).count()
}

/// The length of the mask that this text begins with; 0 if there is none.
fn mask_length(text: &[u8]) -> usize {
    let lengths = MASKS.iter().map(|(mask, min_count)| {
        let count = text.chunks(mask.len()).take_while(|chunk| *chunk == *mask).count();
        if count >= *min_count { count * mask.len() } else { 0 }
    });
    lengths.max().unwrap_or(0)
}

fn ends_with_mask(text: &[u8]) -> bool {
    MASKS.iter().any(|(mask, min_count)| {
        text.rchunks(mask.len()).take_while(|chunk| *chunk == *mask).take(*min_count).count() == *min_count
    })
}

/// The length of the end of the secret that this text begins with; 0 if it is shorter than
/// [`SHORT_PART_BYTES`].
fn suffix_length(text: &[u8], secret: &[u8]) -> usize {
    let lengths = (SHORT_PART_BYTES..secret.len()).rev();
    let mut suffixes = lengths.filter_map(|length| secret.get(secret.len() - length..));
    suffixes.find(|suffix| text.starts_with(suffix)).map_or(0, <[u8]>::len)
}

/// The length of the last word of the text, to which more may be added; 0 if it is longer than
/// [`MAX_WORD_BYTES`].
fn last_word_length(text: &[u8]) -> usize {
    let is_boundary = |byte: &&u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'');
    let length = text.iter().rev().take(MAX_WORD_BYTES + 1).take_while(|byte| !is_boundary(byte)).count();
    if length > MAX_WORD_BYTES { 0 } else { length }
}

/// The length of the longest end of the text that is the beginning of the secret.
fn undecided_length(text: &[u8], secret: &[u8]) -> usize {
    let longest = text.len().min(secret.len() - 1);
    let mut lengths = (1..=longest).rev();
    lengths.find(|length| text.get(text.len() - length..) == secret.get(..*length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "sk-proj-Ab+c/0123456789xyz";

    fn redactor() -> CredentialRedactor {
        CredentialRedactor::new(&Secret::new(KEY)).unwrap()
    }

    fn redacted(text: &str) -> String {
        String::from_utf8(redactor().redact_part(text.as_bytes(), true).to_vec()).unwrap()
    }

    #[test]
    fn a_credential_is_removed_however_it_is_spelled_masked_or_cut() {
        let long = |length: usize| format!("[redacted]{}", "*".repeat(length - PLACEHOLDER.len()));
        let whole = long(KEY.len());
        for (text, expected) in [
            (format!("Incorrect API key provided: {KEY}."), format!("Incorrect API key provided: {whole}.")),
            (format!("{KEY}{KEY}"), format!("{whole}{whole}")),
            (format!("'Bearer {KEY}' is wrong"), format!("'Bearer {whole}' is wrong")),
            (KEY.replace('/', "\\/"), long(KEY.len() + 1)),
            (KEY.replace('+', "\\u002B").replace('/', "\\u002f"), long(KEY.len() + 10)),
            ("k=sk%2Dproj%2DAb%2Bc%2F0123456789xyz&".to_owned(), format!("k={}&", long(KEY.len() + 8))),
            ("key 'sk-***' is".to_owned(), "key '******' is".to_owned()),
            ("key 'sk-pro…' is".to_owned(), "key '*********' is".to_owned()),
            ("key 'sk-pr...xyz' is".to_owned(), format!("key '{}' is", long(11))),
            ("key sk-proj-********************9xyz.".to_owned(), format!("key {}.", long(32))),
            ("key ****9xyz.".to_owned(), "key ********.".to_owned()),
            ("key xxxxxxyz.".to_owned(), "key xxxxx***.".to_owned()),
            ("key sk-proj-Ab+c/0123 is cut".to_owned(), format!("key {} is cut", long(17))),
        ] {
            assert_eq!(redacted(&text), expected);
        }
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for text in [
            "",
            "sk-",
            "sk-proj-",
            "use a key like sk-yours, which ends in xyz",
            "sk-. xyz",
            "the deployment does not exist...",
            "{\"error\":{\"code\":\"429\",\"message\":\"retry after 3 s\"}}",
        ] {
            assert_eq!(redactor().redact_if_found(text.as_bytes()), None, "{text:?}");
        }
        assert!(CredentialRedactor::new(&Secret::new("short")).is_none());
    }

    #[test]
    fn a_credential_is_removed_wherever_the_parts_of_a_response_are_divided() {
        let text = format!("{{\"message\":\"sk sk-proj wrong {KEY}, 'sk-***xyz' sk-p\"}}");
        let expected = redacted(&text);
        for first in 0..text.len() {
            for second in (first..text.len()).step_by(5) {
                let parts = [&text[..first], &text[first..second], &text[second..]];
                let mut redactor = redactor();
                let mut output = Vec::new();
                for (index, part) in parts.into_iter().enumerate() {
                    output.extend_from_slice(&redactor.redact_part(part.as_bytes(), index == 2));
                }
                assert_eq!(output, expected.as_bytes());
            }
        }
    }
}
