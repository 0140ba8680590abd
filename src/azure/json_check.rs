//! One pass over JSON that checks that it is JSON, strings many bytes at a time. It knows what it
//! accepts to be good; whatever it does not accept is somebody else's to judge, and to name.

/// A place in JSON up to which everything is good.
pub(super) struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Containers within containers, which is as many as one number has bits; more are not accepted.
#[derive(Default)]
struct Nesting {
    /// The innermost is the lowest bit: 1 for an object.
    kinds: u128,
    depth: u32,
}

impl Nesting {
    fn enter(&mut self, is_object: bool) -> Option<()> {
        self.depth += 1;
        self.kinds = self.kinds << 1 | u128::from(is_object);
        (self.depth <= u128::BITS).then_some(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.kinds >>= 1;
    }

    fn is_object(&self) -> bool {
        self.kinds & 1 == 1
    }
}

impl<'a> Scan<'a> {
    /// The pairs of the object that all of `bytes` is, one after the other; `None` from the first
    /// thing on that is not accepted. Keys come without their quotes and have no escapes.
    pub(super) fn pairs(bytes: &'a [u8], mut each: impl FnMut(&'a [u8], &'a [u8])) -> Option<()> {
        let mut scan = Self { bytes, at: 0 };
        scan.blanks();
        scan.expect(b'{')?;
        scan.blanks();
        if scan.byte()? == b'}' {
            scan.at += 1;
        } else {
            loop {
                let start = scan.at + 1;
                scan.string()?;
                let key = bytes.get(start..scan.at - 1)?;
                let is_plain = key.iter().all(|byte| byte.is_ascii() && *byte != b'\\');
                scan.colon()?;
                let start = scan.at;
                scan.value()?;
                each(is_plain.then_some(key)?, bytes.get(start..scan.at)?);
                scan.blanks();
                match scan.take()? {
                    b',' => scan.blanks(),
                    b'}' => break,
                    _ => return None,
                }
            }
        }
        scan.blanks();
        (scan.at == bytes.len()).then_some(())
    }

    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.byte()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.take()? == byte).then_some(())
    }

    fn blanks(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn colon(&mut self) -> Option<()> {
        self.blanks();
        self.expect(b':')?;
        self.blanks();
        Some(())
    }

    /// Goes over a value.
    fn value(&mut self) -> Option<()> {
        let mut nesting = Nesting::default();
        loop {
            // A value begins.
            let is_open = match self.byte()? {
                b'"' => {
                    self.string()?;
                    false
                }
                b'{' | b'[' => self.enter(&mut nesting)?,
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => self.number()?,
            };
            if !is_open && self.after(&mut nesting)? {
                return Some(());
            }
        }
    }

    /// Enters a container, and says whether a value is to come in it.
    fn enter(&mut self, nesting: &mut Nesting) -> Option<bool> {
        let is_object = self.take()? == b'{';
        nesting.enter(is_object)?;
        self.blanks();
        match (is_object, self.byte()?) {
            (true, b'}') | (false, b']') => {
                self.at += 1;
                nesting.leave();
                Some(false)
            }
            (true, _) => {
                self.string()?;
                self.colon()?;
                Some(true)
            }
            (false, _) => Some(true),
        }
    }

    /// Goes on behind a value to where the next one begins; says so if there is none.
    fn after(&mut self, nesting: &mut Nesting) -> Option<bool> {
        while nesting.depth > 0 {
            self.blanks();
            match (nesting.is_object(), self.take()?) {
                (true, b'}') | (false, b']') => nesting.leave(),
                (is_object, b',') => {
                    self.blanks();
                    if is_object {
                        self.string()?;
                        self.colon()?;
                    }
                    return Some(false);
                }
                _ => return None,
            }
        }
        Some(true)
    }

    fn literal(&mut self, word: &[u8]) -> Option<bool> {
        let is_it = self.bytes.get(self.at..)?.starts_with(word);
        self.at += word.len();
        is_it.then_some(false)
    }

    /// RFC 8259, section 6.
    fn number(&mut self) -> Option<bool> {
        if self.byte()? == b'-' {
            self.at += 1;
        }
        if self.byte()? == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(false)
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn string(&mut self) -> Option<()> {
        self.expect(b'"')?;
        loop {
            self.at += plain(self.bytes.get(self.at..)?);
            match self.take()? {
                b'"' => return Some(()),
                b'\\' => match self.take()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        let digits = self.bytes.get(self.at..self.at + 4)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                        self.at += 4;
                    }
                    _ => return None,
                },
                // A control character (RFC 8259, section 7).
                _ => return None,
            }
        }
    }
}

/// Where the first byte is that ends the plain part of a string: a quote, a backslash, or a control
/// character; the length if there is none.
pub(super) fn plain(bytes: &[u8]) -> usize {
    const SHORT: usize = 32;
    const STEP: usize = 128;
    // Most strings are short: eight bytes at a time tell exactly where.
    let (first, rest) = bytes.split_at_checked(SHORT).unwrap_or((bytes, &[]));
    let at = plain_words(first);
    if at < first.len() {
        return at;
    }
    // Of long ones the compiler looks at many in one instruction, which tells only whether.
    let (steps, _) = rest.as_chunks::<STEP>();
    let is_plain = |step: &&[u8; STEP]| {
        let has = |byte: u8| u8::from(byte == b'"') | u8::from(byte == b'\\') | u8::from(byte < b' ');
        step.iter().fold(0, |seen, byte| seen | has(*byte)) == 0
    };
    let passed = first.len() + STEP * steps.iter().take_while(is_plain).count();
    passed + bytes.get(passed..).map_or(0, plain_words)
}

/// The same, eight bytes at a time.
fn plain_words(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let is_of_note = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..b' ');
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // A borrow can make a byte above the first of note look like one, but none below it.
        let zero = |word: u64| word.wrapping_sub(ONES) & !word;
        let quote = zero(word ^ (ONES * u64::from(b'"')));
        let backslash = zero(word ^ (ONES * u64::from(b'\\')));
        let control = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
        let found = (quote | backslash | control) & HIGH;
        if found != 0 {
            return 8 * n + found.trailing_zeros() as usize / 8;
        }
    }
    8 * words.len() + rest.iter().position(is_of_note).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use std::collections::HashMap;

    /// Everything that is accepted is JSON, and its pairs are those that a parser finds.
    fn agrees(json: &[u8]) -> Result<bool, TestCaseError> {
        let mut found = Vec::new();
        let is_good = Scan::pairs(json, |key, value| found.push((key, value))).is_some();
        if is_good {
            let parsed = serde_json::from_slice::<HashMap<String, IgnoredAny>>(json);
            prop_assert!(parsed.is_ok(), "{}", json.escape_ascii());
            let text = String::from_utf8_lossy(json);
            let values: HashMap<String, &serde_json::value::RawValue> =
                serde_json::from_str(&text).map_err(|e| TestCaseError::fail(e.to_string()))?;
            // Of several with one name the last.
            let last: HashMap<_, _> = found
                .iter()
                .map(|(key, value)| (String::from_utf8_lossy(key), String::from_utf8_lossy(value)))
                .collect();
            prop_assert_eq!(last.len(), values.len());
            for (key, value) in last {
                prop_assert_eq!(values.get(&*key).map(|raw| raw.get()), Some(&*value));
            }
        }
        Ok(is_good)
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
            assert!(agrees(json.as_bytes()).unwrap(), "{json}");
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
            assert!(!agrees(json.as_bytes()).unwrap(), "{json}");
        }
    }

    #[test]
    fn what_has_a_meaning_is_found_wherever_it_is() {
        for length in (0..70).chain(150..180).chain([300]) {
            let mut bytes = vec![b'a'; length];
            assert_eq!(plain(&bytes), length);
            for at in 0..length {
                for byte in [b'"', b'\\', 0x1f] {
                    bytes[at] = byte;
                    assert_eq!(plain(&bytes), at);
                }
                bytes[at] = 0xe9;
            }
        }
    }

    #[test]
    fn as_deep_as_it_goes() {
        let deep = |depth| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(Scan::pairs(deep(128).as_bytes(), |_, _| {}).is_some());
        assert!(Scan::pairs(deep(129).as_bytes(), |_, _| {}).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn nothing_is_accepted_that_a_parser_refuses(
            json in "(\\{|\\}|\\[|\\]|\"|\"a\"|\"b\"|:|,| |\\\\|\\\\u00e9|0|1|-|\\.|e|true|null|\n|\u{e9}){0,14}"
        ) {
            agrees(json.as_bytes())?;
            agrees(format!("{{\"k\":{json}}}").as_bytes())?;
            agrees(format!("{{\"k\":\"{json}\"}}").as_bytes())?;
        }

        #[test]
        fn bytes_are_no_danger(json in proptest::collection::vec(any::<u8>(), 0..60)) {
            agrees(&[b"{\"k\":\"", &json[..], b"\"}"].concat())?;
            agrees(&json)?;
        }
    }
}
