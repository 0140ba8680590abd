//! Redaction: replaces what the operator's patterns match in prompts and completions.

use std::borrow::Cow;

use regex::{NoExpand, Regex};

/// Replaces a match in text or in a JSON string.
const REDACTED_TEXT: &str = "[redacted]";
/// Replaces a match in JSON outside of strings, such as a number.
const REDACTED_JSON_VALUE: &str = "\"[redacted]\"";

/// The patterns of the configuration. The `regex` crate never backtracks: it takes time in proportion to the
/// text, so no prompt can slow it down.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    patterns: Vec<Regex>,
}

impl Redactor {
    /// A redactor with these patterns.
    pub fn new(patterns: Vec<Regex>) -> Self {
        Self { patterns }
    }

    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The text with every match replaced.
    pub fn redact_text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.replace_matches(text, REDACTED_TEXT)
    }

    fn replace_matches<'t>(&self, text: &'t str, replacement: &str) -> Cow<'t, str> {
        let mut redacted = Cow::Borrowed(text);
        for pattern in &self.patterns {
            if let Cow::Owned(replaced) = pattern.replace_all(&redacted, NoExpand(replacement)) {
                redacted = Cow::Owned(replaced);
            }
        }
        redacted
    }

    /// The JSON with every match replaced. Patterns are applied to the decoded strings, so that escapes hide
    /// nothing. The JSON may be truncated. Anything that does not start like JSON is redacted as text.
    pub fn redact_json(&self, text: String) -> String {
        if self.is_empty() {
            return text;
        }
        if !text.starts_with(['{', '[']) {
            return self.redact_text(&text).into_owned();
        }
        let mut output = String::with_capacity(text.len());
        let mut rest = text.as_str();
        // Outside of strings, JSON has no other use for a quote than to start one.
        while let Some(start) = rest.find('"') {
            let Some((before, string)) = rest.split_at_checked(start) else { break };
            // A number can match too.
            output.push_str(&self.replace_matches(before, REDACTED_JSON_VALUE));
            let end = json_string_length(string);
            let (raw, after) = string.split_at_checked(end).unwrap_or((string, ""));
            match serde_json::from_str::<String>(raw) {
                Ok(decoded) => match self.redact_text(&decoded) {
                    Cow::Borrowed(_) => output.push_str(raw),
                    Cow::Owned(redacted) => output.push_str(&serde_json::Value::from(redacted).to_string()),
                },
                // A string with a lone surrogate cannot be decoded, nor one that is cut off.
                Err(_) => output.push_str(&self.redact_text(raw)),
            }
            rest = after;
        }
        output.push_str(&self.replace_matches(rest, REDACTED_JSON_VALUE));
        // A pattern may also be meant for raw JSON, such as a name with its value. The result need not be
        // JSON.
        self.redact_text(&output).into_owned()
    }
}

/// The length of the JSON string at the start of `text`, including its quotes.
fn json_string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn redactor_for(patterns: &[&str]) -> Redactor {
        Redactor::new(patterns.iter().map(|pattern| Regex::new(pattern).unwrap()).collect())
    }

    #[test]
    fn patterns_match_decoded_json_strings() {
        let redactor = redactor_for(&[
            "sk-[A-Za-z0-9]+",
            r"(?i)secret\s+word",
            "4[0-9]{15}",
            r#""password":\s*"[^"]+""#,
        ]);
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
            assert_eq!(redactor.redact_json(text.to_owned()), expected, "{text}");
        }
        assert_eq!(Redactor::default().redact_json("sk-abc".to_owned()), "sk-abc");
    }

    #[test]
    fn hostile_text_does_not_slow_matching() {
        let redactor = redactor_for(&["(a+)+b", "(x|x)*y"]);
        let started = Instant::now();
        let hostile = "a".repeat(200_000) + &"x".repeat(200_000);
        assert_eq!(redactor.redact_text(&hostile).len(), hostile.len());
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
