//! All keys as a tree.

use std::collections::BTreeMap;

use super::comments::{Comment, comments_by_key};
use super::documents::EXAMPLE;
use super::observed::{Kinds, observe_keys};
use crate::config::yaml::{ValueKind, join_with_or};

/// One key of the configuration, an item of a list, or an entry of a mapping of names.
pub(super) struct KeyNode {
    /// Its path, with `[]` for an item and `*` for a name, such as `backends[].deployments.*`. The root has none.
    pub(super) path: String,
    /// How its value is read; empty if no document has it.
    pub(super) kinds: Kinds,
    pub(super) comment: Comment,
    /// The keys of a mapping, with their names.
    pub(super) keys: Vec<(String, KeyNode)>,
    /// The items of a list.
    pub(super) item: Option<Box<KeyNode>>,
    /// The entries of a mapping of names.
    pub(super) entry: Option<Box<KeyNode>>,
}

/// The whole configuration.
pub(super) fn read_tree() -> KeyNode {
    build("", &observe_keys(), &comments_by_key(EXAMPLE))
}

fn build(path: &str, observed: &BTreeMap<String, Kinds>, comments: &BTreeMap<String, Comment>) -> KeyNode {
    let kinds = observed.get(path).cloned().unwrap_or_default();
    let build_at = |path: String| build(&path, observed, comments);
    let boxed_if =
        |is_there: bool, suffix: &str| is_there.then(|| Box::new(build_at(format!("{path}{suffix}"))));
    let key_path = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    KeyNode {
        path: path.to_owned(),
        keys: kinds.keys().map(|key| (key.to_owned(), build_at(key_path(key)))).collect(),
        item: boxed_if(kinds.contains(&ValueKind::List), "[]"),
        entry: boxed_if(kinds.contains(&ValueKind::NamedEntries), ".*"),
        comment: comments.get(path).cloned().unwrap_or_default(),
        kinds,
    }
}

impl KeyNode {
    /// It and all nodes below it, each after the one that contains it.
    pub(super) fn walk(&self) -> Vec<&Self> {
        let below =
            self.keys.iter().map(|(_, node)| node).chain(self.item.as_deref()).chain(self.entry.as_deref());
        [self].into_iter().chain(below.flat_map(Self::walk)).collect()
    }

    /// Whether it has a name of its own: items do not.
    pub(super) fn is_named(&self) -> bool {
        !self.path.is_empty() && !self.path.ends_with("[]")
    }

    /// The kind of its value in words, such as "a list of texts".
    pub(super) fn value_in_words(&self) -> String {
        let words: Vec<String> = self.kinds.shown().map(|kind| self.kind_in_words(kind)).collect();
        join_with_or(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn kind_in_words(&self, kind: &ValueKind) -> String {
        match kind {
            ValueKind::Mapping(_) => "mapping".to_owned(),
            ValueKind::NamedEntries => "mapping of names".to_owned(),
            ValueKind::List => match self.item.as_deref().map(Self::value_in_words) {
                Some(items) if !items.is_empty() => format!("list: {items}"),
                _ => "list".to_owned(),
            },
            ValueKind::Text => "text".to_owned(),
            ValueKind::Path => "path".to_owned(),
            ValueKind::Choice(words) => join_with_or(&words.iter().map(String::as_str).collect::<Vec<_>>()),
            ValueKind::Integer(first, u64::MAX) => format!("whole number from {first}"),
            ValueKind::Integer(first, last) => format!("whole number from {first} to {last}"),
            ValueKind::Decimal(last) => format!("number from 0 to {last}"),
            ValueKind::Bool => "true or false".to_owned(),
            ValueKind::Duration => "duration".to_owned(),
            ValueKind::Percentage => "percentage".to_owned(),
            ValueKind::ByteSize => "size".to_owned(),
        }
    }
}
