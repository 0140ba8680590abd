//! Redaction: replaces what the operator's patterns match in prompts and completions.
//!
//! Escapes hide nothing: patterns are applied to the text as it is, to every JSON string in it as decoded, and
//! to JSON strings that contain JSON in turn, such as the arguments and results of tools. A match is replaced
//! where it is in the recorded text, and everything else stays byte for byte. In JSON only contents of strings
//! and whole values are replaced, so that it stays JSON, also if it is nested.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memchr2};
use regex::Regex;

use super::text_ranges::{clip, merge_overlapping, overlaps_any, translate};
use crate::azure::json_text::{decode_content, piece_lengths};

/// Replaces a match.
const REDACTED_TEXT: &str = "[redacted]";
/// How often JSON may be nested in strings of JSON. Deeper, it is only text.
const MAX_NESTING: u32 = 8;

/// The patterns of the configuration. The `regex` crate never backtracks: it takes time in proportion to the
/// text, so no prompt can slow it down.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    patterns: Vec<Regex>,
}

/// A part of a text that is replaced.
struct Redaction {
    range: Range<usize>,
    /// Set for a value outside of strings, such as a number, which becomes a string: in how many strings it
    /// is nested.
    new_string_level: Option<u32>,
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

    /// The text with every match replaced, and what is `hidden` in any case. It may be JSON, and may be
    /// truncated anywhere. Without patterns, it stays as it is.
    pub fn redact(&self, text: String, hidden: &[Range<usize>]) -> String {
        if self.is_empty() {
            return text;
        }
        let redactions = self.find_redactions(&text, hidden.to_vec(), 0);
        if redactions.is_empty() {
            return text;
        }
        let mut output = String::with_capacity(text.len());
        let mut copied_to = 0;
        for Redaction { range, new_string_level } in redactions {
            output.push_str(text.get(copied_to..range.start).unwrap_or_default());
            let quote = new_string_level.map(nested_quote).unwrap_or_default();
            output.extend([&*quote, REDACTED_TEXT, &*quote]);
            copied_to = range.end;
        }
        output.push_str(text.get(copied_to..).unwrap_or_default());
        output
    }

    /// What is to be replaced in a text that is nested in `level` strings, in order. `outer_matches` are
    /// matches in the text around it.
    fn find_redactions(&self, text: &str, outer_matches: Vec<Range<usize>>, level: u32) -> Vec<Redaction> {
        let is_json = level < MAX_NESTING && looks_like_json(text);
        // What is nested in the strings of this text is found there again, but not matches that span strings.
        let searches_decoded = level == 0 || !is_json;
        let mut matches = self.find_matches(text, if searches_decoded { MAX_NESTING - level } else { 0 });
        matches.extend(outer_matches);
        merge_overlapping(&mut matches);
        if !is_json {
            let redaction = |range| Redaction { range, new_string_level: None };
            return matches.into_iter().map(redaction).collect();
        }
        let mut redactions = Vec::new();
        let mut position = 0;
        // Outside of strings, JSON has no other use for a quote than to start one.
        while let Some(offset) = text.as_bytes().get(position..).and_then(|rest| memchr(b'"', rest)) {
            let content_start = position + offset + 1;
            push_value_redactions(text, position..content_start - 1, &matches, level, &mut redactions);
            let content_end = end_of_content(text.as_bytes(), content_start);
            self.push_string_redactions(text, content_start..content_end, &matches, level, &mut redactions);
            position = content_end + 1;
        }
        push_value_redactions(text, position..text.len(), &matches, level, &mut redactions);
        redactions
    }

    /// The matches in a text, and in what its escapes stand for, however often they are escaped themselves, up
    /// to `max_decodings` times. The text need not be JSON.
    fn find_matches(&self, text: &str, max_decodings: u32) -> Vec<Range<usize>> {
        let mut matches = match decode_content(text) {
            // Without a single valid escape, the length stays the same.
            Cow::Owned(decoded) if max_decodings > 0 && decoded.len() < text.len() => {
                let mut matches = self.find_matches(&decoded, max_decodings - 1);
                translate(encoded_lengths(text), matches.iter_mut());
                matches
            }
            _ => Vec::new(),
        };
        for pattern in &self.patterns {
            let found = pattern.find_iter(text).map(|found| found.range());
            matches.extend(found.filter(|range| !range.is_empty()));
        }
        merge_overlapping(&mut matches);
        matches
    }

    /// Adds what is to be replaced in the content of a string, which is at `place` in `text`.
    fn push_string_redactions(
        &self,
        text: &str,
        place: Range<usize>,
        matches: &[Range<usize>],
        level: u32,
        redactions: &mut Vec<Redaction>,
    ) {
        let content = text.get(place.clone()).unwrap_or_default();
        let mut outer_matches = clip(matches, &place);
        let decoded = decode_content(content);
        if let Cow::Owned(_) = decoded {
            translate(piece_lengths(content), outer_matches.iter_mut());
            merge_overlapping(&mut outer_matches);
        }
        let mut inner = self.find_redactions(&decoded, outer_matches, level + 1);
        if let Cow::Owned(_) = decoded {
            translate(encoded_lengths(content), inner.iter_mut().map(|redaction| &mut redaction.range));
        }
        redactions.extend(inner.into_iter().map(|Redaction { range, new_string_level }| Redaction {
            range: place.start + range.start..place.start + range.end,
            new_string_level,
        }));
    }
}

/// Adds the values in `place`, which is outside of strings, of which a match has a part. Consecutive words
/// become one string: there are none in JSON, but the text may only begin like JSON.
fn push_value_redactions(
    text: &str,
    place: Range<usize>,
    matches: &[Range<usize>],
    level: u32,
    redactions: &mut Vec<Redaction>,
) {
    if !overlaps_any(matches, &place) {
        return;
    }
    let mut continues_last = false;
    let mut word_start = place.start;
    let is_structural = |character: char| "{}[],:".contains(character);
    let ends_word = |character: char| is_structural(character) || character.is_whitespace();
    for word in text.get(place).unwrap_or_default().split_inclusive(ends_word) {
        let end = word_start + word.trim_end_matches(ends_word).len();
        if end > word_start {
            let is_matched = overlaps_any(matches, &(word_start..end));
            match redactions.last_mut() {
                Some(last) if is_matched && continues_last => last.range.end = end,
                _ if is_matched => {
                    redactions.push(Redaction { range: word_start..end, new_string_level: Some(level) });
                }
                _ => {}
            }
            continues_last = is_matched;
        }
        continues_last &= !word.ends_with(is_structural);
        word_start += word.len();
    }
}

/// The lengths of the pieces of a content, decoded and as they are.
fn encoded_lengths(content: &str) -> impl Iterator<Item = (usize, usize)> {
    piece_lengths(content).map(|(encoded, decoded)| (decoded, encoded))
}

/// Whether a text begins like an object or array, or is one JSON string. It may be truncated.
fn looks_like_json(text: &str) -> bool {
    let text = text.trim_ascii();
    match text.as_bytes().first() {
        Some(b'{' | b'[') => true,
        Some(b'"') => end_of_content(text.as_bytes(), 1) + 1 >= text.len(),
        _ => false,
    }
}

/// Where the content of the JSON string ends that begins at `start`: at its closing quote, or with the text.
fn end_of_content(text: &[u8], start: usize) -> usize {
    let mut position = start;
    while let Some(offset) = text.get(position..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        position += offset;
        if text.get(position) == Some(&b'"') {
            return position;
        }
        position += 2;
    }
    text.len()
}

/// A quote as it is written in JSON that is nested in `level` strings.
fn nested_quote(level: u32) -> String {
    let backslashes = 2_usize.saturating_pow(level).saturating_sub(1);
    let mut quote = "\\".repeat(backslashes);
    quote.push('"');
    quote
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn redactor_for(patterns: &[&str]) -> Redactor {
        Redactor::new(patterns.iter().map(|pattern| Regex::new(pattern).unwrap()).collect())
    }

    fn redact_with(patterns: &[&str], text: &str) -> String {
        redactor_for(patterns).redact(text.to_owned(), &[])
    }

    /// A JSON string in a JSON string, as often as `levels`.
    fn nest(text: &str, levels: u32) -> String {
        (0..levels).fold(text.to_owned(), |text, _| Value::from(text).to_string())
    }

    #[test]
    fn patterns_match_decoded_json_strings() {
        let patterns = ["sk-[A-Za-z0-9]+", r"(?i)secret\s+word", "4[0-9]{15}", r#""password":\s*"[^"]+""#];
        for (text, expected) in [
            ("plain sk-abc text", "plain [redacted] text"),
            (r#"[{"content":"my sk-abc, yes"}]"#, r#"[{"content":"my [redacted], yes"}]"#),
            (r#"["s\u006b-\u0061bc"]"#, r#"["[redacted]"]"#),
            (r#"["a \"SECRET\nword\" b"]"#, r#"["a \"[redacted]\" b"]"#),
            (r#"{"sk-key":1,"n":"\\\""}"#, r#"{"[redacted]":1,"n":"\\\""}"#),
            (r#"["\ud800 sk-abc"]"#, r#"["\ud800 [redacted]"]"#),
            (r#"["\ud800 SECRET\nword"]"#, r#"["\ud800 [redacted]"]"#),
            (r#"[ "untouched\u0041" , 1.50 ]"#, r#"[ "untouched\u0041" , 1.50 ]"#),
            (
                r#"{"card":4111111111111111,"n":[1, 4222222222222222]}"#,
                r#"{"card":"[redacted]","n":[1, "[redacted]"]}"#,
            ),
            (r#"[-41111111111111119.5]"#, r#"["[redacted]"]"#),
            (
                r#"[{"a":"x \"password\": \"hunter2\" y"},{"b":"cut sk-abc"#,
                r#"[{"a":"x [redacted] y"},{"b":"cut [redacted]"#,
            ),
            (r#"[{"b":"cut SECRET\nword \u00"#, r#"[{"b":"cut [redacted] \u00"#),
            (r#"{"password": "hunter2","n":1}"#, r#"{"[redacted]": "[redacted]","n":1}"#),
            ("[no json sk-abc", "[no json \"[redacted]\""),
            ("[1] a secret word, too", "[1] a \"[redacted]\", too"),
            (r#""a quote" and sk-abc"#, r#""a quote" and [redacted]"#),
            ("", ""),
        ] {
            assert_eq!(redact_with(&patterns, text), expected, "{text}");
        }
        assert_eq!(Redactor::default().redact("sk-abc".to_owned(), &[]), "sk-abc");
    }

    #[test]
    fn patterns_match_json_that_is_nested_in_strings() {
        let patterns = ["Jürgen Müller", r"(?i)password\s+is\s+\S+", "^sk-[a-z]+$", "4[0-9]{15}", r"a/b"];
        for (text, expected) in [
            (r#"{"name":"J\u00fcrgen M\u00FCller"}"#, r#"{"name":"[redacted]"}"#),
            (r#"{"note":"the password\nis hunter2"}"#, r#"{"note":"the [redacted]"}"#),
            (
                r#"{"n":["sk-abc","no sk-abc"],"sk-abc":1}"#,
                r#"{"n":["[redacted]","no sk-abc"],"[redacted]":1}"#,
            ),
            (r#"{"card":4111111111111111}"#, r#"{"card":"[redacted]"}"#),
            (r#"{"J\u00fcrgen M\u00fcller":"a\/b, \/"}"#, r#"{"[redacted]":"[redacted], \/"}"#),
            (r#"  ["Jürgen M\u00fcller"]"#, r#"  ["[redacted]"]"#),
            // Half of a surrogate pair, before and within what is nested.
            (r#"{"a":"\ud83d J\u00fcrgen M\u00fcller \ude00"}"#, r#"{"a":"\ud83d [redacted] \ude00"}"#),
            (r#"{"a\udc00":"\ud83dsk","n":["sk-\u0061bc"]}"#, r#"{"a\udc00":"\ud83dsk","n":["[redacted]"]}"#),
            (r"\ud83d J\u00fcrgen M\u00fcller \ude00\ud83d", r"\ud83d [redacted] \ude00\ud83d"),
            // Cut, several documents, not JSON at all, or JSON within other text.
            (r#"{"name":"J\u00fcrgen M\u00fcller and"#, r#"{"name":"[redacted] and"#),
            (r#"{"a":"sk-abc"}{"a":"sk-def"}"#, r#"{"a":"[redacted]"}{"a":"[redacted]"}"#),
            (r"C:\u004a\u00fcrgen M\u00fcller\x", r"C:[redacted]\x"),
            (r#"5" of {"name":"J\u00fcrgen M\u00fcller"}"#, r#"5" of {"name":"[redacted]"}"#),
        ] {
            for levels in 0..=4 {
                let (text, expected) = (nest(text, levels), nest(expected, levels));
                assert_eq!(redact_with(&patterns, &text), expected, "{text}");
                // As one of the strings of JSON that is cut off.
                if levels > 0 {
                    let (text, expected) = (format!("[{{\"a\":[{text}"), format!("[{{\"a\":[{expected}"));
                    assert_eq!(redact_with(&patterns, &text), expected, "{text}");
                }
            }
        }
        // A name with its value, of which any part may be escaped.
        for text in [r#"{"name":"J\u00fcrgen"}"#, r#"{"n\u0061me":"Jürgen"}"#] {
            for levels in 0..=3 {
                let expected = nest(r#"{"[redacted]":"[redacted]"}"#, levels);
                assert_eq!(redact_with(&[r#""name":\s*"Jürgen""#], &nest(text, levels)), expected);
            }
        }
    }

    #[test]
    fn arguments_and_results_of_tools_are_seen_through() {
        let patterns = ["sk-[A-Za-z]+"];
        for (text, expected) in [
            (r#""{\"key\":\"sk-abc\\u0041\"}""#, r#""{\"key\":\"[redacted]\"}""#),
            (r#"{"key":"s\u006b-abc\u0041 x"}"#, r#"{"key":"[redacted] x"}"#),
            // Of a call, and its result, which has the text of another service within.
            (
                r#"[{"tool_calls":[{"function":{"name":"f","arguments":"{\"key\":\"sk-abc\\u0041\"}"}}]},{"role":"tool","content":"{\"body\":\"{\\\"key\\\":\\\"s\\\\u006b-abc\\\"}\",\"n\":1}"}]"#,
                r#"[{"tool_calls":[{"function":{"name":"f","arguments":"{\"key\":\"[redacted]\"}"}}]},{"role":"tool","content":"{\"body\":\"{\\\"key\\\":\\\"[redacted]\\\"}\",\"n\":1}"}]"#,
            ),
            // Words before the JSON, and arguments that are cut off.
            (
                r#"[{"content":"The result: {\"key\":\"s\\u006b-abc\"}"}]"#,
                r#"[{"content":"The result: {\"key\":\"[redacted]\"}"}]"#,
            ),
            (
                r#"[{"arguments":"{\"key\":\"s\\u006b-abc\\u00"#,
                r#"[{"arguments":"{\"key\":\"[redacted]\\u00"#,
            ),
        ] {
            assert_eq!(redact_with(&patterns, text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_hidden_is_replaced_within_strings() {
        let redact = |text: &str, hidden: Range<usize>| {
            redactor_for(&["sk-[a-z]+"]).redact(text.to_owned(), &[hidden])
        };
        assert_eq!(redact("keep sk-abc and 4111", 14..20), "keep [redacted] an[redacted]");
        assert_eq!(redact("sk-abc 41", 5..9), "[redacted]");
        assert_eq!(redact(r#"["a\n4111",7,"b"]"#, 2..10), r#"["[redacted]",7,"b"]"#);
        assert_eq!(redact(r#"["a\n4111",7,"b"]"#, 4..10), r#"["a[redacted]",7,"b"]"#);
    }

    #[test]
    fn escapes_are_replaced_whole() {
        for (pattern, text, expected) in [
            ("n[a-z]+", r#"["\nabc"]"#, r#"["[redacted]"]"#),
            ("00fc", r#"["\u00fc"]"#, r#"["[redacted]"]"#),
            ("n[a-z]+", r#"["{\"a\":\"\\nabc\"}"]"#, r#"["{\"a\":\"[redacted]\"}"]"#),
            ("", r#"["a"]"#, r#"["a"]"#),
            ("x*", r#"["axb"]"#, r#"["a[redacted]b"]"#),
        ] {
            assert_eq!(redact_with(&[pattern], text), expected, "{pattern}");
        }
    }

    #[test]
    fn hostile_text_does_not_slow_matching() {
        let redactor = redactor_for(&["(a+)+b", "(x|x)*y", r#""password":\s*"[^"]+""#]);
        for hostile in [
            "a".repeat(200_000) + &"x".repeat(200_000),
            "\"[".repeat(100_000),
            "[\"".repeat(100_000),
            format!("[\"{}\"]", r"\u005cu005cu005cu005cu005cu005cu005cu005cu0061".repeat(4_000)),
            "\\".repeat(200_000),
            nest("[\"xxxxxxxx", 14),
        ] {
            let started = Instant::now();
            assert_eq!(redactor.redact(hostile.clone(), &[]).len(), hostile.len());
            assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        }
    }

    /// Whether a secret can be read in a value: in its strings, keys, numbers and in JSON that is nested.
    fn contains_secret(value: &Value) -> bool {
        match value {
            Value::String(text) => {
                text.contains("sk-é") || serde_json::from_str(text).is_ok_and(|inner| contains_secret(&inner))
            }
            Value::Array(items) => items.iter().any(contains_secret),
            Value::Object(pairs) => {
                pairs.iter().any(|(key, value)| key.contains("sk-é") || contains_secret(value))
            }
            other => other.to_string().contains("77"),
        }
    }

    /// JSON with all characters of its strings escaped that may be, or only those that must be.
    fn to_json(value: &Value, escapes_all: bool) -> String {
        if !escapes_all {
            return value.to_string();
        }
        let mut json = String::new();
        for character in value.to_string().chars() {
            match character {
                'é' | 'k' => json.push_str(&format!("\\u{:04x}", u32::from(character))),
                other => json.push(other),
            }
        }
        json
    }

    fn any_nested_json() -> impl Strategy<Value = Value> {
        let text = r#"(sk-é|é|[a-z"\\/\n{}\[\]:,]|77| ){0,5}"#;
        let leaf =
            prop_oneof![text.prop_map(Value::from), prop_oneof![Just(1), Just(5770)].prop_map(Value::from)];
        leaf.prop_recursive(5, 24, 4, move |inner| {
            prop_oneof![
                (inner.clone(), any::<bool>()).prop_map(|(value, all)| Value::from(to_json(&value, all))),
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((text, inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_stays_json_and_no_secret_is_left_in_it(value in any_nested_json(), escapes_all: bool) {
            let text = to_json(&value, escapes_all);
            let redacted = redact_with(&["sk-é", "77", r#"[a-z]":"#], &format!("[{text}]"));
            let redacted: Value = serde_json::from_str(&redacted).unwrap();
            prop_assert!(!contains_secret(&redacted), "{}", redacted);
            // Without a match, nothing changes.
            prop_assert_eq!(redact_with(&["no match"], &text), text);
        }

        #[test]
        fn half_of_a_surrogate_pair_hides_no_secret(
            parts in proptest::collection::vec(r"(sk-x|s\\u006b-x|\\ud83d|\\ude00|\\ud83d\\ude00| |é)", 0..8),
            levels in 0_u32..5,
        ) {
            let content = parts.concat();
            let nested = (0..levels).fold(format!("[\"{content}\"]"), |text, _| format!("[{}]", Value::from(text)));
            let mut view = redact_with(&["sk-x"], &nested);
            for _ in 0..=levels {
                view = decode_content(&view).into_owned();
                prop_assert!(!view.contains("sk-x"), "{} became {}", nested, view);
            }
            let count = parts.iter().filter(|part| part.ends_with("-x")).count();
            prop_assert_eq!(view.matches(REDACTED_TEXT).count(), count, "{}", view);
        }

        #[test]
        fn no_secret_is_left_in_text_of_any_kind(text in r#"(sk|-|\\u006b|\\\\u002d|\\u005cu0073|\\\\\\\\n|\\|"|[\[{}:, é]|\\n){0,24}"#) {
            let redacted = redact_with(&[r"sk-"], &text);
            let mut view = redacted.clone();
            for _ in 0..6 {
                prop_assert!(!view.contains("sk-"), "{} became {}", text, redacted);
                view = decode_content(&view).into_owned();
            }
        }
    }
}
