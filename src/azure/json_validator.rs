//! A fast validator of JSON objects: one pass, strings many bytes at a time. What it accepts is valid
//! JSON (RFC 8259). It also rejects some unusual valid JSON, so the caller parses a rejected body again,
//! which also gives the error message.

use std::borrow::Cow;

use super::json_scan::{end_of_container, end_of_string, unescaped_prefix_len};
use super::json_text::{decode_content, text_from_bytes};

/// How deep the keys inside of a value are shown to the visitor.
const MAX_VISITED_DEPTH: usize = 5;

/// Is told what an object contains while it is validated.
pub(super) trait ObjectVisitor<'a> {
    /// A key of the object, and where its value begins. Returns at which depths inside of the value keys are wanted.
    fn on_key(&mut self, key: &[u8], value_offset: usize) -> WantedDepths;

    /// Whether a key inside of the value of the last key is wanted. It may have escapes.
    fn wants_inner_key(&self, key: &[u8]) -> bool;

    /// A key at a wanted depth. It is wanted, or it is written with escapes.
    fn on_inner_key(&mut self, path: &KeyPath<'_>);

    /// The value of the last key of the object, as it is written.
    fn on_value(&mut self, value: &'a [u8]);
}

/// At which depths keys inside of a value are wanted: a bit for each number of containers around the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WantedDepths(u8);

impl WantedDepths {
    /// At no depth.
    pub(super) const NONE: Self = Self(0);

    /// At this depth as well; at most [`MAX_VISITED_DEPTH`].
    pub(super) const fn with(self, depth: usize) -> Self {
        assert!(depth <= MAX_VISITED_DEPTH);
        Self(self.0 | 1 << depth)
    }

    fn include(self, depth: usize) -> bool {
        self.0 >> depth & 1 == 1
    }
}

/// The place of a key inside of a value.
pub(super) struct KeyPath<'v> {
    bytes: &'v [u8],
    key_starts: &'v [usize; MAX_VISITED_DEPTH],
    is_object_bits: u128,
    depth: u32,
    /// Where the value of the key begins.
    pub(super) value_offset: usize,
}

impl<'v> KeyPath<'v> {
    /// The containers from the outermost to the one of the key: `None` for an array, the decoded key for an object.
    pub(super) fn steps(&self) -> impl Iterator<Item = Option<Cow<'v, [u8]>>> {
        self.key_starts.iter().zip((0..self.depth).rev()).map(|(start, level)| {
            let is_object = self.is_object_bits >> level & 1 == 1;
            is_object.then(|| self.decode_key(*start))
        })
    }

    fn decode_key(&self, start: usize) -> Cow<'v, [u8]> {
        let end = end_of_string(self.bytes, start.saturating_sub(1)).unwrap_or_default();
        let key = self.bytes.get(start..end.saturating_sub(1)).unwrap_or_default();
        if key.contains(&b'\\') { Cow::Owned(decode_bytes(key)) } else { Cow::Borrowed(key) }
    }
}

fn decode_bytes(content: &[u8]) -> Vec<u8> {
    decode_content(&text_from_bytes(content)).into_owned().into_bytes()
}

/// The input and the position up to which it is valid.
pub(super) struct JsonValidator<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Whether another parser has accepted the input: then the unusual JSON is read as well.
    is_known_valid: bool,
    /// Where the visitor wants keys inside of the current value.
    wanted_depths: WantedDepths,
    /// Where the last key of each open object in the current value begins, by depth.
    key_starts: [usize; MAX_VISITED_DEPTH],
}

/// The stack of open containers: one bit each in a `u128`. Deeper nesting is not accepted.
#[derive(Default)]
struct OpenContainers {
    /// 1 for an object, 0 for an array. The lowest bit is the innermost container.
    is_object_bits: u128,
    depth: u32,
}

impl OpenContainers {
    fn is_full(&self) -> bool {
        self.depth == u128::BITS
    }

    fn push(&mut self, is_object: bool) {
        self.depth += 1;
        self.is_object_bits = self.is_object_bits << 1 | u128::from(is_object);
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.is_object_bits >>= 1;
    }

    fn innermost_is_object(&self) -> bool {
        self.is_object_bits & 1 == 1
    }
}

impl<'a> JsonValidator<'a> {
    /// Validates that `bytes` is one object and tells the visitor what it contains. `None` at the first byte that
    /// is not accepted. Keys of the object with escapes or with characters outside ASCII are not accepted.
    pub(super) fn validate(bytes: &'a [u8], visitor: &mut impl ObjectVisitor<'a>) -> Option<()> {
        Self::new(bytes, false).visit_object(visitor)
    }

    /// Like [`Self::validate`] for an object that another parser has accepted. Keys may have any characters. What
    /// is nested too deep is not shown.
    pub(super) fn visit_known_valid(bytes: &'a [u8], visitor: &mut impl ObjectVisitor<'a>) -> Option<()> {
        Self::new(bytes, true).visit_object(visitor)
    }

    fn new(bytes: &'a [u8], is_known_valid: bool) -> Self {
        Self {
            bytes,
            position: 0,
            is_known_valid,
            wanted_depths: WantedDepths::NONE,
            key_starts: [0; MAX_VISITED_DEPTH],
        }
    }

    fn visit_object(&mut self, visitor: &mut impl ObjectVisitor<'a>) -> Option<()> {
        self.skip_whitespace();
        self.expect_byte(b'{')?;
        self.skip_whitespace();
        if self.peek_byte()? == b'}' {
            self.position += 1;
        } else {
            loop {
                let start = self.position + 1;
                let has_escape = self.skip_string()?;
                let mut key = Cow::Borrowed(self.bytes.get(start..self.position - 1)?);
                if has_escape || !key.is_ascii() {
                    self.is_known_valid.then_some(())?;
                    key = Cow::Owned(decode_bytes(&key));
                }
                self.expect_colon()?;
                let start = self.position;
                self.wanted_depths = visitor.on_key(&key, start);
                self.skip_value(visitor)?;
                visitor.on_value(self.bytes.get(start..self.position)?);
                self.skip_whitespace();
                match self.next_byte()? {
                    b',' => self.skip_whitespace(),
                    b'}' => break,
                    _ => return None,
                }
            }
        }
        self.skip_whitespace();
        (self.position == self.bytes.len()).then_some(())
    }

    fn peek_byte(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    fn next_byte(&mut self) -> Option<u8> {
        let byte = self.peek_byte()?;
        self.position += 1;
        Some(byte)
    }

    fn expect_byte(&mut self, byte: u8) -> Option<()> {
        (self.next_byte()? == byte).then_some(())
    }

    fn skip_whitespace(&mut self) {
        while matches!(self.peek_byte(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.position += 1;
        }
    }

    fn expect_colon(&mut self) -> Option<()> {
        self.skip_whitespace();
        self.expect_byte(b':')?;
        self.skip_whitespace();
        Some(())
    }

    /// Skips a value of any kind.
    fn skip_value(&mut self, visitor: &mut impl ObjectVisitor<'a>) -> Option<()> {
        let mut containers = OpenContainers::default();
        loop {
            let value_follows = match self.peek_byte()? {
                b'"' => {
                    self.skip_string()?;
                    false
                }
                b'{' | b'[' => self.enter_container(&mut containers, visitor)?,
                b't' => self.expect_literal(b"true")?,
                b'f' => self.expect_literal(b"false")?,
                b'n' => self.expect_literal(b"null")?,
                _ => self.skip_number()?,
            };
            if !value_follows && !self.advance_to_next_value(&mut containers, visitor)? {
                return Some(());
            }
        }
    }

    /// Skips an opening bracket and, in an object, the first key. Returns whether a value follows; if not,
    /// the container was empty and is skipped as well.
    fn enter_container(
        &mut self,
        containers: &mut OpenContainers,
        visitor: &mut impl ObjectVisitor<'a>,
    ) -> Option<bool> {
        if containers.is_full() {
            self.is_known_valid.then_some(())?;
            self.position = end_of_container(self.bytes, self.position)?;
            return Some(false);
        }
        let is_object = self.next_byte()? == b'{';
        containers.push(is_object);
        self.skip_whitespace();
        match (is_object, self.peek_byte()?) {
            (true, b'}') | (false, b']') => {
                self.position += 1;
                containers.pop();
                Some(false)
            }
            (true, _) => {
                self.skip_inner_key(containers, visitor)?;
                Some(true)
            }
            (false, _) => Some(true),
        }
    }

    /// After a value, closes finished containers and skips to the next value. `false` if the outermost
    /// value is complete.
    fn advance_to_next_value(
        &mut self,
        containers: &mut OpenContainers,
        visitor: &mut impl ObjectVisitor<'a>,
    ) -> Option<bool> {
        while containers.depth > 0 {
            self.skip_whitespace();
            match (containers.innermost_is_object(), self.next_byte()?) {
                (true, b'}') | (false, b']') => containers.pop(),
                (is_object, b',') => {
                    self.skip_whitespace();
                    if is_object {
                        self.skip_inner_key(containers, visitor)?;
                    }
                    return Some(true);
                }
                _ => return None,
            }
        }
        Some(false)
    }

    /// Skips a key inside of a value, and its colon.
    fn skip_inner_key(
        &mut self,
        containers: &OpenContainers,
        visitor: &mut impl ObjectVisitor<'a>,
    ) -> Option<()> {
        let start = self.position + 1;
        let is_escaped = self.skip_string()?;
        let end = self.position - 1;
        self.expect_colon()?;
        let depth = containers.depth as usize;
        if self.wanted_depths != WantedDepths::NONE
            && let Some(key_start) = self.key_starts.get_mut(depth.wrapping_sub(1))
        {
            *key_start = start;
            if self.wanted_depths.include(depth)
                && (is_escaped || visitor.wants_inner_key(self.bytes.get(start..end)?))
            {
                self.visit_inner_key(containers, visitor);
            }
        }
        Some(())
    }

    #[cold]
    fn visit_inner_key(&self, containers: &OpenContainers, visitor: &mut impl ObjectVisitor<'a>) {
        let (bytes, key_starts, value_offset) = (self.bytes, &self.key_starts, self.position);
        let OpenContainers { is_object_bits, depth } = *containers;
        visitor.on_inner_key(&KeyPath { bytes, key_starts, is_object_bits, depth, value_offset });
    }

    /// Skips a literal. Like [`Self::skip_number`] it returns `false`, because no value follows in it.
    fn expect_literal(&mut self, word: &[u8]) -> Option<bool> {
        let is_literal = self.bytes.get(self.position..)?.starts_with(word);
        self.position += word.len();
        is_literal.then_some(false)
    }

    /// Skips a number (RFC 8259, section 6).
    fn skip_number(&mut self) -> Option<bool> {
        if self.peek_byte()? == b'-' {
            self.position += 1;
        }
        if self.peek_byte()? == b'0' {
            self.position += 1;
        } else {
            self.skip_digits()?;
        }
        if self.peek_byte() == Some(b'.') {
            self.position += 1;
            self.skip_digits()?;
        }
        if let Some(b'e' | b'E') = self.peek_byte() {
            self.position += 1;
            if let Some(b'+' | b'-') = self.peek_byte() {
                self.position += 1;
            }
            self.skip_digits()?;
        }
        Some(false)
    }

    fn skip_digits(&mut self) -> Option<()> {
        let start = self.position;
        while self.peek_byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.position += 1;
        }
        (self.position > start).then_some(())
    }

    /// Skips a string and returns whether it has an escape.
    fn skip_string(&mut self) -> Option<bool> {
        self.expect_byte(b'"')?;
        let mut has_escape = false;
        loop {
            self.position += unescaped_prefix_len(self.bytes.get(self.position..)?);
            match self.next_byte()? {
                b'"' => return Some(has_escape),
                b'\\' => {
                    has_escape = true;
                    match self.next_byte()? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                        b'u' => {
                            let digits = self.bytes.get(self.position..self.position + 4)?;
                            digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                            self.position += 4;
                        }
                        _ => return None,
                    }
                }
                // A control character must be escaped (RFC 8259, section 7).
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use std::collections::HashMap;

    /// The pairs of an object.
    #[derive(Default)]
    struct Pairs<'a>(Vec<(Vec<u8>, &'a [u8])>);

    impl<'a> ObjectVisitor<'a> for Pairs<'a> {
        fn on_key(&mut self, key: &[u8], _: usize) -> WantedDepths {
            self.0.push((key.to_vec(), b""));
            WantedDepths(u8::MAX)
        }

        fn wants_inner_key(&self, _: &[u8]) -> bool {
            true
        }

        fn on_inner_key(&mut self, path: &KeyPath<'_>) {
            assert!(path.steps().count() <= MAX_VISITED_DEPTH);
        }

        fn on_value(&mut self, value: &'a [u8]) {
            self.0.last_mut().unwrap().1 = value;
        }
    }

    /// Whether the validator accepts `json`. Fails if serde_json rejects it or finds other pairs.
    fn is_accepted_as_by_serde(json: &[u8]) -> Result<bool, TestCaseError> {
        let mut visitor = Pairs::default();
        let is_accepted = JsonValidator::validate(json, &mut visitor).is_some();
        let pairs = visitor.0;
        if is_accepted {
            let parsed = serde_json::from_slice::<HashMap<String, IgnoredAny>>(json);
            prop_assert!(parsed.is_ok(), "{}", json.escape_ascii());
            let text = String::from_utf8_lossy(json);
            let values: HashMap<String, &serde_json::value::RawValue> =
                serde_json::from_str(&text).map_err(|e| TestCaseError::fail(e.to_string()))?;
            // Of a repeated key, the last value counts.
            let last: HashMap<_, _> = pairs
                .iter()
                .map(|(key, value)| (String::from_utf8_lossy(key), String::from_utf8_lossy(value)))
                .collect();
            prop_assert_eq!(last.len(), values.len());
            for (key, value) in last {
                prop_assert_eq!(values.get(&*key).map(|raw| raw.get()), Some(&*value));
            }
        }
        Ok(is_accepted)
    }

    #[test]
    fn ordinary_objects_are_accepted_and_others_are_not() {
        let good = [
            "{}",
            " { } \r\n",
            r#"{"a":1}"#,
            r#" {"a" : [ ] , "b":{ } ,"c":[1,-0.5e+3, 0,{"d":null}],"e":"\u00e9\\\"\n" } "#,
            r#"{"a":true,"a":false}"#,
        ];
        for json in good {
            assert!(is_accepted_as_by_serde(json.as_bytes()).unwrap(), "{json}");
        }
        let bad = [
            "",
            "{",
            "[]",
            "{}x",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{,"a":1}"#,
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":.5}"#,
            r#"{"a":+1}"#,
            r#"{"a":1e}"#,
            r#"{"a":tru}"#,
            r#"{"a":truex}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":[1}}"#,
            r#"{"a":{"b":1]}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":"b}"#,
            r#"{'a':1}"#,
            r#"{"a":NaN}"#,
            r#"{"a":1 2}"#,
        ];
        for json in bad {
            assert!(!is_accepted_as_by_serde(json.as_bytes()).unwrap(), "{json}");
        }
    }

    #[test]
    fn nesting_is_accepted_up_to_128_containers() {
        let deep = |depth| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let validate =
            |json: String| JsonValidator::validate(json.as_bytes(), &mut Pairs::default()).is_some();
        assert!(validate(deep(128)));
        assert!(!validate(deep(129)));
        let json = deep(100_000).replace('a', "\\u0061");
        let mut visitor = Pairs::default();
        JsonValidator::visit_known_valid(json.as_bytes(), &mut visitor).unwrap();
        assert_eq!(visitor.0[0].0, b"a");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn nothing_is_accepted_that_serde_json_rejects(
            json in "(\\{|\\}|\\[|\\]|\"|\"a\"|\"b\"|:|,| |\\\\|\\\\u00e9|0|1|-|\\.|e|true|null|\n|\u{e9}){0,14}"
        ) {
            is_accepted_as_by_serde(json.as_bytes())?;
            is_accepted_as_by_serde(format!("{{\"k\":{json}}}").as_bytes())?;
            is_accepted_as_by_serde(format!("{{\"k\":\"{json}\"}}").as_bytes())?;
        }

        #[test]
        fn arbitrary_bytes_never_panic(json in proptest::collection::vec(any::<u8>(), 0..60)) {
            is_accepted_as_by_serde(&[b"{\"k\":\"", &json[..], b"\"}"].concat())?;
            is_accepted_as_by_serde(&json)?;
        }
    }
}
