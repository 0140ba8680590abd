//! The text of a response while it is assembled: choices, their tool calls, and the limit for all of it.

use std::borrow::Cow;

use crate::azure::json::push_json_string;
use crate::azure::json_text::ContentJoiner;

/// The maximum number of choices, and of tool calls in a choice. More are merged into the last one.
const MAX_CHOICES_OR_TOOL_CALLS: usize = 128;
/// The maximum size of a captured name or code.
const MAX_LABEL_BYTES: usize = 256;

/// Stands for a character of which half is missing: U+FFFD.
const UNKNOWN_CHARACTER: &str = "\u{fffd}";

/// A text that is assembled from JSON strings.
#[derive(Debug, Default)]
pub(in crate::azure) struct CapturedText {
    text: String,
    joiner: ContentJoiner,
}

impl CapturedText {
    pub(in crate::azure) fn is_empty(&self) -> bool {
        self.text.is_empty() && !self.joiner.has_pending_half()
    }

    /// The text so far.
    fn as_text(&self) -> Cow<'_, str> {
        if self.joiner.has_pending_half() {
            return Cow::Owned([&self.text, UNKNOWN_CHARACTER].concat());
        }
        Cow::Borrowed(&self.text)
    }
}

/// The limit for captured text, shared by all choices.
#[derive(Debug)]
pub(in crate::azure) struct TextBudget {
    limit_bytes: usize,
    used_bytes: usize,
    is_truncated: bool,
}

impl TextBudget {
    pub(in crate::azure) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, used_bytes: 0, is_truncated: false }
    }

    pub(in crate::azure) fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    pub(in crate::azure) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Whether text is missing.
    pub(in crate::azure) fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Records that text is missing. Later text is still appended. With a limit of 0 nothing is captured,
    /// so nothing is missing.
    pub(in crate::azure) fn mark_truncated(&mut self) {
        self.is_truncated = self.limit_bytes > 0;
    }

    /// Appends as much as fits of the text of a JSON string, of which `content` is what its quotes enclose.
    pub(in crate::azure) fn append_json_content(&mut self, target: &mut CapturedText, content: &str) {
        if self.used_bytes == self.limit_bytes && !content.is_empty() {
            self.is_truncated = self.limit_bytes > 0;
            return;
        }
        let text = target.joiner.decode_next(content);
        self.append_within_limit(&mut target.text, &text);
    }

    /// Appends as much of `text` as fits.
    pub(in crate::azure) fn append_text(&mut self, target: &mut CapturedText, text: &str) {
        if std::mem::take(&mut target.joiner).has_pending_half() {
            self.append_within_limit(&mut target.text, UNKNOWN_CHARACTER);
        }
        self.append_within_limit(&mut target.text, text);
    }

    fn append_within_limit(&mut self, target: &mut String, text: &str) {
        let fitting = truncate_text(text, self.limit_bytes - self.used_bytes);
        target.push_str(fitting);
        self.used_bytes += fitting.len();
        if fitting.len() < text.len() {
            // Nothing is appended after a gap, even if it would fit: the captured text is a prefix.
            self.used_bytes = self.limit_bytes;
            self.is_truncated = self.limit_bytes > 0;
        }
    }
}

/// Shortens a name or code from a response.
pub(in crate::azure) fn truncate_label(text: &str) -> String {
    truncate_text(text, MAX_LABEL_BYTES).to_owned()
}

/// The longest prefix of `text` of at most `limit` bytes that ends at a character boundary.
pub(in crate::azure) fn truncate_text(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default()
}

/// The choices of a response, in the order in which they began.
#[derive(Debug, Default)]
pub(in crate::azure) struct CapturedChoices(Vec<CapturedChoice>);

#[derive(Debug, Default)]
pub(in crate::azure) struct CapturedChoice {
    index: u64,
    pub(in crate::azure) content: CapturedText,
    pub(in crate::azure) refusal: CapturedText,
    tool_calls: Vec<CapturedToolCall>,
    current_part_indexes: (u64, u64),
}

#[derive(Debug, Default)]
pub(in crate::azure) struct CapturedToolCall {
    index: u64,
    pub(in crate::azure) id: CapturedText,
    pub(in crate::azure) name: CapturedText,
    pub(in crate::azure) arguments: CapturedText,
}

impl CapturedChoices {
    /// The choice with this index. Beyond [`MAX_CHOICES_OR_TOOL_CALLS`] choices, the last one.
    pub(in crate::azure) fn get_or_insert_choice(&mut self, index: u64) -> &mut CapturedChoice {
        find_or_insert(
            &mut self.0,
            |choice| choice.index == index,
            || CapturedChoice { index, ..CapturedChoice::default() },
        )
    }

    pub(in crate::azure) fn is_empty(&self) -> bool {
        self.0.iter().all(CapturedChoice::is_empty)
    }

    pub(in crate::azure) fn has_tool_arguments(&self, tool_index: u64) -> bool {
        let tool_calls = self.0.first().map(|choice| &choice.tool_calls[..]).unwrap_or_default();
        tool_calls.iter().any(|call| call.index == tool_index && !call.arguments.is_empty())
    }

    /// Whether [`CapturedChoices::to_text`] truncates. Quotes and brackets of the JSON count as well.
    pub(in crate::azure) fn is_text_longer_than(&self, limit: usize) -> bool {
        self.assemble_text().is_some_and(|text| text.len() > limit)
    }

    /// The text for the record, truncated to `limit` bytes.
    pub(in crate::azure) fn to_text(&self, limit: usize) -> Option<String> {
        let mut text = self.assemble_text()?;
        text.truncate(truncate_text(&text, limit).len());
        Some(text).filter(|text| !text.is_empty())
    }

    fn assemble_text(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut out = String::new();
        if let [only] = &self.0[..] {
            if only.is_single_string() {
                out.push_str(&only.content_or_refusal().as_text());
            } else {
                only.push_json(&mut out);
            }
            return Some(out);
        }
        let mut ordered: Vec<&CapturedChoice> = self.0.iter().collect();
        ordered.sort_by_key(|choice| choice.index);
        push_json_list(&mut out, ordered, CapturedChoice::push_json);
        Some(out)
    }
}

impl CapturedChoice {
    pub(in crate::azure) fn get_or_insert_tool_call(&mut self, index: u64) -> &mut CapturedToolCall {
        find_or_insert(
            &mut self.tool_calls,
            |tool| tool.index == index,
            || CapturedToolCall { index, ..CapturedToolCall::default() },
        )
    }

    /// The content, to append to the given part (output index and content index). A new part begins on a
    /// new line.
    pub(in crate::azure) fn switch_to_part(
        &mut self,
        part: (u64, u64),
        room: &mut TextBudget,
    ) -> &mut CapturedText {
        if self.current_part_indexes != part && !self.content.is_empty() {
            room.append_text(&mut self.content, "\n");
        }
        self.current_part_indexes = part;
        &mut self.content
    }

    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.refusal.is_empty() && self.tool_calls.is_empty()
    }

    /// Whether the choice has only content or only a refusal.
    fn is_single_string(&self) -> bool {
        self.tool_calls.is_empty() && (self.content.is_empty() || self.refusal.is_empty())
    }

    fn content_or_refusal(&self) -> &CapturedText {
        if self.content.is_empty() { &self.refusal } else { &self.content }
    }

    fn push_json(&self, out: &mut String) {
        if self.is_single_string() {
            return push_json_string(out, &self.content_or_refusal().as_text());
        }
        if self.content.is_empty() && self.refusal.is_empty() {
            return push_json_list(out, &self.tool_calls, CapturedToolCall::push_json);
        }
        out.push('{');
        for (key, text) in [("\"content\":", &self.content), ("\"refusal\":", &self.refusal)] {
            if !text.is_empty() {
                out.push_str(if out.ends_with('{') { "" } else { "," });
                out.push_str(key);
                push_json_string(out, &text.as_text());
            }
        }
        if !self.tool_calls.is_empty() {
            out.push_str(",\"tool_calls\":");
            push_json_list(out, &self.tool_calls, CapturedToolCall::push_json);
        }
        out.push('}');
    }
}

impl CapturedToolCall {
    fn push_json(&self, out: &mut String) {
        out.push('{');
        if !self.id.is_empty() {
            out.push_str("\"id\":");
            push_json_string(out, &self.id.as_text());
            out.push(',');
        }
        out.push_str("\"type\":\"function\",\"function\":{\"name\":");
        push_json_string(out, &self.name.as_text());
        out.push_str(",\"arguments\":");
        push_json_string(out, &self.arguments.as_text());
        out.push_str("}}");
    }
}

fn push_json_list<'a, T: 'a>(
    out: &mut String,
    items: impl IntoIterator<Item = &'a T>,
    push_item: impl Fn(&T, &mut String),
) {
    out.push('[');
    for (n, item) in items.into_iter().enumerate() {
        out.push_str(if n == 0 { "" } else { "," });
        push_item(item, out);
    }
    out.push(']');
}

fn find_or_insert<T>(items: &mut Vec<T>, is_match: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> &mut T {
    let existing = items.iter().position(is_match);
    let index = existing.unwrap_or_else(|| {
        if items.len() < MAX_CHOICES_OR_TOOL_CALLS {
            items.push(new());
        }
        items.len() - 1
    });
    &mut items[index]
}
