//! Estimates the token counts of a stream that broke off before its usage arrived, with the tokenizer of the
//! model.
//!
//! A large text takes long: this runs on the threads of the writer only.

use serde_json::Value;
use tiktoken_rs::{CoreBPE, cl100k_base_singleton, o200k_base_singleton};

use crate::azure::json_text::{replace_surrogate_halves, text_from_bytes};
use crate::azure::response::usage::TokenUsage;

/// The most bytes of a text that are tokenized. The count is extrapolated to the rest.
const MAX_TOKENIZED_BYTES: usize = 1024 * 1024;
/// How much text is tokenized at a time.
const TOKENIZER_CHUNK_BYTES: usize = 16 * 1024;
/// The tokens of a longer request body are not estimated.
const MAX_PARSED_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Tokens of a message besides its text (OpenAI Cookbook, "How to count tokens with tiktoken").
const TOKENS_PER_MESSAGE: u64 = 3;
/// Tokens that start the reply; they count as input (same source).
const REPLY_PRIMING_TOKENS: u64 = 3;
/// The tokens of a request body that is nested deeper are not estimated.
const MAX_JSON_DEPTH: usize = 32;

/// Estimates the tokens of a request and of the part of its response that arrived. The input is unknown
/// without the request body, or if it contains images or audio. The output is unknown without completion
/// text: the model may have reasoned for long.
pub fn estimate_usage(model: Option<&str>, body: Option<&[u8]>, completion: Option<&str>) -> TokenUsage {
    let tokenizer = tokenizer_for_model(model.unwrap_or_default());
    let output = completion.map(|completion| count_tokens(tokenizer, completion));
    let input = body.and_then(|body| estimate_prompt_tokens(tokenizer, body));
    let total = input.zip(output).map(|(input, output)| input + output);
    TokenUsage { input, output, cached: None, reasoning: None, total }
}

/// The tokenizer of a model; for an unknown model, that of the newer ones.
fn tokenizer_for_model(model: &str) -> &'static CoreBPE {
    let older = ["gpt-4-", "gpt-35", "gpt-3.5", "text-embedding"];
    if model == "gpt-4" || older.iter().any(|name| model.starts_with(name)) {
        cl100k_base_singleton()
    } else {
        o200k_base_singleton()
    }
}

/// The number of tokens in a text, extrapolated for a very long one.
fn count_tokens(tokenizer: &CoreBPE, text: &str) -> u64 {
    let tokenized = text.get(..text.floor_char_boundary(MAX_TOKENIZED_BYTES.min(text.len()))).unwrap_or(text);
    let (mut tokens, mut rest) = (0, tokenized);
    while !rest.is_empty() {
        // In chunks: the regular expressions of the tokenizer need memory in proportion to their match.
        let end = rest.ceil_char_boundary(TOKENIZER_CHUNK_BYTES.min(rest.len()));
        let (chunk, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        tokens += tokenizer.count_ordinary(chunk) as u64;
        rest = after;
    }
    if tokenized.len() == text.len() || tokenized.is_empty() {
        return tokens;
    }
    tokens.saturating_mul(text.len() as u64) / tokenized.len() as u64
}

/// The number of tokens in the prompt of a request body; `None` if it cannot be estimated.
fn estimate_prompt_tokens(tokenizer: &CoreBPE, body: &[u8]) -> Option<u64> {
    let body = text_from_bytes(Some(body).filter(|body| body.len() <= MAX_PARSED_BODY_BYTES)?);
    let body: Value = serde_json::from_str(&replace_surrogate_halves(&body)).ok()?;
    let parts = ["messages", "input", "instructions", "prompt", "tools", "functions"];
    let mut texts = String::new();
    let mut messages = 0;
    for part in parts.iter().filter_map(|key| body.get(key)) {
        if let Value::Array(items) = part {
            messages += items.iter().filter(|item| item.get("role").is_some()).count() as u64;
        }
        collect_text(part, MAX_JSON_DEPTH, &mut texts)?;
    }
    Some(count_tokens(tokenizer, &texts) + messages * TOKENS_PER_MESSAGE + REPLY_PRIMING_TOKENS)
}

/// Collects all text in a value. `None` if it contains something whose tokens do not depend on text, such as
/// an image.
fn collect_text(value: &Value, depth: usize, texts: &mut String) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::String(text) if text.starts_with("data:") => return None,
        Value::String(text) => {
            texts.push_str(text);
            texts.push('\n');
        }
        Value::Array(items) => items.iter().try_for_each(|item| collect_text(item, depth, texts))?,
        Value::Object(fields) => {
            let binary = ["image_url", "input_audio", "file", "file_id"];
            if fields.keys().any(|key| binary.contains(&key.as_str())) {
                return None;
            }
            let is_text_field = |key: &str| !matches!(key, "type" | "id" | "role" | "detail");
            fields
                .iter()
                .filter(|(key, _)| is_text_field(key))
                .try_for_each(|(_, value)| collect_text(value, depth, texts))?;
        }
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_counted_and_images_make_the_input_unknown() {
        let hello = br#"{"messages":[{"role":"user","content":"Hello world, how are you?"}]}"#;
        let usage = estimate_usage(Some("gpt-4o-2024-11-20"), Some(hello), Some("I am fine, thank you."));
        assert_eq!(usage.output, Some(7));
        let input = usage.input.unwrap();
        assert!((12..=16).contains(&input), "{input}");
        assert_eq!(usage.total, Some(input + 7));
        let parts = br#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hello world, how are you?"}]}]}"#;
        assert_eq!(estimate_usage(Some("gpt-4o"), Some(parts), None).input, Some(input));
        let broken = br#"{"messages":[{"role":"user","content":"Hello world, how are you? \ud83d"}]}"#;
        assert!(estimate_usage(Some("gpt-4o"), Some(broken), None).input > Some(input));
        let picture = br#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}"#;
        let usage = estimate_usage(None, Some(picture), Some("a cat"));
        assert_eq!((usage.input, usage.total, usage.output), (None, None, Some(2)));
        for body in [&b"no json"[..], br#"{"input":"data:image/png;base64,AAAA"}"#] {
            assert_eq!(estimate_usage(None, Some(body), None).input, None);
        }
        assert_eq!(estimate_usage(Some("gpt-4"), None, Some("Hello world")).output, Some(2));
    }

    #[test]
    fn hostile_text_does_not_exhaust_the_tokenizer() {
        for text in [" ".repeat(1_100_000), "a".repeat(1_100_000), "\n\t ".repeat(300_000)] {
            assert!(count_tokens(o200k_base_singleton(), &text) > 0);
        }
    }

    #[test]
    fn long_texts_are_extrapolated_from_their_beginning() {
        let long = "word ".repeat(400_000);
        let counted = count_tokens(o200k_base_singleton(), &long);
        assert!((390_000..=410_000).contains(&counted), "{counted}");
    }
}
