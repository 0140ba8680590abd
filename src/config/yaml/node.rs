//! Typed reading of YAML values. Each value knows its key path, and what is wrong with it is added to the
//! list of problems.
//!
//! The `read_…` methods return `None` after they have reported an error. Callers read all their keys first
//! and use `?` only afterwards, so that one pass reports every problem.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::expansion::{ExpandedText, expand_text};
use super::numbers::{parse_decimal, parse_integer};
use super::observer::ValueKind;
use super::problem_collector::ProblemCollector;
use super::units::{self, QuantityError};
use super::wording::{closest_match, join_with_and, join_with_or};
use crate::config::values::Percentage;
use crate::yaml::{self, Entries, Scalar, ScalarKind, Value, child_key_path};

/// Longer unknown keys are not shown in messages: without the space after the colon, `{ api_key:"…" }` is
/// one key that contains the secret.
const MAX_SHOWN_KEY_BYTES: usize = 40;

/// Parses the one document in `text`. `None` if it is not a mapping of keys, which has been reported.
pub(crate) fn parse_document(text: &str, problems: &ProblemCollector<'_>) -> Option<Value> {
    let value = yaml::parse(text, &mut |path, line, problem| {
        problems.report_error_in_line(path, line, problem);
    })?;
    match value {
        value if value.is_null() => {
            problems.report_error("", "the file is empty; it needs listeners, backends and clients")
        }
        value @ Value::Mapping(_) => Some(value),
        other => problems
            .report_error("", format!("the file must be a mapping of keys, not {}", other.kind_name())),
    }
}

/// A YAML value and its key path.
pub(crate) struct YamlNode<'p, 'v> {
    pub(crate) key_path: String,
    value: &'v Value,
    pub(crate) problems: &'p ProblemCollector<'p>,
}

impl<'p, 'v> YamlNode<'p, 'v> {
    /// The whole document.
    pub(crate) fn root(value: &'v Value, problems: &'p ProblemCollector<'p>) -> Self {
        Self { key_path: String::new(), value, problems }
    }

    /// Has an observer learn how this value is read.
    fn observe(&self, kind: impl FnOnce() -> ValueKind) {
        self.problems.on_read(&self.key_path, kind);
    }

    /// Reports an error about this value. Returns `None`, so that a reader can return it.
    pub(crate) fn report_error<T>(&self, message: impl Into<String>) -> Option<T> {
        self.problems.report_error(&self.key_path, message)
    }

    /// Reports that this path cannot be used now, but may be later.
    pub(crate) fn report_unusable_path(&self, message: impl Into<String>) {
        self.problems.report_unusable_path(&self.key_path, message);
    }

    /// Reports a warning about this value.
    pub(crate) fn report_warning(&self, message: impl Into<String>) {
        self.problems.report_warning(&self.key_path, message);
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(self.value, Value::List(_))
    }

    pub(crate) fn is_mapping(&self) -> bool {
        matches!(self.value, Value::Mapping(_))
    }

    /// The scalar, unless nothing was written.
    fn scalar(&self) -> Option<&'v Scalar> {
        match self.value {
            Value::Scalar(scalar) if scalar.kind() != ScalarKind::Null => Some(scalar),
            _ => None,
        }
    }

    /// Reports that the value is empty, or not of the expected kind.
    fn report_wrong_kind<T>(&self, expected: &str) -> Option<T> {
        if self.value.is_null() {
            return self.report_error("is empty; remove it or give it a value");
        }
        self.report_error(format!("must be {expected}, not {}", self.value.kind_name()))
    }

    /// Reads a mapping. Keys other than `keys` are reported.
    pub(crate) fn read_mapping(&self, keys: &[&str]) -> Option<YamlMapping<'p, 'v>> {
        self.read_mapping_with_keys(keys, &[], true)
    }

    /// Reads a mapping with secrets: messages do not show an unknown key, which may be a misplaced secret.
    pub(crate) fn read_secret_mapping(&self, keys: &[&str]) -> Option<YamlMapping<'p, 'v>> {
        self.read_mapping_with_keys(keys, &[], false)
    }

    /// Like [`Self::read_mapping`]. A key of `refused` is reported with the problem that stands beside it.
    pub(crate) fn read_mapping_with_refused_keys(
        &self,
        keys: &[&str],
        refused: &[(&str, &str)],
    ) -> Option<YamlMapping<'p, 'v>> {
        self.read_mapping_with_keys(keys, refused, true)
    }

    fn read_mapping_with_keys(
        &self,
        keys: &[&str],
        refused: &[(&str, &str)],
        shows_keys: bool,
    ) -> Option<YamlMapping<'p, 'v>> {
        self.observe(|| ValueKind::Mapping(keys.iter().map(|key| (*key).to_owned()).collect()));
        let Value::Mapping(entries) = self.value else {
            return self.report_wrong_kind(&format!("a mapping with {}", join_with_or(keys)));
        };
        for (key, _) in entries.iter() {
            if keys.contains(&key) {
                continue;
            }
            if let Some((_, problem)) = refused.iter().find(|(name, _)| *name == key) {
                self.problems.report_error::<()>(&child_key_path(&self.key_path, key), *problem);
                continue;
            }
            if self.problems.is_full() {
                self.report_error::<()>("has an unknown key");
                continue;
            }
            let suggestion = match closest_match(key, keys.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if keys.len() == 1 => format!("the only key here is {}", join_with_and(keys)),
                None => format!("the keys here are {}", join_with_and(keys)),
            };
            if shows_keys && key.len() <= MAX_SHOWN_KEY_BYTES && is_plain_key(key) {
                self.problems.report_error::<()>(
                    &child_key_path(&self.key_path, key),
                    format!("unknown key; {suggestion}"),
                );
            } else {
                self.report_error::<()>(format!("has an unknown key; {suggestion}"));
            }
        }
        Some(YamlMapping { key_path: self.key_path.clone(), entries: Some(entries), problems: self.problems })
    }

    /// Reads a mapping whose keys are names, in the order of the file.
    pub(crate) fn read_named_entries(&self) -> Option<Vec<(&'v str, YamlNode<'p, 'v>)>> {
        self.observe(|| ValueKind::NamedEntries);
        let Value::Mapping(entries) = self.value else {
            return self.report_wrong_kind("a mapping of names");
        };
        let node_of = |key, value| YamlNode {
            key_path: child_key_path(&self.key_path, key),
            value,
            problems: self.problems,
        };
        Some(entries.iter().map(|(key, value)| (key, node_of(key, value))).collect())
    }

    /// Reads a list.
    pub(crate) fn read_list(&self) -> Option<Vec<YamlNode<'p, 'v>>> {
        self.observe(|| ValueKind::List);
        let Value::List(items) = self.value else {
            return self.report_wrong_kind("a list");
        };
        let item_path = |index| format!("{}[{index}]", self.key_path);
        Some(
            items
                .iter()
                .enumerate()
                .map(|(index, item)| YamlNode {
                    key_path: item_path(index),
                    value: &item.value,
                    problems: self.problems,
                })
                .collect(),
        )
    }

    /// Reads a list, each item with `read`. All items are read, even after one with an error.
    pub(crate) fn read_each<T>(&self, read: impl FnMut(&YamlNode<'p, 'v>) -> Option<T>) -> Option<Vec<T>> {
        let items: Vec<Option<T>> = self.read_list()?.iter().map(read).collect();
        items.into_iter().collect()
    }

    /// Reads a list that must not be empty; `empty` is the error if it is.
    pub(crate) fn read_nonempty_list<T>(
        &self,
        empty: &str,
        read: impl FnMut(&YamlNode<'p, 'v>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.read_each(read)?;
        if items.is_empty() { self.report_error(empty) } else { Some(items) }
    }

    /// Reads a string and expands it. A number, true or false counts as it was written: `007` is `007`.
    pub(crate) fn read_text(&self) -> Option<ExpandedText> {
        self.observe(|| ValueKind::Text);
        match self.scalar() {
            Some(scalar) => self.expand_text(&scalar.text),
            None => self.report_wrong_kind("a string"),
        }
    }

    /// Reads a string without expansion: a dollar sign is just a dollar sign.
    pub(crate) fn read_unexpanded_text(&self) -> Option<&str> {
        self.observe(|| ValueKind::Text);
        match self.scalar() {
            Some(scalar) => Some(&scalar.text),
            None => self.report_wrong_kind("a string"),
        }
    }

    /// Reads a string that must not be empty.
    pub(crate) fn read_nonempty_text(&self) -> Option<ExpandedText> {
        let text = self.read_text()?;
        match text.value.is_empty() {
            true => self.report_error(format!("must not be empty{}", text.source_note())),
            false => Some(text),
        }
    }

    /// Reads a secret, which must not be empty. A missing one is replaced where secrets may be missing.
    pub(crate) fn read_secret_text(&self) -> Option<ExpandedText> {
        self.observe(|| ValueKind::Text);
        let (base, environment) = (self.problems.base_directory(), self.problems.environment());
        match self.scalar() {
            Some(scalar)
                if self.problems.ignores_secrets()
                    && expand_text(&scalar.text, base, environment).is_err() =>
            {
                Some(ExpandedText::missing_secret(&self.key_path))
            }
            _ => self.read_nonempty_text(),
        }
    }

    /// Reads a string with `parse`. Its error says what is wrong, without the text.
    pub(crate) fn read_parsed<T, E: Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = self.read_nonempty_text()?;
        match parse(&text.value) {
            Ok(value) => Some(value),
            Err(problem) => self.report_error(format!("{problem}{}", text.source_note())),
        }
    }

    fn expand_text(&self, raw: &str) -> Option<ExpandedText> {
        match expand_text(raw, self.problems.base_directory(), self.problems.environment()) {
            Ok(text) => Some(text),
            Err(problems) => {
                for problem in problems {
                    self.report_error::<()>(problem);
                }
                None
            }
        }
    }

    /// Reads one of a few words, and returns the value that belongs to it.
    pub(crate) fn read_choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        self.observe(|| ValueKind::Choice(words.iter().map(|(word, _)| (*word).to_owned()).collect()));
        let text = self.read_text()?;
        match words.iter().find(|(word, _)| *word == text.value) {
            Some((_, value)) => Some(*value),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.report_error(format!("must be {}{}", join_with_or(&words), text.source_note()))
            }
        }
    }

    /// Reads a whole number. A string is accepted too, since an expansion always yields a string.
    pub(crate) fn read_integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        self.observe(|| ValueKind::Integer(*range.start(), *range.end()));
        let Some(scalar) = self.scalar() else { return self.report_wrong_kind("a number") };
        let text = self.expand_text(&scalar.text)?;
        match parse_integer(text.value.trim()).filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => self.report_error(format!(
                "must be a whole number from {} to {}{}",
                range.start(),
                range.end(),
                text.source_note()
            )),
        }
    }

    /// Reads a number with or without decimals, from 0 to `max`. Messages show `example`.
    pub(crate) fn read_decimal(&self, max: f64, example: &str) -> Option<f64> {
        self.observe(|| ValueKind::Decimal(max.to_string()));
        let Some(scalar) = self.scalar() else { return self.report_wrong_kind("a number") };
        let text = self.expand_text(&scalar.text)?;
        match parse_decimal(text.value.trim()).filter(|number| *number <= max) {
            Some(number) => Some(number),
            None => self.report_error(format!(
                "must be a number from 0 to {max}, such as {example}{}",
                text.source_note()
            )),
        }
    }

    /// Reads true or false, also written as a string.
    pub(crate) fn read_bool(&self) -> Option<bool> {
        self.observe(|| ValueKind::Bool);
        match self.scalar() {
            Some(scalar) if scalar.kind() == ScalarKind::Bool => {
                Some(scalar.text.eq_ignore_ascii_case("true"))
            }
            Some(scalar) if scalar.kind() == ScalarKind::Text => {
                self.read_choice(&[("true", true), ("false", false)])
            }
            _ => self.report_wrong_kind("true or false"),
        }
    }

    /// Reads a duration with its unit.
    pub(crate) fn read_duration(&self) -> Option<Duration> {
        self.observe(|| ValueKind::Duration);
        self.read_quantity(units::parse_duration, "s", "ms")
    }

    /// Reads a duration above zero.
    pub(crate) fn read_positive_duration(&self) -> Option<Duration> {
        let duration = self.read_duration()?;
        if duration.is_zero() { self.report_error("must be longer than 0s") } else { Some(duration) }
    }

    /// Reads a duration of at least 1 s.
    pub(crate) fn read_interval(&self) -> Option<Duration> {
        let duration = self.read_duration()?;
        if duration < Duration::from_secs(1) {
            self.report_error("must be at least 1s")
        } else {
            Some(duration)
        }
    }

    /// Reads a percentage.
    pub(crate) fn read_percentage(&self) -> Option<Percentage> {
        self.observe(|| ValueKind::Percentage);
        self.read_quantity(units::parse_percentage, "%", " %")
    }

    /// Reads a size with its unit, above zero. Returns bytes.
    pub(crate) fn read_byte_size(&self) -> Option<u64> {
        self.observe(|| ValueKind::ByteSize);
        let size = self.read_quantity(units::parse_byte_size, "MiB", "KiB")?;
        if size == 0 { self.report_error("must be more than 0B") } else { Some(size) }
    }

    fn read_quantity<T>(
        &self,
        read: fn(&str) -> Result<T, QuantityError>,
        unit: &str,
        smaller: &str,
    ) -> Option<T> {
        let Some(scalar) = self.scalar() else {
            return self.report_wrong_kind(&format!("a string with a unit, such as 10{unit}"));
        };
        let text = self.expand_text(&scalar.text)?;
        match read(&text.value) {
            Ok(value) => Some(value),
            Err(QuantityError::Expected(what)) => {
                self.report_error(format!("must {what}{}", text.source_note()))
            }
            Err(QuantityError::MissingUnit) => self.report_error(format!(
                "has no unit; give it one, such as 10{unit} or 10{smaller}{}",
                text.source_note()
            )),
        }
    }

    /// Reads a path of the file system; a relative one starts at the directory of the configuration file.
    pub(crate) fn read_file_path(&self) -> Option<PathBuf> {
        self.observe(|| ValueKind::Path);
        let text = self.read_nonempty_text()?;
        if text.value.contains('\0') {
            return self.report_error("must be a path without NUL");
        }
        Some(self.resolve_path(&text.value))
    }

    /// Resolves a path that is relative to the directory of the configuration file.
    pub(crate) fn resolve_path(&self, path: &str) -> PathBuf {
        self.problems.base_directory().join(path)
    }
}

/// A mapping whose keys have been checked. An optional mapping that is absent behaves like an empty one.
pub(crate) struct YamlMapping<'p, 'v> {
    pub(crate) key_path: String,
    entries: Option<&'v Entries>,
    pub(crate) problems: &'p ProblemCollector<'p>,
}

impl<'p, 'v> YamlMapping<'p, 'v> {
    /// Whether it has no key at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_none_or(|entries| entries.iter().len() == 0)
    }

    /// The full path of one of its keys.
    pub(crate) fn key_path_of(&self, key: &str) -> String {
        child_key_path(&self.key_path, key)
    }

    /// Reports an error about one of its keys. Returns `None`, so that a reader can return it.
    pub(crate) fn report_error_at<T>(&self, key: &str, message: impl Into<String>) -> Option<T> {
        self.problems.report_error(&self.key_path_of(key), message)
    }

    /// Reports a warning about one of its keys.
    pub(crate) fn report_warning_at(&self, key: &str, message: impl Into<String>) {
        self.problems.report_warning(&self.key_path_of(key), message);
    }

    /// A node for `value`, as if it were written at `key`.
    pub(crate) fn node_at<'w>(&self, key: &str, value: &'w Value) -> YamlNode<'p, 'w> {
        YamlNode { key_path: self.key_path_of(key), value, problems: self.problems }
    }

    /// The value of a key, if it is there.
    pub(crate) fn get(&self, key: &str) -> Option<YamlNode<'p, 'v>> {
        let value = self.entries?.get(key)?;
        Some(YamlNode { key_path: self.key_path_of(key), value, problems: self.problems })
    }

    /// The value of a required key; `how` says what to write if it is missing.
    pub(crate) fn require(&self, key: &str, how: &str) -> Option<YamlNode<'p, 'v>> {
        match self.get(key) {
            Some(node) if node.value.is_null() => node.report_error(format!("is empty; {how}")),
            Some(node) => Some(node),
            None => self.problems.report_error(&self.key_path_of(key), format!("is missing; {how}")),
        }
    }

    /// The one key of `keys` that is there, and its value. Exactly one must be; `how` says what to write if
    /// none is.
    pub(crate) fn require_exactly_one(
        &self,
        keys: &[&'static str],
        how: &str,
    ) -> Option<(&'static str, YamlNode<'p, 'v>)> {
        let mut found = keys.iter().filter_map(|key| Some((*key, self.get(key)?)));
        match (found.next(), found.next()) {
            (Some(found), None) => Some(found),
            (None, _) => {
                let message = format!("needs one of {}; {how}", join_with_and(keys));
                self.problems.report_error(&self.key_path, message)
            }
            (Some((one, _)), Some((other, _))) => {
                let message = format!("has both {one} and {other}; remove one of them");
                self.problems.report_error(&self.key_path, message)
            }
        }
    }

    /// Reads an optional key that has a default.
    pub(crate) fn read_or<T>(
        &self,
        key: &str,
        default: T,
        read: impl FnOnce(&YamlNode<'p, 'v>) -> Option<T>,
    ) -> Option<T> {
        match self.get(key) {
            Some(node) => read(&node),
            None => Some(default),
        }
    }

    /// Reads an optional key without a default. The outer `None` means that an error was reported.
    pub(crate) fn read_optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&YamlNode<'p, 'v>) -> Option<T>,
    ) -> Option<Option<T>> {
        self.read_or(key, None, |node| read(node).map(Some))
    }

    /// Reads an optional mapping in this one.
    pub(crate) fn read_block(&self, key: &str, keys: &[&str]) -> Option<YamlMapping<'p, 'v>> {
        let absent = YamlMapping { key_path: self.key_path_of(key), entries: None, problems: self.problems };
        self.read_or(key, absent, |node| node.read_mapping(keys))
    }
}

fn is_plain_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}
