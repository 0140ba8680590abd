//! Token counts of streams that broke off before they told theirs: counted with the model's own
//! vocabulary, off the threads of requests, and marked as estimated.

use serde_json::Value;
use tiktoken_rs::{CoreBPE, cl100k_base_singleton, o200k_base_singleton};

use crate::azure::response::usage::Usage;

/// Most bytes of a text that are counted; the rest counts as its beginning does.
const COUNTED: usize = 1024 * 1024;
/// How much is counted at a time.
const PIECE: usize = 16 * 1024;
/// Longer bodies are not looked into.
const BODY_MAX: usize = 4 * 1024 * 1024;
/// What a message takes beside its text (OpenAI, "How to count tokens with tiktoken").
const MESSAGE: u64 = 3;
/// What an answer's beginning takes.
const ANSWER: u64 = 3;
/// Deepest nesting that is looked into.
const DEPTH: usize = 32;

/// What a request and the part of its answer that came have probably cost. Without the request's
/// body, or with pictures or sound in it, its part is not known.
/// Without text nothing is known of the answer: a model may have reasoned long.
pub fn estimate(model: Option<&str>, body: Option<&[u8]>, completion: Option<&str>) -> Usage {
    let vocabulary = vocabulary(model.unwrap_or_default());
    let output = completion.map(|completion| count(vocabulary, completion));
    let input = body.and_then(|body| prompt(vocabulary, body));
    let total = input.zip(output).map(|(input, output)| input + output);
    Usage { input, output, cached: None, reasoning: None, total }
}

/// The vocabulary of a model; that of the newer ones where it is not known.
fn vocabulary(model: &str) -> &'static CoreBPE {
    let older = ["gpt-4-", "gpt-35", "gpt-3.5", "text-embedding"];
    if model == "gpt-4" || older.iter().any(|name| model.starts_with(name)) {
        cl100k_base_singleton()
    } else {
        o200k_base_singleton()
    }
}

fn count(vocabulary: &CoreBPE, text: &str) -> u64 {
    let counted = text.get(..text.floor_char_boundary(COUNTED.min(text.len()))).unwrap_or(text);
    let (mut tokens, mut rest) = (0, counted);
    while !rest.is_empty() {
        // In pieces: the vocabulary's patterns take memory with the length of what they match.
        let end = rest.ceil_char_boundary(PIECE.min(rest.len()));
        let (piece, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        tokens += vocabulary.count_ordinary(piece) as u64;
        rest = after;
    }
    if counted.len() == text.len() || counted.is_empty() {
        return tokens;
    }
    tokens.saturating_mul(text.len() as u64) / counted.len() as u64
}

fn prompt(vocabulary: &CoreBPE, body: &[u8]) -> Option<u64> {
    let body: Value = serde_json::from_slice(Some(body).filter(|body| body.len() <= BODY_MAX)?).ok()?;
    let parts = ["messages", "input", "instructions", "prompt", "tools", "functions"];
    let mut texts = String::new();
    let mut messages = 0;
    for part in parts.iter().filter_map(|key| body.get(key)) {
        if let Value::Array(items) = part {
            messages += items.iter().filter(|item| item.get("role").is_some()).count() as u64;
        }
        gather(part, DEPTH, &mut texts)?;
    }
    Some(count(vocabulary, &texts) + messages * MESSAGE + ANSWER)
}

/// All text in a value; `None` when there is something in it that is not counted in words.
fn gather(value: &Value, depth: usize, texts: &mut String) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::String(text) if text.starts_with("data:") => return None,
        Value::String(text) => {
            texts.push_str(text);
            texts.push('\n');
        }
        Value::Array(items) => items.iter().try_for_each(|item| gather(item, depth, texts))?,
        Value::Object(fields) => {
            let binary = ["image_url", "input_audio", "file", "file_id"];
            if fields.keys().any(|key| binary.contains(&key.as_str())) {
                return None;
            }
            let told = |key: &str| !matches!(key, "type" | "id" | "role" | "detail");
            fields
                .iter()
                .filter(|(key, _)| told(key))
                .try_for_each(|(_, value)| gather(value, depth, texts))?;
        }
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_counted_and_pictures_are_not_known() {
        let hello = br#"{"messages":[{"role":"user","content":"Hello world, how are you?"}]}"#;
        let usage = estimate(Some("gpt-4o-2024-11-20"), Some(hello), Some("I am fine, thank you."));
        assert_eq!(usage.output, Some(7));
        let input = usage.input.unwrap();
        assert!((12..=16).contains(&input), "{input}");
        assert_eq!(usage.total, Some(input + 7));
        let parts = br#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hello world, how are you?"}]}]}"#;
        assert_eq!(estimate(Some("gpt-4o"), Some(parts), None).input, Some(input));
        let picture = br#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}"#;
        let usage = estimate(None, Some(picture), Some("a cat"));
        assert_eq!((usage.input, usage.total, usage.output), (None, None, Some(2)));
        for body in [&b"no json"[..], br#"{"input":"data:image/png;base64,AAAA"}"#] {
            assert_eq!(estimate(None, Some(body), None).input, None);
        }
        assert_eq!(estimate(Some("gpt-4"), None, Some("Hello world")).output, Some(2));
    }

    #[test]
    fn hostile_text_is_counted_too() {
        for text in [" ".repeat(1_100_000), "a".repeat(1_100_000), "\n\t ".repeat(300_000)] {
            assert!(count(o200k_base_singleton(), &text) > 0);
        }
    }

    #[test]
    fn long_texts_are_counted_in_part() {
        let long = "word ".repeat(400_000);
        let counted = count(o200k_base_singleton(), &long);
        assert!((390_000..=410_000).contains(&counted), "{counted}");
    }
}
