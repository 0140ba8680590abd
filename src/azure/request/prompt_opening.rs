//! What a prompt begins with, and whether it is long enough for a prompt cache: for `balance: prompt_cache`.
//!
//! A model reads the definitions of tools first, then instructions or system messages, then the first message of the
//! user. Later turns of a conversation begin with the same.

use std::borrow::Cow;
use std::ops::Range;

use super::json_body::BodyFacts;
use super::prompt_sample::{LABEL_KEYS, missing_of_data_url};
use crate::azure::json;
use crate::azure::json_strings::{JsonString, JsonStrings};
use crate::azure::json_text::decoded_length;

/// The bytes of an opening that are read at most.
pub const MAX_OPENING_BYTES: usize = 4096;
/// What tools, instructions and system messages get of it at most. The rest is left for the first message of the user,
/// by which the conversations of one application differ.
const MAX_BYTES_BEFORE_USER: usize = 3072;
/// Text that is decoded at most to find its length: a longer one is long enough in any case.
const MAX_MEASURED_BYTES: usize = 8 * MAX_OPENING_BYTES;
/// How much of a part is looked at first: it is enough for almost every prompt.
const FIRST_LOOK_BYTES: usize = 4 * MAX_OPENING_BYTES;
/// How much of a part is searched for the opening.
const MAX_SEARCHED_BYTES: usize = 1024 * 1024;
/// The key of sound in a message.
const AUDIO_KEY: &str = "\"input_audio\"";

impl BodyFacts {
    /// `prompt_cache_key`; `None` if it is absent, empty or no string. `body` is the one that the facts are from.
    pub fn prompt_cache_key<'b>(&self, body: &'b [u8]) -> Option<Cow<'b, str>> {
        let range = wide_range(self.cache_key_range.clone()?);
        let raw = std::str::from_utf8(body.get(range)?).ok()?;
        json::decode_non_empty_string(Some(raw))
    }

    /// Whether the text of tools and prompt has at least this many bytes. Images, sound and files are not text.
    pub fn has_prompt_text(&self, body: &[u8], min_bytes: usize) -> bool {
        let has_text_within = |max_bytes| {
            let mut found = 0;
            self.parts(body, max_bytes).any(|(part, _)| {
                Texts::new(part).any(|text| {
                    found += if text.is_text { measured_length(text.content) } else { 0 };
                    found >= min_bytes
                })
            })
        };
        body.len() >= min_bytes && (has_text_within(FIRST_LOOK_BYTES) || has_text_within(body.len()))
    }

    /// Calls `on_text` with the texts that the prompt opens with, as they are written in the body, in pieces: at most
    /// [`MAX_OPENING_BYTES`] together. The same conversation opens with the same texts in each turn.
    pub fn visit_opening(&self, body: &[u8], on_text: &mut impl FnMut(&[u8])) {
        let mut before_user = MAX_BYTES_BEFORE_USER;
        let mut total = MAX_OPENING_BYTES;
        for (part, kind) in self.parts(body, MAX_SEARCHED_BYTES) {
            let (mut message_start, mut is_of_user) = (None, kind == PartKind::Messages);
            for text in Texts::new(part) {
                if kind == PartKind::BeforeUser && before_user == 0 {
                    break;
                }
                if kind == PartKind::Messages && text.message_start != message_start {
                    if message_start.is_some() && is_of_user {
                        return;
                    }
                    message_start = text.message_start;
                    is_of_user = message_start.is_none_or(|start| is_message_of_user(part, start));
                }
                if !text.is_text {
                    continue;
                }
                let room = if is_of_user { total } else { before_user };
                let piece = text.content.as_bytes();
                let piece = piece.get(..room.min(piece.len())).unwrap_or_default();
                if !piece.is_empty() {
                    on_text(piece);
                    // So that "ab", "c" and "a", "bc" differ.
                    on_text(b"\0");
                }
                before_user = before_user.saturating_sub(piece.len());
                total -= piece.len();
                if total == 0 {
                    return;
                }
            }
        }
    }

    /// The parts of the body that a model reads, in its order, and of each at most this many bytes.
    fn parts<'b>(&self, body: &'b [u8], max_bytes: usize) -> impl Iterator<Item = (&'b str, PartKind)> {
        let [messages, input, instructions, prompt] = self.prompt_part_ranges.clone();
        let [tools, functions] = self.tool_ranges.clone().map(|range| range.map(wide_range));
        let parts = [
            (tools, PartKind::BeforeUser),
            (functions, PartKind::BeforeUser),
            (instructions, PartKind::BeforeUser),
            (messages, PartKind::Messages),
            (input, PartKind::Messages),
            (prompt, PartKind::Messages),
        ];
        parts.into_iter().filter_map(move |(range, kind)| {
            let part = body.get(range?)?;
            Some((valid_beginning(part.get(..max_bytes).unwrap_or(part)), kind))
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartKind {
    /// Tools or instructions.
    BeforeUser,
    /// Messages, or a text that is the user's.
    Messages,
}

/// The strings of a part that are no keys.
struct Texts<'a> {
    strings: JsonStrings<'a>,
    message_start: Option<usize>,
}

/// A string of a part.
struct Text<'a> {
    /// As it is written, without quotes.
    content: &'a str,
    /// Where the message begins that it belongs to; `None` if it belongs to none.
    message_start: Option<usize>,
    /// Whether a model reads it as text.
    is_text: bool,
}

impl<'a> Texts<'a> {
    fn new(part: &'a str) -> Self {
        Self { strings: JsonStrings::new(part), message_start: None }
    }
}

impl<'a> Iterator for Texts<'a> {
    type Item = Text<'a>;

    fn next(&mut self) -> Option<Text<'a>> {
        loop {
            let JsonString { raw, is_key, key, container_key, container_start, depth, .. } =
                self.strings.next()?;
            // Each message is an object in an array, and its first string is one of its keys.
            if depth == 2 {
                self.message_start = Some(container_start);
            }
            if is_key {
                continue;
            }
            let is_data = (container_key == AUDIO_KEY && key == "\"data\"")
                || key == "\"image_url\""
                || container_key == "\"image_url\""
                || missing_of_data_url(raw).is_some();
            return Some(Text {
                // The last one may be cut.
                content: json::string_content(raw).or(raw.strip_prefix('"')).unwrap_or_default(),
                message_start: self.message_start,
                is_text: !is_data && !LABEL_KEYS.contains(&key),
            });
        }
    }
}

fn wide_range(range: Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Whether the message that begins there is the user's. Its role may come after its content.
fn is_message_of_user(part: &str, start: usize) -> bool {
    let [role] = json::find_fields(part.get(start..).unwrap_or_default(), &["role"]);
    role == Some("\"user\"")
}

/// The text up to the first byte that is not UTF-8.
fn valid_beginning(bytes: &[u8]) -> &str {
    // `utf8_chunks` looks at each byte by itself.
    simdutf8::compat::from_utf8(bytes).unwrap_or_else(|problem| {
        let valid = bytes.get(..problem.valid_up_to());
        let valid = valid.and_then(|valid| simdutf8::basic::from_utf8(valid).ok());
        valid.unwrap_or_default()
    })
}

/// The length of a string's content once it is decoded; of a very long one, of its beginning.
fn measured_length(content: &str) -> usize {
    let end = content.floor_char_boundary(MAX_MEASURED_BYTES.min(content.len()));
    decoded_length(content.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(body: &str) -> BodyFacts {
        BodyFacts::parse(body.as_bytes()).unwrap()
    }

    fn opening(body: &str) -> String {
        let mut opening = Vec::new();
        facts(body).visit_opening(body.as_bytes(), &mut |text| opening.extend_from_slice(text));
        String::from_utf8(opening).unwrap()
    }

    #[test]
    fn the_opening_ends_with_the_first_message_of_the_user() {
        for (body, expected) in [
            (r#"{}"#, ""),
            (r#"{"input":"hi"}"#, "hi\0"),
            (r#"{"prompt":"once"}"#, "once\0"),
            (r#"{"input":[{"role":"user","content":"hi"}]}"#, "hi\0"),
            (
                r#"{"input":[{"content":[{"type":"input_text","text":"hi"}],"role":"user"},{"role":"assistant","content":"a"}]}"#,
                "hi\0",
            ),
            (
                r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"},{"role":"user","content":"v"}]}"#,
                "s\0u\0",
            ),
            (
                r#"{"messages":[{"role":"developer","content":"d"},{"role":"assistant","content":"a"}]}"#,
                "d\0a\0",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"https://x/y"}},{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}},{"type":"text","text":"b"}]}]}"#,
                "a\0b\0",
            ),
            // In the order in which a model reads, not in that of the body.
            (
                r#"{"input":"u","instructions":"i","tools":[{"type":"function","name":"f","description":"d"}]}"#,
                "f\0d\0i\0u\0",
            ),
            (r#"{"input":["a","b"],"instructions":null}"#, "a\0b\0"),
            (r#"{"input":"data:image/png;base64,AAAA"}"#, ""),
        ] {
            assert_eq!(opening(body), expected, "{body}");
        }
    }

    #[test]
    fn long_tools_leave_room_for_the_first_message_of_the_user() {
        let long = "x".repeat(100_000);
        let with_both = |before: &str, user: &str| {
            opening(&format!(
                r#"{{"messages":[{{"role":"system","content":"{before}"}},{{"role":"user","content":"{user}"}}]}}"#
            ))
        };
        for (before, user, expected) in [
            (&*long, "hello", MAX_BYTES_BEFORE_USER + 5),
            (&*long, &*long, MAX_OPENING_BYTES),
            ("short", &*long, MAX_OPENING_BYTES),
            ("short", "hello", 10),
        ] {
            let opening = with_both(before, user);
            assert_eq!(opening.replace('\0', "").len(), expected, "{} and {}", before.len(), user.len());
        }
        assert_ne!(with_both(&long, "hello"), with_both(&long, "hallo"));
        // Some clients write keys in alphabetical order.
        let sorted = |user: &str| {
            opening(&format!(
                r#"{{"messages":[{{"content":"{long}","role":"system"}},{{"content":"{user}","role":"user"}}]}}"#
            ))
        };
        assert_eq!(sorted("hello"), with_both(&long, "hello"));
    }

    #[test]
    fn only_text_counts_for_the_length_of_a_prompt() {
        let text = |bytes: usize| "y".repeat(bytes);
        let image = format!("data:image/png;base64,{}", "A".repeat(50_000));
        for (body, expected) in [
            (format!(r#"{{"input":"{}"}}"#, text(4096)), true),
            (format!(r#"{{"input":"{}"}}"#, text(4095)), false),
            (format!(r#"{{"input":"{}","user":"{}"}}"#, text(100), text(9000)), false),
            (format!(r#"{{"input":"{}","instructions":"{}"}}"#, text(2048), text(2048)), true),
            (format!(r#"{{"messages":[],"tools":[{{"description":"{}"}}]}}"#, text(4096)), true),
            (format!(r#"{{"input":[{{"role":"user","content":[{{"image_url":"{image}"}}]}}]}}"#), false),
            (
                format!(
                    r#"{{"input":[{{"role":"user","content":[{{"image_url":"{image}"}},{{"text":"{}"}}]}}]}}"#,
                    text(4096)
                ),
                true,
            ),
            // Decoded they are one byte each.
            (format!(r#"{{"input":"{}"}}"#, r"\u0041".repeat(4095)), false),
            (format!(r#"{{"input":"{}"}}"#, r"\u0041".repeat(4096)), true),
        ] {
            assert_eq!(facts(&body).has_prompt_text(body.as_bytes(), 4096), expected, "{body:.80}");
        }
    }

    #[test]
    fn the_key_is_a_string_with_text() {
        for (body, expected) in [
            (r#"{"prompt_cache_key":"c\u0031"}"#, Some("c1")),
            (r#"{"prompt_cache_key":""}"#, None),
            (r#"{"prompt_cache_key":7}"#, None),
            (r#"{"prompt_cache_key":null}"#, None),
            (r#"{"metadata":{"prompt_cache_key":"c1"}}"#, None),
        ] {
            assert_eq!(facts(body).prompt_cache_key(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_prompts_never_panic(
            rest in "(role|user|content|messages|input|tools|image_url|data:image/png;base64,|[\\[\\]{}\":,\\\\é1 ]){0,40}",
        ) {
            for body in [format!(r#"{{"messages":{rest}"#), format!(r#"{{"input":[{{"role":"user","content":{rest}"#)] {
                if let Ok(facts) = BodyFacts::parse(body.as_bytes()) {
                    let _ = facts.has_prompt_text(body.as_bytes(), 10);
                    let mut total = 0;
                    facts.visit_opening(body.as_bytes(), &mut |text| total += text.len());
                    proptest::prop_assert!(total <= 2 * MAX_OPENING_BYTES);
                }
            }
        }
    }
}
