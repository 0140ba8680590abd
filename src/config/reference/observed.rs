//! Observes how the example documents are read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::documents::documents;
use crate::config::check::read_config;
use crate::config::yaml::{ProblemCollector, ReadObserver, ValueKind, YamlNode, parse_document};

/// How the value of a key is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds(BTreeSet<ValueKind>);

impl Kinds {
    pub(super) fn contains(&self, kind: &ValueKind) -> bool {
        self.0.contains(kind)
    }

    /// The kinds that a value can have. Paths and words are read as texts first, and true and false are words.
    pub(super) fn shown(&self) -> impl Iterator<Item = &ValueKind> {
        let is_word =
            |kind: &ValueKind| matches!(kind, ValueKind::Path | ValueKind::Choice(_) | ValueKind::Bool);
        let has_words = self.0.iter().any(is_word);
        self.0.iter().filter(move |kind| match kind {
            ValueKind::Text => !has_words,
            ValueKind::Choice(_) => !self.0.contains(&ValueKind::Bool),
            _ => true,
        })
    }

    /// The keys of a mapping.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let keys = self
            .0
            .iter()
            .filter_map(|kind| if let ValueKind::Mapping(keys) = kind { Some(keys) } else { None });
        // Two readers of one value may know different keys.
        let unique: BTreeSet<&str> = keys.clone().flatten().map(String::as_str).collect();
        let mut seen = unique;
        keys.flatten().map(String::as_str).filter(move |key| seen.remove(key))
    }
}

/// Collects kinds by path.
#[derive(Default)]
struct Recorder {
    kinds_by_path: RefCell<BTreeMap<String, Kinds>>,
}

impl ReadObserver for Recorder {
    fn on_read(&self, key_path: &str, kind: ValueKind) {
        let mut kinds_by_path = self.kinds_by_path.borrow_mut();
        let path = general_path(key_path, &kinds_by_path);
        kinds_by_path.entry(path).or_default().0.insert(kind);
    }
}

/// The path with `[]` for each index, and `*` for each name: what is in a mapping that was read as one of names.
fn general_path(key_path: &str, kinds_by_path: &BTreeMap<String, Kinds>) -> String {
    let mut general = String::new();
    for segment in split_path(key_path) {
        let is_name =
            kinds_by_path.get(&general).is_some_and(|parent| parent.contains(&ValueKind::NamedEntries));
        match segment {
            Segment::Item => general += "[]",
            Segment::Key(_) if is_name => general += ".*",
            Segment::Key(key) if general.is_empty() => key.clone_into(&mut general),
            Segment::Key(key) => general = format!("{general}.{key}"),
        }
    }
    general
}

enum Segment<'p> {
    Item,
    Key(&'p str),
}

/// Splits a path such as `backends[0].deployments["gpt-4.1"]`.
fn split_path(path: &str) -> Vec<Segment<'_>> {
    let mut segments = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(bracket) = rest.strip_prefix('[') {
            let (inner, after) = bracket.split_once(']').unwrap_or((bracket, ""));
            let is_index = inner.bytes().all(|byte| byte.is_ascii_digit());
            segments.push(if is_index { Segment::Item } else { Segment::Key(inner.trim_matches('"')) });
            rest = after;
        } else {
            let word = rest.strip_prefix('.').unwrap_or(rest);
            let end = word.find(['.', '[']).unwrap_or(word.len());
            let (key, after) = word.split_at(end);
            segments.push(Segment::Key(key));
            rest = after;
        }
    }
    segments
}

/// Reads all documents; returns how the values were read, by the general path of their keys.
pub(super) fn observe_keys() -> BTreeMap<String, Kinds> {
    let recorder = Recorder::default();
    for document in documents() {
        let environment = |_: &str| None;
        // Secrets and files need not exist.
        let problems =
            ProblemCollector::new(Path::new(""), &environment).without_secrets().with_observer(&recorder);
        if let Some(root) = parse_document(document, &problems) {
            // What is wrong with a document as a whole is of no interest.
            let _ = read_config(&YamlNode::root(&root, &problems));
        }
    }
    recorder.kinds_by_path.into_inner()
}
