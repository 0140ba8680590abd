//! What must not be written down: patterns of the operator's, taken out of prompts and answers.

use std::borrow::Cow;

use regex::{NoExpand, Regex};

/// What stands in place of what was taken out.
const IN_PLACE: &str = "[redacted]";
/// The same outside of a string.
const IN_PLACE_OF_VALUE: &str = "\"[redacted]\"";

/// The operator's patterns. The library takes time in proportion to the text, whatever is in it.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    patterns: Vec<Regex>,
}

impl Redaction {
    /// These patterns.
    pub fn new(patterns: Vec<Regex>) -> Self {
        Self { patterns }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Text without what the patterns match.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.replace(text, IN_PLACE)
    }

    fn replace<'t>(&self, text: &'t str, by: &str) -> Cow<'t, str> {
        let mut clean = Cow::Borrowed(text);
        for pattern in &self.patterns {
            if let Cow::Owned(cleaner) = pattern.replace_all(&clean, NoExpand(by)) {
                clean = Cow::Owned(cleaner);
            }
        }
        clean
    }

    /// JSON, perhaps only its beginning, without what the patterns match in its strings, read as they
    /// are meant and not as they are written; what does not begin like JSON is taken as text.
    pub fn json(&self, text: String) -> String {
        if self.is_empty() {
            return text;
        }
        if !text.starts_with(['{', '[']) {
            return self.text(&text).into_owned();
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        // Of JSON, quotes begin and end strings and nothing else.
        while let Some(begin) = rest.find('"') {
            let Some((before, string)) = rest.split_at_checked(begin) else { break };
            // A number may be what must not be written.
            out.push_str(&self.replace(before, IN_PLACE_OF_VALUE));
            let end = string_end(string);
            let (raw, after) = string.split_at_checked(end).unwrap_or((string, ""));
            match serde_json::from_str::<String>(raw) {
                Ok(said) => match self.text(&said) {
                    Cow::Borrowed(_) => out.push_str(raw),
                    Cow::Owned(clean) => out.push_str(&serde_json::Value::from(clean).to_string()),
                },
                // A lone half of a surrogate pair is no text; it is searched as it is written.
                Err(_) => out.push_str(&self.text(raw)),
            }
            rest = after;
        }
        out.push_str(&self.replace(rest, IN_PLACE_OF_VALUE));
        // What a pattern finds in JSON as it is written goes as well, whatever becomes of the JSON.
        self.text(&out).into_owned()
    }
}

/// The length of the string that these characters begin with, quotes included.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn redaction(patterns: &[&str]) -> Redaction {
        Redaction::new(patterns.iter().map(|pattern| Regex::new(pattern).unwrap()).collect())
    }

    #[test]
    fn strings_are_read_as_they_are_meant() {
        let keys =
            redaction(&["sk-[A-Za-z0-9]+", r"(?i)secret\s+word", "4[0-9]{15}", r#""password":\s*"[^"]+""#]);
        for (text, expected) in [
            ("plain sk-abc text", "plain [redacted] text"),
            (r#"[{"content":"my sk-abc, yes"}]"#, r#"[{"content":"my [redacted], yes"}]"#),
            (r#"["s\u006b-\u0061bc"]"#, r#"["[redacted]"]"#),
            (r#"["a \"SECRET\nword\" b"]"#, r#"["a \"[redacted]\" b"]"#),
            (r#"{"sk-key":1,"n":"\\\""}"#, r#"{"[redacted]":1,"n":"\\\""}"#),
            (r#"["\ud800 sk-abc"]"#, r#"["\ud800 [redacted]"]"#),
            (r#"[ "untouched\u0041" , 1.50 ]"#, r#"[ "untouched\u0041" , 1.50 ]"#),
            (
                r#"{"card":4111111111111111,"n":[1, 4222222222222222]}"#,
                r#"{"card":"[redacted]","n":[1, "[redacted]"]}"#,
            ),
            (
                r#"[{"a":"x \"password\": \"hunter2\" y"},{"b":"cut sk-abc"#,
                r#"[{"a":"x [redacted] y"},{"b":"cut [redacted]"#,
            ),
            (r#"{"password": "hunter2","n":1}"#, r#"{[redacted],"n":1}"#),
            ("[no json sk-abc", "[no json \"[redacted]\""),
            ("", ""),
        ] {
            assert_eq!(keys.json(text.to_owned()), expected, "{text}");
        }
        assert_eq!(Redaction::default().json("sk-abc".to_owned()), "sk-abc");
    }

    #[test]
    fn hostile_text_takes_no_longer() {
        let patterns = redaction(&["(a+)+b", "(x|x)*y"]);
        let begun = Instant::now();
        let hostile = "a".repeat(200_000) + &"x".repeat(200_000);
        assert_eq!(patterns.text(&hostile).len(), hostile.len());
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
