//! Whom a certificate is issued to, in a form that can be compared with what an operator writes.

use std::fmt::Write as _;
use std::sync::Arc;

use openssl::x509::X509NameRef;

/// The subject of a certificate as `openssl x509 -noout -subject -nameopt RFC2253` prints it: the
/// most specific attribute first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject(Arc<str>);

impl Subject {
    /// As it is written in the configuration.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// As it is in a certificate. Attributes that are no text are not comparable and read as `#`,
    /// which stands in no configuration.
    pub fn of(name: &X509NameRef) -> Self {
        let entries: Vec<_> = name.entries().collect();
        let mut text = String::new();
        for entry in entries.into_iter().rev() {
            if !text.is_empty() {
                text.push(',');
            }
            let attribute = entry.object().nid().short_name().unwrap_or("#");
            let value = entry.data().to_string();
            // Writing to a string cannot fail.
            let _ = write!(text, "{attribute}={}", value.map_or("#".to_owned(), |value| escaped(&value)));
        }
        Self(text.into())
    }
}

/// RFC 2253 section 2.4.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        let is_special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';');
        if is_special || (i == 0 && matches!(c, '#' | ' ')) || (i == last && c == ' ') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
