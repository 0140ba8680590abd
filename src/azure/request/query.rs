//! Parses the query string: removes credentials and finds `api-version`, `deployment`, `model` and the cursors of
//! lists.
//! Everything else keeps its spelling and order.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::percent::decode_hex_pair;
use super::target_error::TargetError;

/// A credential from the query. Its `Debug` output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct QueryCredential(String);

impl QueryCredential {
    /// The credential, percent-decoded. For comparison only; never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for QueryCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueryCredential(..)")
    }
}

/// The keys of a query that matter for routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::azure) enum QueryKeyKind {
    ApiVersion,
    Deployment,
    Model,
    /// `after` or `before`: the object at which a page of a list begins or ends.
    Cursor,
    Other,
}

#[derive(Clone, Debug)]
struct QueryPair {
    key: QueryKeyKind,
    /// The whole `key=value`, within `QueryString::forwarded_pairs_text`.
    pair_range: Range<usize>,
    /// The value, within `QueryString::forwarded_pairs_text`. Without a `=` it is empty, at the end of
    /// `pair_range`.
    value_range: Range<usize>,
}

/// A parsed query string. Credentials are kept apart from the pairs that are forwarded.
#[derive(Clone, Debug, Default)]
pub struct QueryString {
    forwarded_pairs_text: String,
    pairs: Vec<QueryPair>,
    credentials: Vec<QueryCredential>,
    /// A pair with a secret that is no credential here was left out.
    has_dropped_secret: bool,
}

impl QueryString {
    /// Parses what follows the `?`. The caller has checked the characters.
    pub(in crate::azure) fn parse(text: &str) -> Result<Self, TargetError> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded_key = percent_decode(key)?;
            let decoded_value = percent_decode(value)?;
            let key_is = |name: &str| decoded_key.eq_ignore_ascii_case(name);
            // Credentials are taken out here, so that they reach neither a backend nor a log.
            if key_is("api-key") || key_is("subscription-key") {
                if !decoded_value.is_empty() {
                    query.credentials.push(QueryCredential(decoded_value.into_owned()));
                }
                continue;
            }
            let key_kind = match () {
                () if key_is("api-version") => QueryKeyKind::ApiVersion,
                () if key_is("deployment") => QueryKeyKind::Deployment,
                () if key_is("model") => QueryKeyKind::Model,
                () if key_is("after") || key_is("before") => QueryKeyKind::Cursor,
                () if is_secret_key(&decoded_key) => {
                    query.has_dropped_secret = true;
                    continue;
                }
                () => QueryKeyKind::Other,
            };
            // Of two values, another server could use the other one.
            if let Some(unique_name) = key_kind.unique_key_name()
                && query.pairs.iter().any(|pair| pair.key == key_kind)
            {
                return Err(TargetError::DuplicateQueryKey(unique_name));
            }
            query.push_pair(key_kind, pair, pair.len() - value.len());
        }
        Ok(query)
    }

    fn push_pair(&mut self, key: QueryKeyKind, pair: &str, value_offset: usize) {
        if self.forwarded_pairs_text.capacity() == 0 {
            self.forwarded_pairs_text.reserve(pair.len().max(64));
        }
        let start = self.forwarded_pairs_text.len();
        self.forwarded_pairs_text.push_str(pair);
        let end = self.forwarded_pairs_text.len();
        self.pairs.push(QueryPair { key, pair_range: start..end, value_range: start + value_offset..end });
    }

    /// The values of `api-key` and `subscription-key`, in order, without empty ones.
    pub fn credentials(&self) -> &[QueryCredential] {
        &self.credentials
    }

    /// Whether it came with a secret, which must not stay in memory.
    pub(in crate::azure) fn has_secret(&self) -> bool {
        self.has_dropped_secret || !self.credentials.is_empty()
    }

    /// The percent-decoded value of a key.
    pub(in crate::azure) fn value(&self, key: QueryKeyKind) -> Option<Cow<'_, str>> {
        let pair = self.pairs.iter().find(|pair| pair.key == key)?;
        percent_decode(self.forwarded_pairs_text.get(pair.value_range.clone())?).ok()
    }

    /// The percent-decoded values of `after` and `before`.
    pub(in crate::azure) fn cursors(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let cursors = self.pairs.iter().filter(|pair| pair.key == QueryKeyKind::Cursor);
        cursors
            .filter_map(|pair| percent_decode(self.forwarded_pairs_text.get(pair.value_range.clone())?).ok())
    }

    /// The pairs to forward: the key and the raw `key=value` text.
    pub(in crate::azure) fn forwarded_pairs(&self) -> impl Iterator<Item = (QueryKeyKind, &str)> {
        self.pairs
            .iter()
            .filter_map(|pair| Some((pair.key, self.forwarded_pairs_text.get(pair.pair_range.clone())?)))
    }

    /// The length of all pairs with their separators.
    pub(in crate::azure) fn encoded_len(&self) -> usize {
        self.forwarded_pairs_text.len() + self.pairs.len()
    }
}

impl QueryKeyKind {
    /// The name of a key that may appear only once.
    fn unique_key_name(self) -> Option<&'static str> {
        match self {
            Self::ApiVersion => Some("api-version"),
            Self::Deployment => Some("deployment"),
            Self::Model => Some("model"),
            Self::Cursor | Self::Other => None,
        }
    }
}

/// Whether a key of a query names a secret in one of the usual spellings: the key of an API, the `code` of
/// an Azure Function, the `sig` of a shared access signature, a token or a password. None of them is a
/// parameter of Azure OpenAI.
fn is_secret_key(key: &str) -> bool {
    const NAMES: [&str; 6] = ["key", "code", "sig", "auth", "authorization", "token"];
    const ENDINGS: [&str; 15] = [
        "apikey",
        "subscriptionkey",
        "functionskey",
        "accesskey",
        "masterkey",
        "accesstoken",
        "authtoken",
        "apitoken",
        "bearertoken",
        "sessiontoken",
        "securitytoken",
        "idtoken",
        "secret",
        "password",
        "signature",
    ];
    // `api_key`, `x-api-key`, `API.Key` and `key[]` are the same.
    let letters = key.chars().filter(char::is_ascii_alphanumeric);
    let letters: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    NAMES.contains(&letters.as_str()) || ENDINGS.iter().any(|ending| letters.ends_with(ending))
}

/// A request target for a person to read: values of keys that name secrets are not shown.
pub fn hide_secrets_in_target(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let show = |pair: &str| match pair.split_once('=') {
        Some((key, _)) if percent_decode(key).map_or(true, |key| is_secret_key(&key)) => {
            format!("{key}=(not shown)")
        }
        _ => pair.to_owned(),
    };
    format!("{path}?{}", query.split('&').map(show).collect::<Vec<_>>().join("&"))
}

/// Percent-decodes a key or a value. A plus sign is not read as a space, because API keys can contain
/// plus signs.
///
/// # Errors
/// A percent sign without two hex digits, or an encoded NUL.
pub(in crate::azure) fn percent_decode(text: &str) -> Result<Cow<'_, str>, TargetError> {
    if memchr::memchr(b'%', text.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (decoded, after) = decode_hex_pair(rest)?;
            rest = after;
            out.push(decoded);
        } else {
            out.push(byte);
        }
    }
    if out.contains(&0) {
        return Err(TargetError::AmbiguousEncoding);
    }
    // A value that is not UTF-8 is forwarded as it was written. Its decoded form is only compared with
    // names and keys, which it cannot equal.
    Ok(match String::from_utf8(out) {
        Ok(text) => Cow::Owned(text),
        Err(other) => Cow::Owned(String::from_utf8_lossy(other.as_bytes()).into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_shown_without_secrets() {
        for (target, shown) in [
            ("/openai/v1/responses", "/openai/v1/responses"),
            ("/a?api-version=1&b", "/a?api-version=1&b"),
            (
                "/a?api-key=s&x=1&%61pi-key=s&Code=s",
                "/a?api-key=(not shown)&x=1&%61pi-key=(not shown)&Code=(not shown)",
            ),
            ("/a?subscription-key=s=t&%zz=s", "/a?subscription-key=(not shown)&%zz=(not shown)"),
        ] {
            assert_eq!(hide_secrets_in_target(target), shown, "{target}");
        }
    }
}
