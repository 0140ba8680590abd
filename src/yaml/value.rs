//! The values of a parsed YAML text.

/// A YAML value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text, a number, true, false or nothing.
    Scalar(Scalar),
    /// A list.
    List(Vec<Item>),
    /// A mapping.
    Mapping(Entries),
    /// A value with a tag that is not one of YAML's own, or does not fit.
    Tagged,
}

/// An item of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its value.
    pub value: Value,
    /// The line where it begins, from 1.
    pub line: usize,
}

/// A scalar as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar {
    /// Its text, without quotes.
    pub text: String,
    /// Whether it was written without quotes, so that it may be a number, true, false or nothing.
    pub is_plain: bool,
}

/// What a scalar is by the core schema of YAML 1.2, section 10.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarKind {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// A number of any size.
    Number,
    /// Anything else, and everything in quotes.
    Text,
}

/// The entries of a mapping, in the order of the file. Keys are unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries(pub(super) Vec<Entry>);

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Value,
    /// The line of the key, from 1.
    pub(super) line: usize,
}

impl Entries {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The line of a key, from 1.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        self.0.iter().find(|entry| entry.key == key).map(|entry| entry.line)
    }

    /// All keys and values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|entry| (entry.key.as_str(), &entry.value))
    }
}

impl Value {
    /// The kind of the value, for messages.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Scalar(scalar) => match scalar.kind() {
                ScalarKind::Null => "nothing",
                ScalarKind::Bool => "true or false",
                ScalarKind::Number => "a number",
                ScalarKind::Text => "a string",
            },
            Self::List(_) => "a list",
            Self::Mapping(_) => "a mapping",
            Self::Tagged => "a value with a YAML tag",
        }
    }

    /// Whether nothing was written.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Scalar(scalar) if scalar.kind() == ScalarKind::Null)
    }
}

impl Scalar {
    /// What it is by the core schema.
    pub fn kind(&self) -> ScalarKind {
        match self.text.as_str() {
            _ if !self.is_plain => ScalarKind::Text,
            "" | "~" | "null" | "Null" | "NULL" => ScalarKind::Null,
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => ScalarKind::Bool,
            text if is_number(text) => ScalarKind::Number,
            _ => ScalarKind::Text,
        }
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_radix = |prefix: &str, is_digit: fn(&u8) -> bool| {
        text.strip_prefix(prefix)
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| is_digit(&b)))
    };
    if is_radix("0x", u8::is_ascii_hexdigit) || is_radix("0o", |b| (b'0'..=b'7').contains(b)) {
        return true;
    }
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    // Rust's floats also have words, such as `infinity`.
    unsigned.bytes().any(|b| b.is_ascii_digit())
        && unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'))
        && !unsigned.starts_with(['-', '+'])
        && unsigned.parse::<f64>().is_ok()
}

/// The longest key that a path shows.
const MAX_SHOWN_KEY_BYTES: usize = 64;

/// The path of a key in the mapping at `path`. A key that is longer than a name, or has other characters than
/// names have, is not shown: it may be a secret without the blank after its colon.
pub fn child_key_path(path: &str, key: &str) -> String {
    let is_word = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    match path {
        _ if key.len() > MAX_SHOWN_KEY_BYTES => format!("{path}[…]"),
        "" if !key.is_empty() && is_word(key) => key.to_owned(),
        _ if !key.is_empty() && is_word(key) => format!("{path}.{key}"),
        _ if key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'*')) => {
            format!("{path}[{key:?}]")
        }
        _ => format!("{path}[…]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_paths_look_like_the_yaml() {
        let long = "k".repeat(65);
        for (path, key, expected) in [
            ("", "retry", "retry"),
            ("a[0]", "b", "a[0].b"),
            ("d", "gpt-4.1", "d[\"gpt-4.1\"]"),
            ("", "", "[\"\"]"),
            ("a", "api_key:\"s3cret\"", "a[…]"),
            ("a", &long, "a[…]"),
        ] {
            assert_eq!(child_key_path(path, key), expected);
        }
    }

    #[test]
    fn a_scalar_without_quotes_has_the_kind_of_the_core_schema() {
        use ScalarKind::{Bool, Null, Number, Text};
        for (text, kind) in [
            ("", Null),
            ("~", Null),
            ("null", Null),
            ("true", Bool),
            ("FALSE", Bool),
            ("yes", Text),
            ("0", Number),
            ("-12", Number),
            ("+1", Number),
            ("007", Number),
            ("12345678901234567890123456789012345678901234567890", Number),
            ("0x1F", Number),
            ("0o17", Number),
            ("0x", Text),
            ("1.5", Number),
            (".5", Number),
            ("1e5", Number),
            ("1E-5", Number),
            ("-.inf", Number),
            (".nan", Number),
            ("1_000", Text),
            ("infinity", Text),
            ("e5", Text),
            ("+-1", Text),
            ("1-2", Text),
            ("2024-10-21", Text),
            ("1.2.3", Text),
        ] {
            let scalar = |is_plain| Scalar { text: text.to_owned(), is_plain };
            assert_eq!((scalar(true).kind(), scalar(false).kind()), (kind, Text), "{text}");
        }
    }
}
