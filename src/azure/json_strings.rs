//! Walks through the strings of JSON, each with the key that it belongs to. The input is not validated: the caller
//! knows that it is JSON, or that nothing depends on it.

use std::ops::Range;

use super::json_scan::end_of_string;

/// Up to this depth the key of each open container is remembered.
const MAX_TRACKED_DEPTH: usize = 32;

/// A string in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JsonString<'a> {
    /// Where it is, quotes included.
    pub(super) range: Range<usize>,
    /// As it is written, with quotes and escapes.
    pub(super) raw: &'a str,
    /// Whether it is a key.
    pub(super) is_key: bool,
    /// The key that it belongs to, as it is written; of a key, itself. The items of an array belong to the array's
    /// key.
    pub(super) key: &'a str,
    /// The key of the object or array that it is in; empty below [`MAX_TRACKED_DEPTH`].
    pub(super) container_key: &'a str,
    /// Where the object or array begins that it is in; 0 below [`MAX_TRACKED_DEPTH`].
    pub(super) container_start: usize,
    /// How many objects and arrays it is in.
    pub(super) depth: usize,
}

/// The strings of JSON, keys included, in their order.
pub(super) struct JsonStrings<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
    key: &'a str,
    /// The key of each open container, and where it begins.
    containers: [(&'a str, usize); MAX_TRACKED_DEPTH],
}

impl<'a> JsonStrings<'a> {
    /// The strings of this text.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, position: 0, depth: 0, key: "", containers: [("", 0); MAX_TRACKED_DEPTH] }
    }

    fn open_container(&mut self, is_array: bool) {
        if let Some(container) = self.containers.get_mut(self.depth) {
            *container = (self.key, self.position);
        }
        self.depth += 1;
        if !is_array {
            self.key = "";
        }
    }

    fn read_string(&mut self) -> JsonString<'a> {
        let bytes = self.text.as_bytes();
        let end = end_of_string(bytes, self.position).unwrap_or(bytes.len());
        let range = self.position..end;
        let raw = self.text.get(range.clone()).unwrap_or_default();
        // A string before a colon is a key.
        let is_key = bytes.get(end..).unwrap_or_default().trim_ascii_start().starts_with(b":");
        if is_key {
            self.key = raw;
        }
        self.position = end;
        let container = self.depth.checked_sub(1).and_then(|depth| self.containers.get(depth));
        let (container_key, container_start) = container.copied().unwrap_or_default();
        JsonString { range, raw, is_key, key: self.key, container_key, container_start, depth: self.depth }
    }
}

impl<'a> Iterator for JsonStrings<'a> {
    type Item = JsonString<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(&byte) = self.text.as_bytes().get(self.position) {
            match byte {
                b'{' | b'[' => self.open_container(byte == b'['),
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.key = "";
                }
                b'"' => return Some(self.read_string()),
                _ => {}
            }
            self.position += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_string_comes_with_its_key_its_container_and_its_depth() {
        let text = r#"{"a":["x",{"b" : "y\\\"z"}],"c":1,"d":"w"} "open"#;
        let found: Vec<_> = JsonStrings::new(text)
            .map(|string| (string.raw, string.is_key, string.key, string.container_key, string.depth))
            .collect();
        let expected = [
            (r#""a""#, true, r#""a""#, "", 1),
            (r#""x""#, false, r#""a""#, r#""a""#, 2),
            (r#""b""#, true, r#""b""#, r#""a""#, 3),
            (r#""y\\\"z""#, false, r#""b""#, r#""a""#, 3),
            (r#""c""#, true, r#""c""#, "", 1),
            (r#""d""#, true, r#""d""#, "", 1),
            (r#""w""#, false, r#""d""#, "", 1),
            (r#""open"#, false, "", "", 0),
        ];
        assert_eq!(found, expected);
        assert!(JsonStrings::new(text).all(|string| &text[string.range.clone()] == string.raw));
    }
}
