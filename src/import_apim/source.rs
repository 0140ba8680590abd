//! Places in the files that are imported, and errors about them.

use std::fmt;
use std::sync::Arc;

/// A file that is imported.
#[derive(Clone, Debug)]
pub struct InputFile {
    /// Its name, as it is shown.
    pub name: String,
    /// What it contains.
    pub bytes: Vec<u8>,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The position of the file among all that are imported, for the order of places.
    file: usize,
    line: usize,
    name: Arc<str>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.line)
    }
}

/// A file cannot be imported. The text begins with the file and the line, and repeats no value of the file.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ImportError {
    place: Place,
    problem: String,
}

impl ImportError {
    pub(super) fn new(place: Place, problem: impl Into<String>) -> Self {
        Self { place, problem: problem.into() }
    }
}

/// The text of a file.
pub(super) struct SourceText<'f> {
    pub(super) text: &'f str,
    file: usize,
    name: Arc<str>,
}

impl<'f> SourceText<'f> {
    /// The text of the `index`-th file that is imported, without a byte order mark.
    ///
    /// # Errors
    /// If it is not UTF-8 text, or has control characters.
    pub(super) fn new(index: usize, file: &'f InputFile) -> Result<Self, ImportError> {
        let name: Arc<str> = printable(&file.name).into();
        let place = |offset: usize| Place {
            file: index,
            line: 1 + memchr::memchr_iter(b'\n', file.bytes.get(..offset).unwrap_or_default()).count(),
            name: name.clone(),
        };
        let text = std::str::from_utf8(&file.bytes).map_err(|error| {
            ImportError::new(place(error.valid_up_to()), "is not UTF-8 text; save the file as UTF-8")
        })?;
        let is_foreign = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
        if let Some(offset) = text.find(is_foreign) {
            return Err(ImportError::new(place(offset), "has a control character"));
        }
        Ok(Self { text: text.strip_prefix('\u{feff}').unwrap_or(text), file: index, name })
    }

    /// A line of the file, counted from 1.
    pub(super) fn line(&self, line: usize) -> Place {
        Place { file: self.file, line, name: self.name.clone() }
    }

    /// The line that has the byte at `offset` of the text. Takes as long as the text before it.
    pub(super) fn place_at(&self, offset: usize) -> Place {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        self.line(1 + memchr::memchr_iter(b'\n', before).count())
    }

    /// The name of the file without folder and extension.
    pub(super) fn stem(&self) -> &str {
        let name = self.name.rsplit(['/', '\\']).next().unwrap_or_default();
        name.strip_suffix(".xml").unwrap_or(name)
    }
}

/// The text on one line, without anything that a terminal, or the end of a comment in YAML, could be made of.
pub(super) fn printable(text: &str) -> String {
    let is_shown = |c: char| c == ' ' || c == '…' || c.is_ascii_graphic() || c.is_alphanumeric();
    let show = |c: char| if is_shown(c) { c } else { '?' };
    text.chars().map(show).collect()
}

/// A name that a policy gives to something, as comments show it. What could be a secret is not shown.
pub(super) fn shown_name(text: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-/{} ".contains(c);
    if text.len() <= 64 && text.chars().all(is_name) { text.to_owned() } else { "…".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_line_of_the_first_wrong_byte() {
        for (bytes, expected) in [
            (&b"a\nb\xff"[..], "p.xml:2: is not UTF-8 text; save the file as UTF-8"),
            (b"a\r\n\r\n\0", "p.xml:3: has a control character"),
            (b"\x1b[31m", "p.xml:1: has a control character"),
            ("\u{85}".as_bytes(), "p.xml:1: has a control character"),
        ] {
            let file = InputFile { name: "p.xml".to_owned(), bytes: bytes.to_vec() };
            let error = SourceText::new(0, &file).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some(expected));
        }
    }

    #[test]
    fn names_stay_on_one_line() {
        assert_eq!(printable("a\r\nb\u{2028}c\u{85}d\u{1b}é"), "a??b?c?d?é");
        assert_eq!((shown_name("x-y {{z}}"), shown_name("a=b")), ("x-y {{z}}".to_owned(), "…".to_owned()));
    }
}
