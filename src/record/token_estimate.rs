//! Estimates the token counts of a stream that broke off before its usage arrived, with the tokenizer of the
//! model.
//!
//! A large text takes long: this runs on the threads of the writer only.

use std::time::{Duration, Instant};

use tiktoken_rs::{CoreBPE, cl100k_base, o200k_base};

use crate::azure::request::prompt_sample::PromptSample;
use crate::azure::response::usage::TokenUsage;

/// How much text is tokenized at a time.
const TOKENIZER_CHUNK_BYTES: usize = 16 * 1024;
/// Tokens of a message besides its text (OpenAI Cookbook, "How to count tokens with tiktoken").
const TOKENS_PER_MESSAGE: u64 = 3;
/// Tokens that start the reply; they count as input (same source).
const REPLY_PRIMING_TOKENS: u64 = 3;
/// A tokenizer takes some 20 MiB. It is given back when it was not used for this long.
const MAX_IDLE_TIME: Duration = Duration::from_secs(20);

/// Tokenizers, which are loaded when they are needed.
#[derive(Default)]
pub struct TokenEstimator {
    /// That of the newer models.
    o200k: Option<CoreBPE>,
    /// That of GPT-4, GPT-3.5 and the embeddings.
    cl100k: Option<CoreBPE>,
    last_used: Option<Instant>,
}

impl TokenEstimator {
    /// Estimates the tokens of a request and of the part of its response that arrived: `completion` is its
    /// text, or the beginning of it, and the length of all of it. Of each text at most `max_tokenized_bytes`
    /// are tokenized; the count is extrapolated to the rest. The input is unknown without a sample. The
    /// output is unknown without completion text: the model may have reasoned for long.
    pub fn estimate_usage(
        &mut self,
        model: Option<&str>,
        prompt: Option<&PromptSample>,
        completion: Option<(&str, u64)>,
        max_tokenized_bytes: usize,
    ) -> TokenUsage {
        self.last_used = Some(Instant::now());
        let Some(tokenizer) = self.tokenizer_for_model(model.unwrap_or_default()) else {
            return TokenUsage::default();
        };
        let output = completion.map(|(text, total_bytes)| {
            extrapolated_count(tokenizer, text, text.len() as u64, total_bytes, max_tokenized_bytes)
        });
        let input = prompt.map(|sample| {
            let (sampled, total) = (sample.sampled_bytes, sample.total_bytes);
            let text = extrapolated_count(tokenizer, &sample.text, sampled, total, max_tokenized_bytes);
            text + sample.message_count * TOKENS_PER_MESSAGE + REPLY_PRIMING_TOKENS
        });
        let total = input.zip(output).map(|(input, output)| input + output);
        TokenUsage { input, output, total, ..TokenUsage::default() }
    }

    /// The tokenizer of a model; for an unknown model, that of the newer ones.
    fn tokenizer_for_model(&mut self, model: &str) -> Option<&CoreBPE> {
        let older = ["gpt-4-", "gpt-35", "gpt-3.5", "text-embedding"];
        let (tokenizer, load): (_, fn() -> _) =
            if model == "gpt-4" || older.iter().any(|name| model.starts_with(name)) {
                (&mut self.cl100k, cl100k_base)
            } else {
                (&mut self.o200k, o200k_base)
            };
        if tokenizer.is_none() {
            *tokenizer = load().ok();
        }
        tokenizer.as_ref()
    }

    /// Gives the memory of the tokenizers back if they were not used lately.
    pub fn unload_if_idle(&mut self, now: Instant) {
        if self.last_used.is_some_and(|last_used| now.saturating_duration_since(last_used) >= MAX_IDLE_TIME) {
            *self = Self::default();
        }
    }
}

/// The number of tokens of a text of `total_bytes`, of which `text` is a sample made from `sampled_bytes`.
fn extrapolated_count(
    tokenizer: &CoreBPE,
    text: &str,
    sampled_bytes: u64,
    total_bytes: u64,
    max_tokenized_bytes: usize,
) -> u64 {
    let tokenized = text.get(..text.floor_char_boundary(max_tokenized_bytes.min(text.len()))).unwrap_or(text);
    let tokens = count_tokens(tokenizer, tokenized);
    let sampled_bytes = sampled_bytes as f64 * tokenized.len() as f64 / text.len().max(1) as f64;
    if sampled_bytes < 1.0 || total_bytes as f64 <= sampled_bytes {
        return tokens;
    }
    (tokens as f64 * total_bytes as f64 / sampled_bytes).round() as u64
}

/// The number of tokens in a text.
fn count_tokens(tokenizer: &CoreBPE, text: &str) -> u64 {
    let (mut tokens, mut rest) = (0, text);
    while !rest.is_empty() {
        // In chunks: the regular expressions of the tokenizer need memory in proportion to their match.
        let end = rest.ceil_char_boundary(TOKENIZER_CHUNK_BYTES.min(rest.len()));
        let (chunk, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        tokens += tokenizer.count_ordinary(chunk) as u64;
        rest = after;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(model: Option<&str>, body: Option<&[u8]>, completion: Option<&str>) -> TokenUsage {
        let sample = body.and_then(|body| PromptSample::from_body(body, 64 * 1024));
        let completion = completion.map(|text| (text, text.len() as u64));
        TokenEstimator::default().estimate_usage(model, sample.as_ref(), completion, 64 * 1024)
    }

    #[test]
    fn text_is_counted_and_images_make_the_input_unknown() {
        let hello = br#"{"messages":[{"role":"user","content":"Hello world, how are you?"}]}"#;
        let usage = estimate(Some("gpt-4o-2024-11-20"), Some(hello), Some("I am fine, thank you."));
        assert_eq!(usage.output, Some(7));
        let input = usage.input.unwrap();
        assert!((12..=16).contains(&input), "{input}");
        assert_eq!(usage.total, Some(input + 7));
        let parts = br#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hello world, how are you?"}]}]}"#;
        assert_eq!(estimate(Some("gpt-4o"), Some(parts), None).input, Some(input));
        let broken = br#"{"messages":[{"role":"user","content":"Hello world, how are you? \ud83d"}]}"#;
        assert!(estimate(Some("gpt-4o"), Some(broken), None).input > Some(input));
        let picture = br#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}"#;
        let usage = estimate(None, Some(picture), Some("a cat"));
        assert_eq!((usage.input, usage.total, usage.output), (None, None, Some(2)));
        for body in [&b"no json"[..], br#"{"input":"data:image/png;base64,AAAA"}"#] {
            assert_eq!(estimate(None, Some(body), None).input, None);
        }
        assert_eq!(estimate(Some("gpt-4"), None, Some("Hello world")).output, Some(2));
    }

    #[test]
    fn hostile_text_does_not_exhaust_the_tokenizer() {
        let tokenizer = o200k_base().unwrap();
        for text in [" ".repeat(1_100_000), "a".repeat(1_100_000), "\n\t ".repeat(300_000)] {
            assert!(count_tokens(&tokenizer, &text) > 0);
        }
    }

    #[test]
    fn long_texts_are_extrapolated_from_a_sample() {
        let long = "word ".repeat(400_000);
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}]}}"#);
        let sample = PromptSample::from_body(body.as_bytes(), 64 * 1024).unwrap();
        let beginning = &long[..64 * 1024];
        let mut estimator = TokenEstimator::default();
        for max_tokenized_bytes in [64 * 1024, 8 * 1024, 1024] {
            let completion = Some((beginning, long.len() as u64));
            let usage = estimator.estimate_usage(None, Some(&sample), completion, max_tokenized_bytes);
            for counted in [usage.input.unwrap(), usage.output.unwrap()] {
                assert!((380_000..=420_000).contains(&counted), "{counted} of {max_tokenized_bytes} bytes");
            }
        }
    }

    #[test]
    fn tokenizers_are_unloaded_when_they_are_idle() {
        let mut estimator = TokenEstimator::default();
        estimator.estimate_usage(None, None, Some(("text", 4)), 1024);
        estimator.unload_if_idle(Instant::now());
        assert!(estimator.o200k.is_some());
        estimator.unload_if_idle(Instant::now() + MAX_IDLE_TIME);
        assert!(estimator.o200k.is_none());
    }
}
