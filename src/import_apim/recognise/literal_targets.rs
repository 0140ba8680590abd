//! The backends that an expression names in its texts.

use super::conditions::is_name;
use crate::import_apim::reading::Token;

/// The most of one expression.
const MAX_LITERALS: usize = 500;

/// The texts of an expression that are backends.
#[derive(Default)]
pub(in crate::import_apim) struct LiteralTargets {
    ids: Vec<String>,
    urls: Vec<String>,
}

impl LiteralTargets {
    pub(super) fn of(words: &[Token]) -> Self {
        let mut found = Self::default();
        for (index, word) in words.iter().enumerate() {
            let Token::Text(text) = word else { continue };
            let before = index.checked_sub(1).and_then(|before| words.get(before));
            let is_result = match before {
                Some(Token::Symbol('?' | ':')) => true,
                Some(Token::Symbol('(')) => index == 2,
                Some(Token::Word(word)) => word == "return",
                _ => false,
            };
            if is_url(text) && found.urls.len() < MAX_LITERALS {
                found.urls.push(text.clone());
            }
            if is_result && !is_name(words, index) && !is_state(text) && found.ids.len() < MAX_LITERALS {
                found.ids.push(text.clone());
            }
        }
        found
    }

    /// The ids of backends, or the URLs.
    pub(super) fn of_kind(&self, is_id: bool) -> &[String] {
        if is_id { &self.ids } else { &self.urls }
    }
}

/// Whether it is a URL, or a named value that may be one.
pub(super) fn is_url(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://") || text.starts_with("{{")
}

/// Whether a text is empty or a number, as counters and indices are.
pub(super) fn is_state(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit() || c == '-')
}
