//! The text of a response while it is assembled: choices, their tool calls, and the limit for all of it.

use std::borrow::Cow;

use crate::azure::json::push_json_string;
use crate::azure::json_text::{ContentJoiner, decoded_length};
use crate::azure::request::prompt_sample::TEXT_SEPARATOR;

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
    /// Whether it goes on beyond the limit.
    is_cut: bool,
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
    /// All text that there was, also what did not fit.
    total_bytes: u64,
    is_truncated: bool,
}

impl TextBudget {
    pub(in crate::azure) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, used_bytes: 0, total_bytes: 0, is_truncated: false }
    }

    pub(in crate::azure) fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    pub(in crate::azure) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    pub(in crate::azure) fn total_bytes(&self) -> u64 {
        self.total_bytes
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
            target.is_cut = true;
            self.total_bytes += decoded_length(content) as u64;
            return;
        }
        let text = target.joiner.decode_next(content);
        self.append_within_limit(target, &text);
    }

    /// Appends as much of `text` as fits.
    pub(in crate::azure) fn append_text(&mut self, target: &mut CapturedText, text: &str) {
        if std::mem::take(&mut target.joiner).has_pending_half() {
            self.append_within_limit(target, UNKNOWN_CHARACTER);
        }
        self.append_within_limit(target, text);
    }

    fn append_within_limit(&mut self, target: &mut CapturedText, text: &str) {
        self.total_bytes += text.len() as u64;
        let fitting = truncate_text(text, self.limit_bytes - self.used_bytes);
        target.text.push_str(fitting);
        self.used_bytes += fitting.len();
        if fitting.len() < text.len() {
            // Nothing is appended after a gap, even if it would fit: the captured text is a prefix.
            self.used_bytes = self.limit_bytes;
            self.is_truncated = self.limit_bytes > 0;
            target.is_cut = true;
        }
    }
}

/// The text of a response for its record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompletionText {
    /// The text.
    pub text: String,
    /// Where in it a text ends that goes on beyond the limit, such as that of one choice among others.
    pub cut_ends: Vec<usize>,
}

impl CompletionText {
    /// The memory that it holds besides itself, in bytes.
    pub(in crate::azure) fn memory_bytes(&self) -> usize {
        self.text.capacity() + self.cut_ends.capacity() * size_of::<usize>()
    }

    pub(in crate::azure) fn shrink_to_fit(&mut self) {
        self.text.shrink_to_fit();
        self.cut_ends.shrink_to_fit();
    }

    fn push_text(&mut self, captured: &CapturedText) {
        self.text.push_str(&captured.as_text());
        self.cut_ends.extend(captured.is_cut.then_some(self.text.len()));
    }

    fn push_json_string(&mut self, captured: &CapturedText) {
        push_json_string(&mut self.text, &captured.as_text());
        self.cut_ends.extend(captured.is_cut.then_some(self.text.len() - 1));
    }

    fn push_json_list<'a, T: 'a>(
        &mut self,
        items: impl IntoIterator<Item = &'a T>,
        push_item: impl Fn(&T, &mut Self),
    ) {
        self.text.push('[');
        for (n, item) in items.into_iter().enumerate() {
            self.text.push_str(if n == 0 { "" } else { "," });
            push_item(item, self);
        }
        self.text.push(']');
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

    /// The memory that the choices hold, in bytes.
    pub(in crate::azure) fn memory_bytes(&self) -> usize {
        let captured = |text: &CapturedText| text.text.capacity();
        let tool_call =
            |call: &CapturedToolCall| captured(&call.id) + captured(&call.name) + captured(&call.arguments);
        let choice = |choice: &CapturedChoice| {
            captured(&choice.content)
                + captured(&choice.refusal)
                + choice.tool_calls.capacity() * size_of::<CapturedToolCall>()
                + choice.tool_calls.iter().map(tool_call).sum::<usize>()
        };
        self.0.capacity() * size_of::<CapturedChoice>() + self.0.iter().map(choice).sum::<usize>()
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
        self.assemble_text().is_some_and(|assembled| assembled.text.len() > limit)
    }

    /// What a model has written, with [`TEXT_SEPARATOR`] after each text: no ids, and no JSON around it.
    pub(in crate::azure) fn to_separate_texts(&self) -> String {
        let mut out = String::new();
        let mut push = |captured: &CapturedText| {
            if !captured.is_empty() {
                out.push_str(&captured.as_text());
                out.push(TEXT_SEPARATOR);
            }
        };
        for choice in &self.0 {
            push(&choice.content);
            push(&choice.refusal);
            for call in &choice.tool_calls {
                push(&call.name);
                push(&call.arguments);
            }
        }
        out
    }

    /// The text for the record, truncated to `limit` bytes.
    pub(in crate::azure) fn to_text(&self, limit: usize) -> Option<CompletionText> {
        let mut assembled = self.assemble_text()?;
        assembled.text.truncate(truncate_text(&assembled.text, limit).len());
        assembled.cut_ends.retain(|end| *end <= assembled.text.len());
        Some(assembled).filter(|assembled| !assembled.text.is_empty())
    }

    fn assemble_text(&self) -> Option<CompletionText> {
        if self.is_empty() {
            return None;
        }
        let mut out = CompletionText::default();
        if let [only] = &self.0[..] {
            if only.is_single_string() {
                out.push_text(only.content_or_refusal());
            } else {
                only.push_json(&mut out);
            }
            return Some(out);
        }
        let mut ordered: Vec<&CapturedChoice> = self.0.iter().collect();
        ordered.sort_by_key(|choice| choice.index);
        out.push_json_list(ordered, CapturedChoice::push_json);
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

    fn push_json(&self, out: &mut CompletionText) {
        if self.is_single_string() {
            return out.push_json_string(self.content_or_refusal());
        }
        if self.content.is_empty() && self.refusal.is_empty() {
            return out.push_json_list(&self.tool_calls, CapturedToolCall::push_json);
        }
        out.text.push('{');
        for (key, text) in [("\"content\":", &self.content), ("\"refusal\":", &self.refusal)] {
            if !text.is_empty() {
                out.text.push_str(if out.text.ends_with('{') { "" } else { "," });
                out.text.push_str(key);
                out.push_json_string(text);
            }
        }
        if !self.tool_calls.is_empty() {
            out.text.push_str(",\"tool_calls\":");
            out.push_json_list(&self.tool_calls, CapturedToolCall::push_json);
        }
        out.text.push('}');
    }
}

impl CapturedToolCall {
    fn push_json(&self, out: &mut CompletionText) {
        out.text.push('{');
        if !self.id.is_empty() {
            out.text.push_str("\"id\":");
            out.push_json_string(&self.id);
            out.text.push(',');
        }
        out.text.push_str("\"type\":\"function\",\"function\":{\"name\":");
        out.push_json_string(&self.name);
        out.text.push_str(",\"arguments\":");
        out.push_json_string(&self.arguments);
        out.text.push_str("}}");
    }
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
