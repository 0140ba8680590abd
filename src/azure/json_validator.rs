//! A fast validator of JSON objects: one pass, strings many bytes at a time. What it accepts is valid
//! JSON (RFC 8259). It also rejects some unusual valid JSON, so the caller parses a rejected body again,
//! which also gives the error message.

/// The input and the position up to which it is valid.
pub(super) struct JsonValidator<'a> {
    bytes: &'a [u8],
    position: usize,
}

/// The stack of open containers: one bit each in a `u128`. Deeper nesting is not accepted.
#[derive(Default)]
struct OpenContainers {
    /// 1 for an object, 0 for an array. The lowest bit is the innermost container.
    is_object_bits: u128,
    depth: u32,
}

impl OpenContainers {
    fn push(&mut self, is_object: bool) -> Option<()> {
        self.depth += 1;
        self.is_object_bits = self.is_object_bits << 1 | u128::from(is_object);
        (self.depth <= u128::BITS).then_some(())
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
    /// Validates that `bytes` is one object and calls `on_pair` with each key, without its quotes, and
    /// raw value. `None` at the first byte that is not accepted. Keys with escapes or with characters
    /// outside ASCII are not accepted.
    pub(super) fn validate_and_visit_pairs(
        bytes: &'a [u8],
        mut on_pair: impl FnMut(&'a [u8], &'a [u8]),
    ) -> Option<()> {
        let mut validator = Self { bytes, position: 0 };
        validator.skip_whitespace();
        validator.expect_byte(b'{')?;
        validator.skip_whitespace();
        if validator.peek_byte()? == b'}' {
            validator.position += 1;
        } else {
            loop {
                let start = validator.position + 1;
                validator.skip_string()?;
                let key = bytes.get(start..validator.position - 1)?;
                let is_plain = key.iter().all(|byte| byte.is_ascii() && *byte != b'\\');
                validator.expect_colon()?;
                let start = validator.position;
                validator.skip_value()?;
                on_pair(is_plain.then_some(key)?, bytes.get(start..validator.position)?);
                validator.skip_whitespace();
                match validator.next_byte()? {
                    b',' => validator.skip_whitespace(),
                    b'}' => break,
                    _ => return None,
                }
            }
        }
        validator.skip_whitespace();
        (validator.position == bytes.len()).then_some(())
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
    fn skip_value(&mut self) -> Option<()> {
        let mut containers = OpenContainers::default();
        loop {
            let value_follows = match self.peek_byte()? {
                b'"' => {
                    self.skip_string()?;
                    false
                }
                b'{' | b'[' => self.enter_container(&mut containers)?,
                b't' => self.expect_literal(b"true")?,
                b'f' => self.expect_literal(b"false")?,
                b'n' => self.expect_literal(b"null")?,
                _ => self.skip_number()?,
            };
            if !value_follows && !self.advance_to_next_value(&mut containers)? {
                return Some(());
            }
        }
    }

    /// Skips an opening bracket and, in an object, the first key. Returns whether a value follows; if not,
    /// the container was empty and is skipped as well.
    fn enter_container(&mut self, containers: &mut OpenContainers) -> Option<bool> {
        let is_object = self.next_byte()? == b'{';
        containers.push(is_object)?;
        self.skip_whitespace();
        match (is_object, self.peek_byte()?) {
            (true, b'}') | (false, b']') => {
                self.position += 1;
                containers.pop();
                Some(false)
            }
            (true, _) => {
                self.skip_string()?;
                self.expect_colon()?;
                Some(true)
            }
            (false, _) => Some(true),
        }
    }

    /// After a value, closes finished containers and skips to the next value. `false` if the outermost
    /// value is complete.
    fn advance_to_next_value(&mut self, containers: &mut OpenContainers) -> Option<bool> {
        while containers.depth > 0 {
            self.skip_whitespace();
            match (containers.innermost_is_object(), self.next_byte()?) {
                (true, b'}') | (false, b']') => containers.pop(),
                (is_object, b',') => {
                    self.skip_whitespace();
                    if is_object {
                        self.skip_string()?;
                        self.expect_colon()?;
                    }
                    return Some(true);
                }
                _ => return None,
            }
        }
        Some(false)
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

    fn skip_string(&mut self) -> Option<()> {
        self.expect_byte(b'"')?;
        loop {
            self.position += unescaped_prefix_len(self.bytes.get(self.position..)?);
            match self.next_byte()? {
                b'"' => return Some(()),
                b'\\' => match self.next_byte()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        let digits = self.bytes.get(self.position..self.position + 4)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                        self.position += 4;
                    }
                    _ => return None,
                },
                // A control character must be escaped (RFC 8259, section 7).
                _ => return None,
            }
        }
    }
}

/// The number of bytes before the first quote, backslash or control character; the length if there is
/// none.
pub(super) fn unescaped_prefix_len(bytes: &[u8]) -> usize {
    const SHORT_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 128;
    // Most strings are short. Searching eight bytes at a time gives the exact position.
    let (first, rest) = bytes.split_at_checked(SHORT_BYTES).unwrap_or((bytes, &[]));
    let length = unescaped_prefix_len_by_words(first);
    if length < first.len() {
        return length;
    }
    // For long strings, the compiler vectorises this test of a whole block. It does not give the
    // position, so the last block is searched again below.
    let (blocks, _) = rest.as_chunks::<BLOCK_BYTES>();
    let is_plain = |block: &&[u8; BLOCK_BYTES]| {
        let has = |byte: u8| u8::from(byte == b'"') | u8::from(byte == b'\\') | u8::from(byte < b' ');
        block.iter().fold(0, |found, byte| found | has(*byte)) == 0
    };
    let plain_bytes = first.len() + BLOCK_BYTES * blocks.iter().take_while(is_plain).count();
    plain_bytes + bytes.get(plain_bytes..).map_or(0, unescaped_prefix_len_by_words)
}

/// Like [`unescaped_prefix_len`], eight bytes at a time.
fn unescaped_prefix_len_by_words(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH_BITS: u64 = ONES << 7;
    let ends_prefix = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..b' ');
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The classic test for a zero byte in a word. A borrow can only set a wrong bit above the first
        // match, and only the lowest set bit is used.
        let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word;
        let quote = zero_bytes(word ^ (ONES * u64::from(b'"')));
        let backslash = zero_bytes(word ^ (ONES * u64::from(b'\\')));
        let control = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
        let matches = (quote | backslash | control) & HIGH_BITS;
        if matches != 0 {
            return 8 * n + matches.trailing_zeros() as usize / 8;
        }
    }
    8 * words.len() + rest.iter().position(ends_prefix).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use std::collections::HashMap;

    /// Whether the validator accepts `json`. Fails if serde_json rejects it or finds other pairs.
    fn is_accepted_as_by_serde(json: &[u8]) -> Result<bool, TestCaseError> {
        let mut pairs = Vec::new();
        let is_accepted =
            JsonValidator::validate_and_visit_pairs(json, |key, value| pairs.push((key, value))).is_some();
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
    fn the_first_special_byte_is_found_at_any_position() {
        for length in (0..70).chain(150..180).chain([300]) {
            let mut bytes = vec![b'a'; length];
            assert_eq!(unescaped_prefix_len(&bytes), length);
            for at in 0..length {
                for byte in [b'"', b'\\', 0x1f] {
                    bytes[at] = byte;
                    assert_eq!(unescaped_prefix_len(&bytes), at);
                }
                bytes[at] = 0xe9;
            }
        }
    }

    #[test]
    fn nesting_is_accepted_up_to_128_containers() {
        let deep = |depth| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(JsonValidator::validate_and_visit_pairs(deep(128).as_bytes(), |_, _| {}).is_some());
        assert!(JsonValidator::validate_and_visit_pairs(deep(129).as_bytes(), |_, _| {}).is_none());
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
