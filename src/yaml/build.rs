//! Builds the tree of values from the events of the parser, and counts what it becomes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, ScalarStyle, Tag};

use super::limits::{MAX_DEPTH, MAX_TEXT_BYTES, MAX_VALUES, too_deep, too_many_values, too_much_text};
use super::value::{Entries, Entry, Item, Scalar, ScalarKind, Value, child_key_path};

/// The key whose value is merged into its mapping. <https://yaml.org/type/merge.html>
const MERGE_KEY: &str = "<<";

/// Called with where something is wrong, as `backends[2].weight` and its line if it has one, and with what is.
pub(super) type ReportProblem<'r> = dyn FnMut(&str, Option<usize>, String) + 'r;

/// Why parsing stopped. It has been reported.
pub(super) struct Stopped;

/// How large a value is, with all that is in it.
#[derive(Clone, Copy, Default)]
struct Size {
    values: usize,
    text_bytes: usize,
    /// The levels of lists and mappings.
    depth: usize,
}

impl Size {
    fn add(&mut self, inner: Self) {
        self.values += inner.values;
        self.text_bytes += inner.text_bytes;
        self.depth = self.depth.max(inner.depth);
    }

    /// Whether both together are within the limits; if not, the problem.
    fn check_sum_with(self, more: Self) -> Result<(), String> {
        if self.values + more.values > MAX_VALUES {
            return Err(too_many_values());
        }
        if self.text_bytes + more.text_bytes > MAX_TEXT_BYTES { Err(too_much_text()) } else { Ok(()) }
    }
}

/// A list or mapping whose end has not been read.
struct OpenCollection {
    anchor: usize,
    is_tagged: bool,
    size: Size,
    content: OpenContent,
    /// Where it begins.
    line: usize,
}

enum OpenContent {
    List(Vec<Item>),
    Mapping {
        entries: Vec<Entry>,
        keys: HashSet<String>,
        merged: Vec<Value>,
        /// The key whose value is read.
        key: OpenKey,
    },
}

enum OpenKey {
    /// The next value is a key.
    None,
    /// A key, and its line.
    Text(String, usize),
    Merge,
    /// A key that has been reported; its value is skipped.
    Invalid,
}

/// Builds one document.
pub(super) struct TreeBuilder<'b, 'r> {
    report: &'b mut ReportProblem<'r>,
    open: Vec<OpenCollection>,
    anchored: HashMap<usize, (Value, Size)>,
    root: Option<Value>,
    /// All values that are held, with those of anchors.
    held: Size,
}

impl<'b, 'r> TreeBuilder<'b, 'r> {
    pub(super) fn new(report: &'b mut ReportProblem<'r>) -> Self {
        Self { report, open: Vec::new(), anchored: HashMap::new(), root: None, held: Size::default() }
    }

    /// The document; a file without one is nothing.
    pub(super) fn finish(self) -> Value {
        self.root.unwrap_or(Value::Scalar(Scalar { text: String::new(), is_plain: true }))
    }

    pub(super) fn report_at_root(&mut self, line: usize, problem: String) {
        (self.report)("", Some(line), problem);
    }

    /// Adds what an event says. `line` is where it begins.
    pub(super) fn add(&mut self, event: Event<'_>, line: usize) -> Result<(), Stopped> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(&text, style, tag.as_deref(), line);
                self.add_value(value, Size { values: 1, text_bytes: text.len(), depth: 0 }, anchor, line)
            }
            Event::SequenceStart(anchor, tag) => {
                self.open_collection(anchor, tag, "seq", OpenContent::List(Vec::new()), line)
            }
            Event::MappingStart(anchor, tag) => {
                let content = OpenContent::Mapping {
                    entries: Vec::new(),
                    keys: HashSet::new(),
                    merged: Vec::new(),
                    key: OpenKey::None,
                };
                self.open_collection(anchor, tag, "map", content, line)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close_collection(),
            Event::Alias(anchor) => self.add_alias(anchor, line),
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, line: usize) -> Value {
        let mut scalar = Scalar { text: text.to_owned(), is_plain: style == ScalarStyle::Plain };
        let Some(tag) = tag else { return Value::Scalar(scalar) };
        let fits = match (tag.is_yaml_core_schema(), tag.suffix.as_str()) {
            (true, "str") => {
                scalar.is_plain = false;
                true
            }
            (true, kind) => {
                scalar.is_plain = true;
                match scalar.kind() {
                    ScalarKind::Null => kind == "null",
                    ScalarKind::Bool => kind == "bool",
                    ScalarKind::Number => kind == "float" || kind == "int" && !text.contains('.'),
                    ScalarKind::Text => false,
                }
            }
            // The tag `!` says that it is text.
            (false, "") => {
                scalar.is_plain = false;
                true
            }
            (false, _) => return Value::Tagged,
        };
        if fits {
            return Value::Scalar(scalar);
        }
        self.report_here(line, "has a YAML tag that its value does not fit".to_owned());
        Value::Tagged
    }

    fn open_collection(
        &mut self,
        anchor: usize,
        tag: Option<Cow<'_, Tag>>,
        own_tag: &str,
        content: OpenContent,
        line: usize,
    ) -> Result<(), Stopped> {
        if self.open.len() >= MAX_DEPTH {
            return self.stop(line, too_deep());
        }
        let is_tagged = tag.is_some_and(|tag| !(tag.is_yaml_core_schema() && tag.suffix == own_tag));
        self.charge(Size { values: 1, ..Size::default() }, line)?;
        let size = Size { values: 1, text_bytes: 0, depth: 0 };
        self.open.push(OpenCollection { anchor, is_tagged, size, content, line });
        Ok(())
    }

    fn close_collection(&mut self) -> Result<(), Stopped> {
        let Some(OpenCollection { anchor, is_tagged, mut size, content, line }) = self.open.pop() else {
            return Ok(());
        };
        size.depth += 1;
        let value = match content {
            _ if is_tagged => Value::Tagged,
            OpenContent::List(items) => Value::List(items),
            OpenContent::Mapping { mut entries, mut keys, merged, .. } => {
                self.merge(merged, &mut entries, &mut keys, line);
                Value::Mapping(Entries(entries))
            }
        };
        self.put(value, size, anchor, line)
    }

    /// Adds the entries of merged mappings. The mapping's own keys come first, then those of the mapping that
    /// is merged first.
    fn merge(
        &mut self,
        merged: Vec<Value>,
        entries: &mut Vec<Entry>,
        keys: &mut HashSet<String>,
        line: usize,
    ) {
        let mut sources = Vec::new();
        for value in merged {
            match value {
                Value::List(items) => sources.extend(items.into_iter().map(|item| item.value)),
                other => sources.push(other),
            }
        }
        for source in sources {
            let Value::Mapping(Entries(source)) = source else {
                let problem = "merges with `<<` what is not a mapping or a list of mappings";
                self.report_here(line, problem.to_owned());
                continue;
            };
            for entry in source {
                if keys.insert(entry.key.clone()) {
                    entries.push(entry);
                }
            }
        }
    }

    fn add_alias(&mut self, anchor: usize, line: usize) -> Result<(), Stopped> {
        let Some((value, size)) = self.anchored.get(&anchor) else {
            return self.stop(line, "has an alias to the value that contains it".to_owned());
        };
        // Before the clone: a few lines of aliases can stand for more than any memory.
        let size = *size;
        if self.open.len() + size.depth > MAX_DEPTH {
            return self.stop(line, too_deep());
        }
        if let Err(problem) = self.held.check_sum_with(size) {
            return self.stop(line, problem);
        }
        let value = value.clone();
        self.add_value(value, size, 0, line)
    }

    fn add_value(&mut self, value: Value, size: Size, anchor: usize, line: usize) -> Result<(), Stopped> {
        self.charge(size, line)?;
        self.put(value, size, anchor, line)
    }

    /// Puts a complete value, which has been charged, where it belongs.
    fn put(&mut self, value: Value, size: Size, anchor: usize, line: usize) -> Result<(), Stopped> {
        if anchor > 0 {
            self.charge(size, line)?;
            self.anchored.insert(anchor, (value.clone(), size));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(value);
            return Ok(());
        };
        parent.size.add(size);
        match &mut parent.content {
            OpenContent::List(items) => items.push(Item { value, line }),
            OpenContent::Mapping { entries, keys, merged, key } => {
                match std::mem::replace(key, OpenKey::None) {
                    OpenKey::None => match value {
                        Value::Scalar(scalar) => return self.put_key(scalar, line),
                        other => {
                            *key = OpenKey::Invalid;
                            let kind = other.kind_name();
                            self.report_here(line, format!("has a key that is {kind}"));
                        }
                    },
                    OpenKey::Text(text, line) => {
                        keys.insert(text.clone());
                        entries.push(Entry { key: text, value, line });
                    }
                    OpenKey::Merge => merged.push(value),
                    OpenKey::Invalid => {}
                }
            }
        }
        Ok(())
    }

    fn put_key(&mut self, scalar: Scalar, line: usize) -> Result<(), Stopped> {
        let Some(OpenContent::Mapping { keys, key, merged, .. }) =
            self.open.last_mut().map(|open| &mut open.content)
        else {
            return Ok(());
        };
        let is_merge = scalar.is_plain && scalar.text == MERGE_KEY;
        if keys.contains(&scalar.text) || is_merge && !merged.is_empty() {
            *key = OpenKey::Text(scalar.text, line);
            self.report_here(line, "is written a second time; remove one of them".to_owned());
            if let Some(OpenContent::Mapping { key, .. }) = self.open.last_mut().map(|open| &mut open.content)
            {
                *key = OpenKey::Invalid;
            }
        } else {
            *key = if is_merge { OpenKey::Merge } else { OpenKey::Text(scalar.text, line) };
        }
        Ok(())
    }

    fn charge(&mut self, size: Size, line: usize) -> Result<(), Stopped> {
        if let Err(problem) = self.held.check_sum_with(size) {
            return self.stop(line, problem);
        }
        self.held.add(size);
        Ok(())
    }

    fn stop(&mut self, line: usize, problem: String) -> Result<(), Stopped> {
        self.report_here(line, problem);
        Err(Stopped)
    }

    /// Reports a problem of what is being read.
    fn report_here(&mut self, line: usize, problem: String) {
        let path = self.open.iter().fold(String::new(), |path, open| match &open.content {
            OpenContent::List(items) => format!("{path}[{}]", items.len()),
            OpenContent::Mapping { key: OpenKey::Text(key, _), .. } => child_key_path(&path, key),
            OpenContent::Mapping { key: OpenKey::Merge, .. } => format!("{path}[\"<<\"]"),
            OpenContent::Mapping { .. } => path,
        });
        (self.report)(&path, Some(line), problem);
    }
}
