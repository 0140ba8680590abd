//! The `; name=value` parameters of a header, with quoted strings (RFC 9110, section 5.6.6).

use std::borrow::Cow;

/// Iterates over names and values.
pub(super) struct HeaderParameters<'a> {
    rest: &'a str,
    /// Whether a backslash in a quoted string makes the next character part of it.
    unescapes: bool,
}

impl<'a> HeaderParameters<'a> {
    /// The parameters in what follows the header's own value.
    pub(super) fn new(parameters: &'a str) -> Self {
        Self { rest: parameters, unescapes: true }
    }

    /// The same as parsers see them for which a backslash is a character like any other. Browsers do not
    /// escape with it (WHATWG HTML, "multipart/form-data"), and it can be the second byte of a character in
    /// Shift_JIS, GBK or Big5.
    pub(super) fn without_escapes(parameters: &'a str) -> Self {
        Self { rest: parameters, unescapes: false }
    }
}

impl<'a> Iterator for HeaderParameters<'a> {
    type Item = (&'a str, Cow<'a, str>);

    fn next(&mut self) -> Option<Self::Item> {
        self.rest = self.rest.trim_start_matches([';', ' ', '\t']);
        let end = self.rest.find(['=', ';']).unwrap_or(self.rest.len());
        if self.rest.is_empty() {
            return None;
        }
        let (name, rest) = self.rest.split_at(end);
        let Some(value) = rest.strip_prefix('=') else {
            self.rest = rest;
            return Some((name.trim(), Cow::Borrowed("")));
        };
        let value = value.trim_start_matches([' ', '\t']);
        let Some(quoted) = value.strip_prefix('"') else {
            let end = value.find(';').unwrap_or(value.len());
            let (value, rest) = value.split_at(end);
            self.rest = rest;
            return Some((name.trim(), Cow::Borrowed(value.trim())));
        };
        let (value, rest) = if self.unescapes {
            split_quoted_string(quoted)
        } else {
            let (value, rest) = quoted.split_once('"').unwrap_or((quoted, ""));
            (Cow::Borrowed(value), rest)
        };
        // What stands between a closing quote and the next semicolon is ignored.
        self.rest = rest.split_at(rest.find(';').unwrap_or(rest.len())).1;
        Some((name.trim(), value))
    }
}

/// Splits after the closing quote and unescapes what is before it. An unclosed string ends with the
/// header.
fn split_quoted_string(text: &str) -> (Cow<'_, str>, &str) {
    let plain = text.find(['"', '\\']).unwrap_or(text.len());
    let (before, rest) = text.split_at(plain);
    if !rest.starts_with('\\') {
        return (Cow::Borrowed(before), rest.strip_prefix('"').unwrap_or(rest));
    }
    let mut value = before.to_owned();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (Cow::Owned(value), chars.as_str())
}
