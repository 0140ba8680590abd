//! The text of an answer while it is put together: choices, their tool calls, and how many
//! bytes of all that may be kept.

use crate::azure::json::push_json_string;

/// Most choices, and most tool calls of one, that are told apart.
const MAX_TRACKED_ITEMS: usize = 128;
/// Most bytes of a name or a code.
const MAX_LABEL_BYTES: usize = 256;

/// How much text may still be kept.
#[derive(Debug)]
pub(in crate::azure) struct TextBudget {
    limit: usize,
    used: usize,
    is_truncated: bool,
    was_truncated: bool,
}

impl TextBudget {
    pub(in crate::azure) fn new(limit: usize) -> Self {
        Self { limit, used: 0, is_truncated: false, was_truncated: false }
    }

    pub(in crate::azure) fn limit_bytes(&self) -> usize {
        self.limit
    }

    pub(in crate::azure) fn used_bytes(&self) -> usize {
        self.used
    }

    /// Whether something did not fit.
    pub(in crate::azure) fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Notes that something was left out; what follows may still fit.
    pub(in crate::azure) fn mark_truncated(&mut self) {
        self.was_truncated = self.is_truncated;
        self.is_truncated = self.limit > 0;
    }

    /// Takes the last [`TextBudget::close`] back.
    pub(in crate::azure) fn undo_mark_truncated(&mut self) {
        self.is_truncated = self.was_truncated;
    }

    pub(in crate::azure) fn append_within_limit(&mut self, target: &mut String, text: &str) {
        let fitting = truncate_text(text, self.limit - self.used);
        target.push_str(fitting);
        self.used += fitting.len();
        if fitting.len() < text.len() {
            // What is kept is a beginning: nothing smaller slips in after a gap.
            self.used = self.limit;
            self.is_truncated = self.limit > 0;
        }
    }
}

/// A short text from outside, for a field of its own.
pub(in crate::azure) fn truncate_label(text: &str) -> String {
    truncate_text(text, MAX_LABEL_BYTES).to_owned()
}

/// The longest beginning of `text` of at most `limit` bytes.
pub(in crate::azure) fn truncate_text(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default()
}

/// The choices of an answer, in the order in which they began.
#[derive(Debug, Default)]
pub(in crate::azure) struct CapturedChoices(Vec<CapturedChoice>);

#[derive(Debug, Default)]
pub(in crate::azure) struct CapturedChoice {
    index: u64,
    pub(in crate::azure) content: String,
    pub(in crate::azure) refusal: String,
    tool_calls: Vec<CapturedToolCall>,
    current_part: (u64, u64),
}

#[derive(Debug, Default)]
pub(in crate::azure) struct CapturedToolCall {
    index: u64,
    pub(in crate::azure) id: String,
    pub(in crate::azure) name: String,
    pub(in crate::azure) arguments: String,
}

impl CapturedChoices {
    /// The choice of that index; beyond [`MAX_TRACKED_ITEMS`] of them the last one.
    pub(in crate::azure) fn choice_mut(&mut self, index: u64) -> &mut CapturedChoice {
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

    /// Whether [`CapturedChoices::text`] has to cut: quotes and brackets count as well.
    pub(in crate::azure) fn is_longer_than(&self, limit: usize) -> bool {
        self.assemble().is_some_and(|text| text.len() > limit)
    }

    /// What the record shows.
    pub(in crate::azure) fn to_text(&self, limit: usize) -> Option<String> {
        let mut text = self.assemble()?;
        text.truncate(truncate_text(&text, limit).len());
        Some(text).filter(|text| !text.is_empty())
    }

    fn assemble(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut out = String::new();
        if let [only] = &self.0[..] {
            if only.is_single_string() {
                out.push_str(if only.content.is_empty() { &only.refusal } else { &only.content });
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
    pub(in crate::azure) fn tool_call_mut(&mut self, index: u64) -> &mut CapturedToolCall {
        find_or_insert(
            &mut self.tool_calls,
            |tool| tool.index == index,
            || CapturedToolCall { index, ..CapturedToolCall::default() },
        )
    }

    /// The text, for a piece of it: another piece begins on a new line.
    pub(in crate::azure) fn content_of_part(
        &mut self,
        part: (u64, u64),
        room: &mut TextBudget,
    ) -> &mut String {
        if self.current_part != part && !self.content.is_empty() {
            room.append_within_limit(&mut self.content, "\n");
        }
        self.current_part = part;
        &mut self.content
    }

    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.refusal.is_empty() && self.tool_calls.is_empty()
    }

    /// Whether one string says it all.
    fn is_single_string(&self) -> bool {
        self.tool_calls.is_empty() && (self.content.is_empty() || self.refusal.is_empty())
    }

    fn push_json(&self, out: &mut String) {
        if self.is_single_string() {
            return push_json_string(
                out,
                if self.content.is_empty() { &self.refusal } else { &self.content },
            );
        }
        if self.content.is_empty() && self.refusal.is_empty() {
            return push_json_list(out, &self.tool_calls, CapturedToolCall::push_json);
        }
        out.push('{');
        for (key, text) in [("\"content\":", &self.content), ("\"refusal\":", &self.refusal)] {
            if !text.is_empty() {
                out.push_str(if out.ends_with('{') { "" } else { "," });
                out.push_str(key);
                push_json_string(out, text);
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
            push_json_string(out, &self.id);
            out.push(',');
        }
        out.push_str("\"type\":\"function\",\"function\":{\"name\":");
        push_json_string(out, &self.name);
        out.push_str(",\"arguments\":");
        push_json_string(out, &self.arguments);
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
        if items.len() < MAX_TRACKED_ITEMS {
            items.push(new());
        }
        items.len() - 1
    });
    &mut items[index]
}
