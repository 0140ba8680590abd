//! Counts the tokens of requests and responses without reported usage, with the tokenizer of the model.
//!
//! A large text takes long: this runs on the threads of the writer only.

use std::time::{Duration, Instant};

use tiktoken_rs::{CoreBPE, cl100k_base, o200k_base};

use crate::azure::request::prompt_sample::{PromptSample, TEXT_SEPARATOR};
use crate::azure::response::capture::OutputSample;
use crate::azure::response::usage::TokenUsage;
use crate::azure::token_encoding::TokenEncoding;
use crate::azure::usage_missing::UsageMissing;

/// How much text is tokenized at a time.
const TOKENIZER_CHUNK_BYTES: usize = 16 * 1024;
/// A text that is too long is tokenized in parts, of which each has at least so many bytes.
const MIN_PART_BYTES: usize = 512;
/// The most such parts.
const MAX_PARTS: usize = 16;
/// How far a part begins or ends earlier, at a space, so that no word is cut.
const MAX_WORD_BYTES: usize = 32;
/// A tokenizer takes some 20 MiB. It is given back when it was not used for this long.
const MAX_IDLE_TIME: Duration = Duration::from_secs(20);

/// Tokenizers, which are loaded when they are needed.
#[derive(Default)]
pub struct TokenEstimator {
    o200k: Option<CoreBPE>,
    cl100k: Option<CoreBPE>,
    last_used: Option<Instant>,
}

impl TokenEstimator {
    /// Estimates the tokens of a request and its response. `model` is the name of the model, or of a deployment that is
    /// named after one. `output` is `None` if there is none, as for embeddings. Of each text at most `max_tokenized_bytes` are tokenized; the
    /// count is extrapolated to the rest.
    ///
    /// # Errors
    /// If the encoding or the tokens of an image are not known.
    pub fn estimate_usage(
        &mut self,
        model: &str,
        prompt: &PromptSample,
        output: Option<&OutputSample>,
        max_tokenized_bytes: usize,
    ) -> Result<TokenUsage, UsageMissing> {
        let encoding = TokenEncoding::of_model(model).ok_or(UsageMissing::EncodingUnknown)?;
        let images = prompt.images.iter().map(|image| image.tokens(model).ok_or(UsageMissing::Image));
        let image_tokens: u64 = images.sum::<Result<u64, _>>()?;
        self.last_used = Some(Instant::now());
        let tokenizer = self.tokenizer(encoding).ok_or(UsageMissing::EncodingUnknown)?;
        let count = |text: &str, sampled, total| {
            extrapolated_count(tokenizer, text, sampled, total, max_tokenized_bytes)
        };
        let input = count(&prompt.text, prompt.sampled_bytes, prompt.total_bytes);
        let input = input + prompt.fixed_tokens + image_tokens;
        let output = output.map(|sample| count(&sample.text, sample.sampled_bytes, sample.total_bytes));
        let total = Some(input + output.unwrap_or_default());
        Ok(TokenUsage { input: Some(input), output, total, ..TokenUsage::default() })
    }

    fn tokenizer(&mut self, encoding: TokenEncoding) -> Option<&CoreBPE> {
        let (tokenizer, load): (_, fn() -> _) = match encoding {
            TokenEncoding::O200k => (&mut self.o200k, o200k_base),
            TokenEncoding::Cl100k => (&mut self.cl100k, cl100k_base),
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
    let (tokens, tokenized_bytes) = if text.len() <= max_tokenized_bytes {
        (count_tokens(tokenizer, text), text.len())
    } else {
        count_tokens_of_parts(tokenizer, text, max_tokenized_bytes)
    };
    let sampled_bytes = sampled_bytes as f64 * tokenized_bytes as f64 / text.len().max(1) as f64;
    if sampled_bytes < 1.0 || total_bytes as f64 <= sampled_bytes {
        return tokens;
    }
    (tokens as f64 * total_bytes as f64 / sampled_bytes).round() as u64
}

/// The number of tokens in parts of a text from its beginning to its end, and the length of these parts, which is
/// about `max_bytes`.
fn count_tokens_of_parts(tokenizer: &CoreBPE, text: &str, max_bytes: usize) -> (u64, usize) {
    let parts = (max_bytes / MIN_PART_BYTES).clamp(1, MAX_PARTS);
    let (mut tokens, mut bytes) = (0, 0);
    for part in 0..parts {
        let start = text.len() / parts * part;
        let end = (start + max_bytes / parts).min(text.len());
        let part = text.get(word_boundary(text, start)..word_boundary(text, end)).unwrap_or_default();
        tokens += count_tokens(tokenizer, part);
        bytes += part.len();
    }
    (tokens, bytes)
}

/// A place in a text at or shortly before `position`, if possible before a space.
fn word_boundary(text: &str, position: usize) -> usize {
    let before = text.as_bytes().get(position.saturating_sub(MAX_WORD_BYTES)..=position).unwrap_or_default();
    match before.iter().rposition(|byte| *byte == b' ') {
        Some(space) => position + 1 - (before.len() - space),
        None => text.floor_char_boundary(position),
    }
}

/// The number of tokens in texts.
fn count_tokens(tokenizer: &CoreBPE, texts: &str) -> u64 {
    texts.split(TEXT_SEPARATOR).map(|text| count_text_tokens(tokenizer, text)).sum()
}

/// The number of tokens in a text.
fn count_text_tokens(tokenizer: &CoreBPE, text: &str) -> u64 {
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
    use crate::azure::Operation;

    const HELLO: &str = r#"{"messages":[{"role":"user","content":"Hello world, how are you?"}]}"#;

    fn output(text: &str) -> OutputSample {
        let bytes = text.len() as u64;
        OutputSample { text: text.to_owned(), sampled_bytes: bytes, total_bytes: bytes }
    }

    fn estimate(model: &str, body: &str, text: &str) -> Result<(u64, u64), UsageMissing> {
        let sample = PromptSample::from_body(body.as_bytes(), Operation::Chat, 64 * 1024)?;
        let mut estimator = TokenEstimator::default();
        let usage = estimator.estimate_usage(model, &sample, Some(&output(text)), 64 * 1024)?;
        assert_eq!(usage.total, Some(usage.input.unwrap() + usage.output.unwrap()));
        Ok((usage.input.unwrap(), usage.output.unwrap()))
    }

    #[test]
    fn text_is_counted_as_tiktoken_counts_it() {
        let parts = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hello world, how are you?"}]}]}"#;
        let picture = |url: &str, detail: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"{url}","detail":"{detail}"}}}}]}}]}}"#
            )
        };
        let unknown = Err(UsageMissing::EncodingUnknown);
        for (model, body, text, expected) in [
            ("gpt-4o-2024-11-20", HELLO, "I am fine, thank you.", Ok((7 + 7, 7))),
            ("gpt-4o", parts, "", Ok((7 + 7, 0))),
            ("gpt-4", HELLO, "Hello world\0f\0{\"a\":1}\0", Ok((7 + 7, 2 + 1 + 5))),
            // The encodings differ.
            ("gpt-35-turbo", HELLO, "\u{1f600}\u{1f9d1}", Ok((7 + 7, 5))),
            ("gpt-4o", HELLO, "\u{1f600}\u{1f9d1}", Ok((7 + 7, 4))),
            ("gpt-4o", &picture("https://x", "low"), "a cat", Ok((7 + 85, 2))),
            ("gpt-4o", &picture("https://x", "high"), "a cat", Err(UsageMissing::Image)),
            ("mistral-large", HELLO, "Hello", unknown),
            ("", HELLO, "Hello", unknown),
        ] {
            assert_eq!(estimate(model, body, text), expected, "{model} {body} {text:?}");
        }
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
        // One half is Chinese, which has far fewer bytes per token.
        let long = ["word and more words, ".repeat(20_000), "他们说今天的天气很好。".repeat(12_000)].concat();
        let tokenizer = o200k_base().unwrap();
        let exact = count_tokens(&tokenizer, &long);
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}]}}"#);
        let sample = PromptSample::from_body(body.as_bytes(), Operation::Chat, 64 * 1024).unwrap();
        let mut estimator = TokenEstimator::default();
        for (max_tokenized_bytes, tolerance) in [(64 * 1024, 0.03), (8 * 1024, 0.1), (1024, 0.3), (128, 0.9)]
        {
            let usage = estimator
                .estimate_usage("gpt-4o", &sample, Some(&output(&long)), max_tokenized_bytes)
                .unwrap();
            for counted in [usage.input.unwrap(), usage.output.unwrap()] {
                let error = (counted as f64 / exact as f64 - 1.0).abs();
                assert!(error <= tolerance, "{counted} for {exact} of {max_tokenized_bytes} bytes");
            }
        }
    }

    #[test]
    fn tokenizers_are_unloaded_when_they_are_idle() {
        let mut estimator = TokenEstimator::default();
        estimator.estimate_usage("gpt-4o", &PromptSample::default(), None, 1024).unwrap();
        estimator.unload_if_idle(Instant::now());
        assert!(estimator.o200k.is_some());
        estimator.unload_if_idle(Instant::now() + MAX_IDLE_TIME);
        assert!(estimator.o200k.is_none());
    }
}
