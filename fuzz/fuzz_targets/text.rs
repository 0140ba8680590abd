//! Redaction leaves nothing that a pattern matches, however often the text is decoded, and JSON stays JSON.
//! Decoding does not depend on where a text is split.
#![no_main]

use std::sync::LazyLock;

use aoai_lb::azure::json_text::{self, ContentJoiner};
use aoai_lb::record::redact::Redactor;
use libfuzzer_sys::fuzz_target;
use regex::Regex;
use serde::de::IgnoredAny;

static REDACTOR: LazyLock<Redactor> = LazyLock::new(|| {
    let patterns = ["sk-", "é+", "77", "^a|b$", r#""c":"#];
    Redactor::new(patterns.iter().map(|pattern| Regex::new(pattern).expect("the pattern is valid")).collect())
});

fn is_json(text: &str) -> bool {
    text.trim_ascii().starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fuzz_target!(|input: (usize, &str)| {
    let (split, text) = input;
    let redacted = REDACTOR.redact(text.to_owned(), &[]);
    assert!(!is_json(text) || is_json(&redacted));
    let mut view = redacted;
    for _ in 0..4 {
        assert!(!view.contains("sk-"));
        view = json_text::decode_content(&view).into_owned();
    }
    assert_eq!(
        json_text::decode_content(&json_text::replace_surrogate_halves(text)),
        json_text::decode_content(text)
    );

    let decoded = json_text::decode_content(text);
    let lengths = json_text::piece_lengths(text).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert_eq!(lengths, (text.len(), decoded.len()));
    // An escape is never split over two strings.
    let escapes = json_text::piece_lengths(text).scan(0, |end, (length, _)| {
        *end += length;
        Some(*end)
    });
    let boundaries: Vec<usize> = escapes.collect();
    let Some(boundary) = boundaries.get(split % boundaries.len().max(1)) else { return };
    let (first, second) = text.split_at(*boundary);
    let mut joiner = ContentJoiner::default();
    let mut joined = joiner.decode_next(first).into_owned() + &joiner.decode_next(second);
    joined.extend(joiner.has_pending_half().then_some('\u{fffd}'));
    // A backslash that is no escape can become one with what follows it.
    assert!(joined == decoded || first.ends_with('\\'));
});
