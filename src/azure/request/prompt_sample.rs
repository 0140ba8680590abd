//! A bounded sample of a prompt's text, from which its tokens can be estimated without the request body.

use crate::azure::json;
use crate::azure::json_strings::{JsonString, JsonStrings};
use crate::azure::json_text::{decode_content, text_from_bytes};

/// How much of a long string is taken at a time.
const PIECE_BYTES: usize = 1024;
/// The tokens of a longer request body are not estimated.
const MAX_SAMPLED_BODY_BYTES: usize = 4 * 1024 * 1024;
/// A prompt that is nested deeper gets no sample.
const MAX_JSON_DEPTH: usize = 32;
/// The keys of a body whose text counts as input.
const PROMPT_TOKEN_KEYS: [&str; 6] = ["messages", "input", "instructions", "prompt", "tools", "functions"];
/// The tokens of these do not depend on text.
const BINARY_KEYS: [&str; 4] = ["\"image_url\"", "\"input_audio\"", "\"file\"", "\"file_id\""];
/// The values of these are no text of the prompt.
const LABEL_KEYS: [&str; 4] = ["\"type\"", "\"id\"", "\"role\"", "\"detail\""];

/// Text of a prompt: all of it, or pieces from its beginning to its end.
#[derive(Default)]
pub struct PromptSample {
    /// The text.
    pub text: String,
    /// The bytes of JSON strings that `text` was made from.
    pub sampled_bytes: u64,
    /// The bytes of all text in the prompt, as JSON strings.
    pub total_bytes: u64,
    /// The number of messages.
    pub message_count: u64,
}

impl PromptSample {
    /// Samples about `max_bytes` of the prompt in a request body. `None` if the tokens of the prompt cannot be
    /// told from its text, because there is none or it contains an image, audio or a file.
    pub fn from_body(body: &[u8], max_bytes: usize) -> Option<Self> {
        let body = text_from_bytes(Some(body).filter(|body| body.len() <= MAX_SAMPLED_BODY_BYTES)?);
        let parts = json::find_fields(&body, &PROMPT_TOKEN_KEYS);
        let total_length: usize = parts.iter().flatten().map(|part| part.len()).sum();
        let mut sampler = Sampler { sample: Self::default(), max_bytes, total_length, offset: 0 };
        for part in parts.iter().flatten() {
            sampler.read_part(part)?;
            sampler.offset += part.len();
        }
        (total_length > 0).then_some(sampler.sample)
    }

    /// Shortens the text to about this many bytes.
    pub fn shorten(&mut self, max_bytes: usize) {
        if self.text.len() > max_bytes {
            let kept = self.text.floor_char_boundary(max_bytes);
            self.sampled_bytes = self.sampled_bytes * kept as u64 / self.text.len() as u64;
            self.text.truncate(kept);
            self.text.shrink_to_fit();
        }
    }
}

struct Sampler {
    sample: PromptSample,
    max_bytes: usize,
    /// The length of all parts together.
    total_length: usize,
    /// The length of the parts before the current one.
    offset: usize,
}

impl Sampler {
    /// Reads one of the parts. `None` if it contains binary data.
    fn read_part(&mut self, part: &str) -> Option<()> {
        for JsonString { range, raw, is_key, key, depth, .. } in JsonStrings::new(part) {
            if depth > MAX_JSON_DEPTH {
                return None;
            }
            if is_key {
                if BINARY_KEYS.contains(&key) {
                    return None;
                }
                self.sample.message_count += u64::from(depth == 2 && key == "\"role\"");
            } else if raw.starts_with("\"data:") {
                return None;
            } else if !LABEL_KEYS.contains(&key) {
                self.read_string(self.offset + range.start, raw);
            }
        }
        Some(())
    }

    /// Adds as much of a string as is due at this place of the prompt.
    fn read_string(&mut self, mut position: usize, string: &str) {
        let mut rest = string.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default();
        self.sample.total_bytes += rest.len() as u64;
        let is_sampled_whole = self.total_length <= self.max_bytes;
        while !rest.is_empty() {
            let end = if is_sampled_whole {
                rest.len()
            } else {
                rest.ceil_char_boundary(PIECE_BYTES.min(rest.len()))
            };
            let (piece, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
            let due = self.max_bytes as u64 * position as u64 / self.total_length.max(1) as u64;
            if is_sampled_whole || self.sample.sampled_bytes <= due {
                self.sample.sampled_bytes += piece.len() as u64;
                self.sample.text.push_str(&decode_content(piece));
            }
            position += end;
            rest = after;
        }
        if self.sample.text.len() < self.max_bytes {
            self.sample.text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_prompt_is_sampled_whole() {
        for (body, expected) in [
            (
                r#"{"messages":[{"role":"user","content":"a\nb"},{"role":"x","content":[{"type":"text","text":"c"}]}]}"#,
                Some(("a\nb\nc\n", 2)),
            ),
            (r#"{"model":"m","input":["a","b"],"instructions":"\u00e9"}"#, Some(("a\nb\né\n", 0))),
            (r#"{"input":"data:image/png;base64,AAAA"}"#, None),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}"#,
                None,
            ),
            (r#"{"model":"m"}"#, None),
            ("no json", None),
        ] {
            let sample = PromptSample::from_body(body.as_bytes(), 4096);
            assert_eq!(
                sample.as_ref().map(|sample| (&*sample.text, sample.message_count)),
                expected,
                "{body}"
            );
            assert!(sample.is_none_or(|sample| sample.sampled_bytes == sample.total_bytes));
        }
    }

    #[test]
    fn a_long_prompt_is_sampled_from_its_beginning_to_its_end() {
        let content = format!("{}{}{}", "a".repeat(200_000), "\\n".repeat(100_000), "é".repeat(100_000));
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{content}"}}]}}"#);
        let sample = PromptSample::from_body(body.as_bytes(), 8192).unwrap();
        assert_eq!(sample.total_bytes, 600_000);
        assert!((8_000..=11_000).contains(&sample.sampled_bytes), "{}", sample.sampled_bytes);
        for part in ['a', '\n', 'é'] {
            let share = sample.text.chars().filter(|c| *c == part).count();
            assert!(share > 1_000, "{part:?}: {share}");
        }
        let mut shortened = sample;
        shortened.shorten(100);
        assert!(shortened.text.len() <= 100 && shortened.sampled_bytes <= 150);
    }
}
