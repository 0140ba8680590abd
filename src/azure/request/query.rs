//! The query of a request: credentials taken out, `api-version`, `deployment` and `model`
//! understood, everything else kept as it was written and in its order.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::path::BadTarget;

/// A credential that came in a query. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct QueryCredential(String);

impl QueryCredential {
    /// The key as the client meant it, percent-decoded. For comparing only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for QueryCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueryCredential(..)")
    }
}

/// What a key of the query means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::azure) enum Key {
    ApiVersion,
    Deployment,
    Model,
    Other,
}

#[derive(Clone, Debug)]
struct Pair {
    key: Key,
    /// Within `Query::raw`.
    whole: Range<usize>,
    /// Within `Query::raw`; empty at the end of `whole` when there is no `=`.
    value: Range<usize>,
}

/// A query without its credentials.
#[derive(Clone, Debug, Default)]
pub struct Query {
    raw: String,
    pairs: Vec<Pair>,
    credentials: Vec<QueryCredential>,
}

impl Query {
    /// Reads what follows the `?`; characters were checked already.
    pub(in crate::azure) fn parse(text: &str) -> Result<Self, BadTarget> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(key)?;
            let decoded = decode(value)?;
            let key_is = |word: &str| name.eq_ignore_ascii_case(word);
            if key_is("api-key") || key_is("subscription-key") {
                if !decoded.is_empty() {
                    query.credentials.push(QueryCredential(decoded.into_owned()));
                }
                continue;
            }
            let known = match () {
                () if key_is("api-version") => Key::ApiVersion,
                () if key_is("deployment") => Key::Deployment,
                () if key_is("model") => Key::Model,
                () => Key::Other,
            };
            if let Some(word) = known.word()
                && query.pairs.iter().any(|pair| pair.key == known)
            {
                return Err(BadTarget::DuplicateKey(word));
            }
            query.push(known, pair, pair.len() - value.len());
        }
        Ok(query)
    }

    fn push(&mut self, key: Key, pair: &str, value_at: usize) {
        if self.raw.capacity() == 0 {
            self.raw.reserve(pair.len().max(64));
        }
        let start = self.raw.len();
        self.raw.push_str(pair);
        let end = self.raw.len();
        self.pairs.push(Pair { key, whole: start..end, value: start + value_at..end });
    }

    /// The credentials of `api-key` and `subscription-key`, in order, empty ones left out.
    pub fn credentials(&self) -> &[QueryCredential] {
        &self.credentials
    }

    /// The decoded value of a key we know.
    pub(in crate::azure) fn value(&self, key: Key) -> Option<Cow<'_, str>> {
        let pair = self.pairs.iter().find(|pair| pair.key == key)?;
        decode(self.raw.get(pair.value.clone())?).ok()
    }

    /// Every pair to send, as key and raw `key=value` text.
    pub(in crate::azure) fn pairs(&self) -> impl Iterator<Item = (Key, &str)> {
        self.pairs.iter().filter_map(|pair| Some((pair.key, self.raw.get(pair.whole.clone())?)))
    }

    pub(in crate::azure) fn len(&self) -> usize {
        self.raw.len() + self.pairs.len()
    }
}

impl Key {
    fn word(self) -> Option<&'static str> {
        match self {
            Self::ApiVersion => Some("api-version"),
            Self::Deployment => Some("deployment"),
            Self::Model => Some("model"),
            Self::Other => None,
        }
    }
}

/// Percent-decodes a key or a value of a query. A plus sign stays one: keys contain them.
///
/// # Errors
/// A percent sign without two hex digits, and NUL.
fn decode(text: &str) -> Result<Cow<'_, str>, BadTarget> {
    if memchr::memchr(b'%', text.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (decoded, after) = super::path::escape(rest)?;
            rest = after;
            out.push(decoded);
        } else {
            out.push(byte);
        }
    }
    if out.contains(&0) {
        return Err(BadTarget::Encoded);
    }
    // Values in another character set are forwarded as they are, but never compared.
    Ok(match String::from_utf8(out) {
        Ok(text) => Cow::Owned(text),
        Err(other) => Cow::Owned(String::from_utf8_lossy(other.as_bytes()).into_owned()),
    })
}
