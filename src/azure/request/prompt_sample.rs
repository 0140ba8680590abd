//! A bounded sample of a prompt's text, from which its tokens can be estimated without the request body.

use super::operation::Operation;
use super::prompt_image::PromptImage;
use crate::azure::json;
use crate::azure::json_strings::{JsonString, JsonStrings};
use crate::azure::json_text::{decode_content, text_from_bytes};
use crate::azure::usage_missing::UsageMissing;

/// Separates texts that are tokenized one by one.
pub const TEXT_SEPARATOR: char = '\0';

/// How much of a long string is taken at a time.
const PIECE_BYTES: usize = 1024;
/// The tokens of a longer request body are not estimated.
const MAX_SAMPLED_BODY_BYTES: usize = 32 * 1024 * 1024;
/// A prompt that is nested deeper gets no sample.
const MAX_JSON_DEPTH: usize = 32;
/// Nor does a prompt with more images than any model takes: each is compared with those before it.
const MAX_IMAGES: usize = 1000;
/// The keys of a body that add input stored at the backend, and then those whose values count as input.
const INPUT_KEYS: [&str; 9] = [
    "previous_response_id",
    "conversation",
    "messages",
    "input",
    "instructions",
    "prompt",
    "suffix",
    "tools",
    "functions",
];
/// Keys whose values are not text of the prompt.
pub(super) const LABEL_KEYS: [&str; 11] = [
    "\"type\"",
    "\"id\"",
    "\"role\"",
    "\"status\"",
    "\"phase\"",
    "\"call_id\"",
    "\"tool_call_id\"",
    "\"format\"",
    "\"$schema\"",
    "\"required\"",
    "\"encrypted_content\"",
];
/// What a model reads of a message besides its texts: its role, and three tokens (OpenAI Cookbook, "How to count
/// tokens with tiktoken").
const TOKENS_PER_MESSAGE: u64 = 4;
/// Tokens that start the reply; they count as input (same source).
const REPLY_PRIMING_TOKENS: u64 = 3;
/// What a model reads of tools besides their texts (same source, with the colons between the texts).
const TOKENS_PER_TOOL: u64 = 8;
const TOKENS_AFTER_TOOLS: u64 = 12;
const TOKENS_PER_PROPERTY: u64 = 4;
const TOKENS_PER_PROPERTY_TYPE: u64 = 2;
const TOKENS_PER_PROPERTIES: u64 = 3;
const TOKENS_PER_ENUM_ITEM: u64 = 3;

/// Text of a prompt: all of it, or pieces from its beginning to its end.
#[derive(Debug, Default)]
pub struct PromptSample {
    /// The texts, with [`TEXT_SEPARATOR`] after each.
    pub text: String,
    /// The bytes of JSON strings that `text` was made from.
    pub sampled_bytes: u64,
    /// The bytes of all text in the prompt, as JSON strings.
    pub total_bytes: u64,
    /// The tokens that do not depend on text, except those of images.
    pub fixed_tokens: u64,
    /// The images.
    pub images: Vec<PromptImage>,
}

impl PromptSample {
    /// Samples about `max_bytes` of the prompt in a request body.
    ///
    /// # Errors
    /// If the tokens of the prompt cannot be counted from the body: it has no prompt, contains audio or a file, or refers
    /// to an earlier response.
    pub fn from_body(body: &[u8], operation: Operation, max_bytes: usize) -> Result<Self, UsageMissing> {
        if body.len() > MAX_SAMPLED_BODY_BYTES {
            return Err(UsageMissing::NotTold);
        }
        let body = text_from_bytes(body);
        let [previous_response, conversation, parts @ ..] = json::find_fields(&body, &INPUT_KEYS);
        if [previous_response, conversation].into_iter().flatten().any(|value| value != "null") {
            return Err(UsageMissing::NotTold);
        }
        let total_length: usize = parts.iter().flatten().map(|part| part.len()).sum();
        if total_length == 0 {
            return Err(UsageMissing::NotTold);
        }
        let mut sampler = Sampler { sample: Self::default(), max_bytes, total_length, offset: 0 };
        let is_chat = matches!(operation, Operation::Chat | Operation::Responses);
        if is_chat {
            sampler.sample.fixed_tokens += REPLY_PRIMING_TOKENS;
        }
        let [_, _, keys @ ..] = INPUT_KEYS;
        for (key, part) in keys.into_iter().zip(parts) {
            let Some(part) = part else { continue };
            match key {
                "tools" | "functions" => sampler.read_tools(part)?,
                // The template is at the backend.
                "prompt" if operation == Operation::Responses && part != "null" => {
                    return Err(UsageMissing::NotTold);
                }
                _ => {
                    let is_message = is_chat && part.starts_with('"');
                    sampler.sample.fixed_tokens += if is_message { TOKENS_PER_MESSAGE } else { 0 };
                    sampler.read_texts(part)?;
                }
            }
            sampler.offset += part.len();
        }
        sampler.sample.images.retain(PromptImage::has_url);
        Ok(sampler.sample)
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

    /// The memory that it holds besides itself, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.text.capacity() + self.images.capacity() * size_of::<PromptImage>()
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
    /// Reads a part with messages or other texts.
    fn read_texts(&mut self, part: &str) -> Result<(), UsageMissing> {
        let mut has_strings = false;
        let mut last_message = None;
        for string in JsonStrings::new(part) {
            let JsonString { range, raw, is_key, key, container_key, container_start, depth } = string;
            has_strings = true;
            if depth > MAX_JSON_DEPTH {
                return Err(UsageMissing::NotTold);
            }
            if is_key {
                self.check_key(key)?;
                // A message, or the result of a tool, which has no role.
                let is_message = depth == 2 && matches!(key, "\"role\"" | "\"call_id\"");
                if is_message && last_message.replace(container_start) != Some(container_start) {
                    self.sample.fixed_tokens += TOKENS_PER_MESSAGE;
                }
                self.sample.fixed_tokens += u64::from(depth == 2 && key == "\"name\"");
            } else if key == "\"image_url\"" || (key == "\"url\"" && container_key == "\"image_url\"") {
                self.image(container_start)?.read_url(raw);
            } else if key == "\"detail\"" {
                self.image(container_start)?.read_detail(raw);
            } else if let Some(missing) = missing_of_data_url(raw) {
                return Err(missing);
            } else if !LABEL_KEYS.contains(&key) {
                self.read_string(self.offset + range.start, raw);
            }
        }
        if !has_strings {
            self.sample.fixed_tokens += count_numbers(part);
        }
        Ok(())
    }

    /// The image of the JSON object that begins there.
    fn image(&mut self, object_start: usize) -> Result<&mut PromptImage, UsageMissing> {
        if self.sample.images.len() > MAX_IMAGES {
            return Err(UsageMissing::Image);
        }
        Ok(PromptImage::of_object(&mut self.sample.images, object_start))
    }

    /// Fails at a key whose value is not counted from text.
    fn check_key(&self, key: &str) -> Result<(), UsageMissing> {
        match key {
            "\"input_audio\"" | "\"audio\"" => Err(UsageMissing::Audio),
            "\"file\"" | "\"file_id\"" | "\"file_data\"" | "\"file_url\"" => Err(UsageMissing::NotTold),
            _ => Ok(()),
        }
    }

    /// Reads the definitions of tools: names, descriptions and properties.
    fn read_tools(&mut self, part: &str) -> Result<(), UsageMissing> {
        let before = self.sample.fixed_tokens;
        for string in JsonStrings::new(part) {
            let JsonString { range, raw, is_key, key, container_key, depth, .. } = string;
            if depth > MAX_JSON_DEPTH {
                return Err(UsageMissing::NotTold);
            }
            let position = self.offset + range.start;
            let is_property = container_key == "\"properties\"";
            if is_key {
                self.sample.fixed_tokens += match key {
                    _ if is_property => TOKENS_PER_PROPERTY,
                    "\"properties\"" => TOKENS_PER_PROPERTIES,
                    _ => 0,
                };
                if is_property {
                    self.read_string(position, raw);
                }
            } else if key == "\"type\"" {
                let has_no_type = matches!(raw, "\"function\"" | "\"object\"" | "\"custom\"");
                self.sample.fixed_tokens += if has_no_type { 0 } else { TOKENS_PER_PROPERTY_TYPE };
            } else if !LABEL_KEYS.contains(&key) {
                let is_tool = key == "\"name\"" && (depth == 2 || container_key == "\"function\"");
                self.sample.fixed_tokens += match key {
                    _ if is_tool => TOKENS_PER_TOOL,
                    "\"enum\"" => TOKENS_PER_ENUM_ITEM,
                    _ => 0,
                };
                self.read_string(position, raw);
            }
        }
        if self.sample.fixed_tokens > before {
            self.sample.fixed_tokens += TOKENS_AFTER_TOOLS;
        }
        Ok(())
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
        if !self.sample.text.is_empty() && !self.sample.text.ends_with(TEXT_SEPARATOR) {
            self.sample.text.push(TEXT_SEPARATOR);
        }
    }
}

/// Why the tokens of a data URL outside of a picture are not known; `None` if it is no data URL.
pub(super) fn missing_of_data_url(raw: &str) -> Option<UsageMissing> {
    let head = raw.strip_prefix("\"data:")?;
    let head = head.get(..head.floor_char_boundary(128.min(head.len())))?;
    let (media_type, _) = head.split_once(";base64,")?;
    Some(match media_type.split('/').next() {
        Some("image") => UsageMissing::Image,
        Some("audio") => UsageMissing::Audio,
        _ => UsageMissing::NotTold,
    })
}

/// The numbers in JSON that has no strings: a prompt of tokens.
fn count_numbers(json: &str) -> u64 {
    let mut is_in_number = false;
    let starts = json.bytes().filter(|byte| {
        let was_in_number = std::mem::replace(&mut is_in_number, byte.is_ascii_digit());
        is_in_number && !was_in_number
    });
    starts.count() as u64
}

#[cfg(test)]
mod tests {
    use super::UsageMissing::{Audio, Image, NotTold};
    use super::*;
    use Operation::{Chat, Completions, Embeddings, Responses};
    use proptest::prelude::*;

    #[test]
    fn a_short_prompt_is_sampled_whole() {
        for (operation, body, expected) in [
            (
                Chat,
                r#"{"messages":[{"role":"user","content":"a\nb"},{"role":"user","name":"n","content":[{"type":"text","text":"c"}]}]}"#,
                Ok(("a\nb\0n\0c\0", 3 + 4 + 4 + 1)),
            ),
            (
                Chat,
                r#"{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"call_1","content":"r"}]}"#,
                Ok(("f\0{\"a\":1}\0r\0", 3 + 4 + 4)),
            ),
            (
                Responses,
                r#"{"model":"m","input":["a","b"],"instructions":"\u00e9"}"#,
                Ok(("a\0b\0é\0", 3 + 4)),
            ),
            (Responses, r#"{"input":"a"}"#, Ok(("a\0", 3 + 4))),
            (
                Responses,
                r#"{"input":[{"role":"user","content":"a"},{"type":"function_call_output","call_id":"c","output":"b"}]}"#,
                Ok(("a\0b\0", 3 + 4 + 4)),
            ),
            (
                Chat,
                r#"{"messages":[],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"file":{"type":"string","description":"e","enum":["x","y"]}},"required":["file"]}}}]}"#,
                Ok(("f\0d\0file\0e\0x\0y\0", 3 + 8 + 3 + 4 + 2 + 6 + 12)),
            ),
            (Completions, r#"{"prompt":"a","suffix":"b"}"#, Ok(("a\0b\0", 0))),
            (Embeddings, r#"{"input":["a","b"]}"#, Ok(("a\0b\0", 0))),
            (Embeddings, r#"{"input":[[1, 22],[333]]}"#, Ok(("", 3))),
            (Embeddings, r#"{"input":"data: as text"}"#, Ok(("data: as text\0", 0))),
            (Embeddings, r#"{"input":"data:image/png;base64,AAAA"}"#, Err(Image)),
            (
                Chat,
                r#"{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"AA"}}]}]}"#,
                Err(Audio),
            ),
            (Chat, r#"{"messages":[{"role":"assistant","audio":{"id":"audio_1"}}]}"#, Err(Audio)),
            (
                Chat,
                r#"{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"f"}}]}]}"#,
                Err(NotTold),
            ),
            (Responses, r#"{"input":"a","previous_response_id":"resp_1"}"#, Err(NotTold)),
            (Responses, r#"{"input":"a","previous_response_id":null}"#, Ok(("a\0", 3 + 4))),
            (Responses, r#"{"input":"a","prompt":{"id":"pmpt_1"}}"#, Err(NotTold)),
            (Chat, r#"{"model":"m"}"#, Err(NotTold)),
            (Chat, "no json", Err(NotTold)),
        ] {
            let sample = PromptSample::from_body(body.as_bytes(), operation, 4096);
            let told = sample.as_ref().map(|sample| (&*sample.text, sample.fixed_tokens));
            assert_eq!(told.map_err(|missing| *missing), expected, "{body}");
            assert!(
                sample.is_ok_and(|sample| sample.sampled_bytes == sample.total_bytes) || expected.is_err()
            );
        }
    }

    #[test]
    fn a_prompt_with_more_images_than_a_model_takes_has_no_sample() {
        for (count, expected) in [(MAX_IMAGES, Ok(MAX_IMAGES)), (MAX_IMAGES + 2, Err(Image))] {
            let images = [r#"{"type":"input_image","image_url":"https://x","detail":"low"}"#].repeat(count);
            let body = format!(r#"{{"input":[{{"role":"user","content":[{}]}}]}}"#, images.join(","));
            let sample = PromptSample::from_body(body.as_bytes(), Responses, 4096);
            assert_eq!(sample.map(|sample| sample.images.len()), expected);
        }
    }

    #[test]
    fn a_long_prompt_is_sampled_from_its_beginning_to_its_end() {
        let content = format!("{}{}{}", "a".repeat(200_000), "\\n".repeat(100_000), "é".repeat(100_000));
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{content}"}}]}}"#);
        let sample = PromptSample::from_body(body.as_bytes(), Chat, 8192).unwrap();
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

    proptest! {
        #[test]
        fn arbitrary_prompts_never_panic(
            body in "(messages|input|tools|image_url|url|properties|data:image/png;base64,iVBORw0KGgo|/9j/|[\\[\\]{}\":,\\\\é1 ]){0,40}",
            limit in 0_usize..40,
        ) {
            let body = format!(r#"{{"messages":{body}"#);
            for operation in [Chat, Responses, Embeddings] {
                if let Ok(mut sample) = PromptSample::from_body(body.as_bytes(), operation, limit) {
                    prop_assert!(sample.sampled_bytes <= sample.total_bytes);
                    let _ = sample.images.iter().filter_map(|image| image.tokens("gpt-4o")).count();
                    sample.shorten(limit);
                }
            }
        }
    }
}
