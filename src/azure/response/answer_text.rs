//! The text of an answer while it is put together: choices, their tool calls, and how many
//! bytes of all that may be kept.

use crate::azure::json::push_string;

/// Most choices, and most tool calls of one, that are told apart.
const MANY: usize = 128;
/// Most bytes of a name or a code.
const SHORT: usize = 256;

/// How much text may still be kept.
#[derive(Debug)]
pub(in crate::azure) struct Room {
    limit: usize,
    used: usize,
    full: bool,
    was_full: bool,
}

impl Room {
    pub(in crate::azure) fn new(limit: usize) -> Self {
        Self { limit, used: 0, full: false, was_full: false }
    }

    pub(in crate::azure) fn limit(&self) -> usize {
        self.limit
    }

    pub(in crate::azure) fn used(&self) -> usize {
        self.used
    }

    /// Whether something did not fit.
    pub(in crate::azure) fn is_full(&self) -> bool {
        self.full
    }

    /// Notes that something was left out; what follows may still fit.
    pub(in crate::azure) fn close(&mut self) {
        self.was_full = self.full;
        self.full = self.limit > 0;
    }

    /// Takes the last [`Room::close`] back.
    pub(in crate::azure) fn reopen(&mut self) {
        self.full = self.was_full;
    }

    pub(in crate::azure) fn add(&mut self, to: &mut String, text: &str) {
        let kept = cut(text, self.limit - self.used);
        to.push_str(kept);
        self.used += kept.len();
        if kept.len() < text.len() {
            // What is kept is a beginning: nothing smaller slips in after a gap.
            self.used = self.limit;
            self.full = self.limit > 0;
        }
    }
}

/// A short text from outside, for a field of its own.
pub(in crate::azure) fn short(text: &str) -> String {
    cut(text, SHORT).to_owned()
}

/// The longest beginning of `text` of at most `limit` bytes.
pub(in crate::azure) fn cut(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default()
}

/// The choices of an answer, in the order in which they began.
#[derive(Debug, Default)]
pub(in crate::azure) struct Choices(Vec<Choice>);

#[derive(Debug, Default)]
pub(in crate::azure) struct Choice {
    index: u64,
    pub(in crate::azure) content: String,
    pub(in crate::azure) refusal: String,
    tools: Vec<Tool>,
    part: (u64, u64),
}

#[derive(Debug, Default)]
pub(in crate::azure) struct Tool {
    index: u64,
    pub(in crate::azure) id: String,
    pub(in crate::azure) name: String,
    pub(in crate::azure) arguments: String,
}

impl Choices {
    /// The choice of that index; beyond [`MANY`] of them the last one.
    pub(in crate::azure) fn at(&mut self, index: u64) -> &mut Choice {
        slot(&mut self.0, |choice| choice.index == index, || Choice { index, ..Choice::default() })
    }

    pub(in crate::azure) fn is_empty(&self) -> bool {
        self.0.iter().all(Choice::is_empty)
    }

    pub(in crate::azure) fn has_arguments(&self, tool: u64) -> bool {
        let tools = self.0.first().map(|choice| &choice.tools[..]).unwrap_or_default();
        tools.iter().any(|t| t.index == tool && !t.arguments.is_empty())
    }

    /// Whether [`Choices::text`] has to cut: quotes and brackets count as well.
    pub(in crate::azure) fn exceed(&self, limit: usize) -> bool {
        self.assembled().is_some_and(|text| text.len() > limit)
    }

    /// What the record shows.
    pub(in crate::azure) fn text(&self, limit: usize) -> Option<String> {
        let mut text = self.assembled()?;
        text.truncate(cut(&text, limit).len());
        Some(text).filter(|text| !text.is_empty())
    }

    fn assembled(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut out = String::new();
        if let [only] = &self.0[..] {
            if only.is_plain() {
                out.push_str(if only.content.is_empty() { &only.refusal } else { &only.content });
            } else {
                only.push_json(&mut out);
            }
            return Some(out);
        }
        let mut order: Vec<&Choice> = self.0.iter().collect();
        order.sort_by_key(|choice| choice.index);
        list(&mut out, order, Choice::push_json);
        Some(out)
    }
}

impl Choice {
    pub(in crate::azure) fn tool(&mut self, index: u64) -> &mut Tool {
        slot(&mut self.tools, |tool| tool.index == index, || Tool { index, ..Tool::default() })
    }

    /// The text, for a piece of it: another piece begins on a new line.
    pub(in crate::azure) fn part(&mut self, part: (u64, u64), room: &mut Room) -> &mut String {
        if self.part != part && !self.content.is_empty() {
            room.add(&mut self.content, "\n");
        }
        self.part = part;
        &mut self.content
    }

    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.refusal.is_empty() && self.tools.is_empty()
    }

    /// Whether one string says it all.
    fn is_plain(&self) -> bool {
        self.tools.is_empty() && (self.content.is_empty() || self.refusal.is_empty())
    }

    fn push_json(&self, out: &mut String) {
        if self.is_plain() {
            return push_string(out, if self.content.is_empty() { &self.refusal } else { &self.content });
        }
        if self.content.is_empty() && self.refusal.is_empty() {
            return list(out, &self.tools, Tool::push_json);
        }
        out.push('{');
        for (key, text) in [("\"content\":", &self.content), ("\"refusal\":", &self.refusal)] {
            if !text.is_empty() {
                out.push_str(if out.ends_with('{') { "" } else { "," });
                out.push_str(key);
                push_string(out, text);
            }
        }
        if !self.tools.is_empty() {
            out.push_str(",\"tool_calls\":");
            list(out, &self.tools, Tool::push_json);
        }
        out.push('}');
    }
}

impl Tool {
    fn push_json(&self, out: &mut String) {
        out.push('{');
        if !self.id.is_empty() {
            out.push_str("\"id\":");
            push_string(out, &self.id);
            out.push(',');
        }
        out.push_str("\"type\":\"function\",\"function\":{\"name\":");
        push_string(out, &self.name);
        out.push_str(",\"arguments\":");
        push_string(out, &self.arguments);
        out.push_str("}}");
    }
}

fn list<'a, T: 'a>(out: &mut String, items: impl IntoIterator<Item = &'a T>, push: impl Fn(&T, &mut String)) {
    out.push('[');
    for (n, item) in items.into_iter().enumerate() {
        out.push_str(if n == 0 { "" } else { "," });
        push(item, out);
    }
    out.push(']');
}

fn slot<T>(items: &mut Vec<T>, is_it: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> &mut T {
    let found = items.iter().position(is_it);
    let at = found.unwrap_or_else(|| {
        if items.len() < MANY {
            items.push(new());
        }
        items.len() - 1
    });
    &mut items[at]
}
