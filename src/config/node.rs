//! A cursor over the parsed YAML: it knows where it is, reads one kind of value at a time,
//! and puts what is wrong on one list instead of stopping.
//!
//! Reading gives `Option`: `None` means that a problem has been noted. Callers read all
//! their keys first and use `?` last, so that one pass finds everything.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_yaml::{Mapping, Value};

use super::Problem;
use super::Ratio;
use super::expand::{Environment, Text, expand};
use super::units::{self, BadQuantity};
use super::words::{all, either, near};

/// The most characters of an unknown key that a message repeats: `{ api_key:"…" }` without its
/// blank is one key with the secret in it.
const SHOWN_KEY: usize = 40;

/// The one list of problems, and what expansion needs.
pub(super) struct Report<'e> {
    base: &'e Path,
    env: &'e Environment<'e>,
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl<'e> Report<'e> {
    pub(super) fn new(base: &'e Path, env: &'e Environment<'e>) -> Self {
        Self { base, env, errors: RefCell::default(), warnings: RefCell::default() }
    }

    /// Notes an error; the `None` is for the caller to return.
    pub(super) fn error<T>(&self, path: &str, message: impl Into<String>) -> Option<T> {
        self.errors.borrow_mut().push(Problem { path: path.to_owned(), message: message.into() });
        None
    }

    pub(super) fn warn(&self, path: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Problem { path: path.to_owned(), message: message.into() });
    }

    /// A variable of the environment.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.env)(name)
    }

    /// The errors and the warnings.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        (self.errors.into_inner(), self.warnings.into_inner())
    }
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a mapping",
        Value::Tagged(_) => "a value with a YAML tag",
    }
}

fn is_plain(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

fn child(path: &str, key: &str) -> String {
    match (path, is_plain(key)) {
        ("", true) => key.to_owned(),
        (_, true) => format!("{path}.{key}"),
        (_, false) => format!("{path}[{key:?}]"),
    }
}

/// A value and its place.
pub(super) struct Node<'a, V = Value> {
    pub(super) path: String,
    value: V,
    pub(super) report: &'a Report<'a>,
}

/// A value inside another.
pub(super) type Inner<'a, 'v> = Node<'a, &'v Value>;

impl<'a> Node<'a> {
    /// The document itself.
    pub(super) fn root(value: Value, report: &'a Report<'a>) -> Self {
        Self { path: String::new(), value, report }
    }

    /// The document's own node as one like those inside it.
    pub(super) fn inner(&self) -> Inner<'a, '_> {
        Node { path: self.path.clone(), value: &self.value, report: self.report }
    }
}

impl<'a, 'v> Inner<'a, 'v> {
    /// Notes an error here.
    pub(super) fn error<T>(&self, message: impl Into<String>) -> Option<T> {
        self.report.error(&self.path, message)
    }

    /// Notes a warning here.
    pub(super) fn warn(&self, message: impl Into<String>) {
        self.report.warn(&self.path, message);
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.is_sequence()
    }

    pub(super) fn is_map(&self) -> bool {
        self.value.is_mapping()
    }

    pub(super) fn is_number(&self) -> bool {
        self.value.is_number()
    }

    /// Every reader ends up here with a value that is not of its kind.
    fn mismatch<T>(&self, expected: &str) -> Option<T> {
        match self.value {
            Value::Null => self.error("is empty; remove it or give it a value"),
            other => self.error(format!("must be {expected}, not {}", kind(other))),
        }
    }

    /// A mapping with these keys and no others.
    pub(super) fn map(&self, keys: &[&str]) -> Option<Map<'a, 'v>> {
        self.open(keys, true)
    }

    /// The same for a mapping that holds secrets: a stray key may be one, and is not repeated.
    pub(super) fn secret_map(&self, keys: &[&str]) -> Option<Map<'a, 'v>> {
        self.open(keys, false)
    }

    fn open(&self, keys: &[&str], shows_keys: bool) -> Option<Map<'a, 'v>> {
        let Value::Mapping(entries) = self.value else {
            return self.mismatch(&format!("a mapping with {}", either(keys)));
        };
        for key in entries.keys() {
            let Value::String(key) = key else {
                self.error::<()>(format!("has a key that is {}; the keys are {}", kind(key), all(keys)));
                continue;
            };
            if keys.contains(&key.as_str()) {
                continue;
            }
            let meant = match near(key, keys.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if keys.len() == 1 => format!("the only key here is {}", all(keys)),
                None => format!("the keys here are {}", all(keys)),
            };
            if shows_keys && key.len() <= SHOWN_KEY && is_plain(key) {
                self.report.error::<()>(&child(&self.path, key), format!("unknown key; {meant}"));
            } else {
                self.error::<()>(format!("has an unknown key; {meant}"));
            }
        }
        Some(Map { path: self.path.clone(), entries: Some(entries), report: self.report })
    }

    /// A mapping whose keys are names: each with its value, in the order of the file.
    pub(super) fn entries(&self) -> Option<Vec<(&'v str, Inner<'a, 'v>)>> {
        let Value::Mapping(entries) = self.value else {
            return self.mismatch("a mapping of names");
        };
        let mut named = Vec::with_capacity(entries.len());
        let mut is_good = true;
        for (key, value) in entries {
            let Value::String(key) = key else {
                is_good = false;
                self.error::<()>(format!("has a key that is {}; write it in quotes", kind(key)));
                continue;
            };
            named.push((key.as_str(), Node { path: child(&self.path, key), value, report: self.report }));
        }
        is_good.then_some(named)
    }

    /// A list, each item with its place.
    pub(super) fn list(&self) -> Option<Vec<Inner<'a, 'v>>> {
        let Value::Sequence(items) = self.value else {
            return self.mismatch("a list");
        };
        let place = |i| format!("{}[{i}]", self.path);
        Some(
            items
                .iter()
                .enumerate()
                .map(|(i, value)| Node { path: place(i), value, report: self.report })
                .collect(),
        )
    }

    /// A list read item by item: `None` if any of them is bad.
    pub(super) fn each<T>(&self, read: impl FnMut(&Inner<'a, 'v>) -> Option<T>) -> Option<Vec<T>> {
        let items: Vec<Option<T>> = self.list()?.iter().map(read).collect();
        items.into_iter().collect()
    }

    /// The same, where an empty list is a mistake: `empty` says which.
    pub(super) fn some_of_each<T>(
        &self,
        empty: &str,
        read: impl FnMut(&Inner<'a, 'v>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.each(read)?;
        if items.is_empty() { self.error(empty) } else { Some(items) }
    }

    /// A string, expanded.
    pub(super) fn text(&self) -> Option<Text> {
        match self.value {
            Value::String(raw) => self.expanded(raw),
            Value::Number(_) | Value::Bool(_) => {
                self.error(format!("must be a string, not {}; write it in quotes", kind(self.value)))
            }
            _ => self.mismatch("a string"),
        }
    }

    /// A string as it is written, in which a dollar sign is a dollar sign.
    pub(super) fn verbatim(&self) -> Option<&str> {
        match self.value {
            Value::String(raw) => Some(raw),
            _ => self.mismatch("a string"),
        }
    }

    /// A string that is not empty.
    pub(super) fn filled(&self) -> Option<Text> {
        let text = self.text()?;
        match text.value.is_empty() {
            true if text.is_expanded() => self.error(format!("must not be empty, as {} is", text.shown())),
            true => self.error("must not be empty"),
            false => Some(text),
        }
    }

    /// Where its text comes from, if not from the file itself.
    pub(super) fn source(&self) -> Option<String> {
        let Value::String(raw) = self.value else { return None };
        let text = expand(raw, self.report.base, self.report.env).ok()?;
        text.is_expanded().then(|| text.shown())
    }

    /// A string with a grammar of its own; `read` says what it has to be instead.
    pub(super) fn parsed<T, E: Display>(&self, read: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = self.filled()?;
        match read(&text.value) {
            Ok(value) => Some(value),
            Err(problem) => self.error(format!("{problem}, not {}", text.shown())),
        }
    }

    fn expanded(&self, raw: &str) -> Option<Text> {
        match expand(raw, self.report.base, self.report.env) {
            Ok(text) => Some(text),
            Err(problems) => {
                for problem in problems {
                    self.error::<()>(problem);
                }
                None
            }
        }
    }

    /// One of a few words, each with its meaning.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        match words.iter().find(|(word, _)| *word == text.value) {
            Some((_, meaning)) => Some(*meaning),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.error(format!("must be {}, not {}", either(&words), text.shown()))
            }
        }
    }

    /// A whole number. It may be written as a string, since an expansion is always one.
    pub(super) fn number(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let (number, shown) = match self.value {
            Value::Number(number) => (number.as_u64(), number.to_string()),
            Value::String(raw) => {
                let text = self.expanded(raw)?;
                (text.value.trim().parse().ok(), text.shown())
            }
            _ => return self.mismatch("a number"),
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => self.error(format!("must be {} to {}, not {shown}", range.start(), range.end())),
        }
    }

    /// True or false, also as a string.
    pub(super) fn flag(&self) -> Option<bool> {
        match self.value {
            Value::Bool(flag) => Some(*flag),
            Value::String(_) => self.word(&[("true", true), ("false", false)]),
            _ => self.mismatch("true or false"),
        }
    }

    /// A duration with its unit.
    pub(super) fn duration(&self) -> Option<Duration> {
        self.quantity(units::duration, "s", "ms")
    }

    /// A duration above zero.
    pub(super) fn some_time(&self) -> Option<Duration> {
        let duration = self.duration()?;
        if duration.is_zero() { self.error("must be longer than 0s") } else { Some(duration) }
    }

    /// A duration of at least a second.
    pub(super) fn interval(&self) -> Option<Duration> {
        let duration = self.duration()?;
        if duration < Duration::from_secs(1) { self.error("must be at least 1s") } else { Some(duration) }
    }

    /// A ratio in percent.
    pub(super) fn ratio(&self) -> Option<Ratio> {
        self.quantity(units::ratio, "%", " %")
    }

    /// A size with its unit, above zero.
    pub(super) fn size(&self) -> Option<u64> {
        let size = self.quantity(units::size, "MiB", "KiB")?;
        if size == 0 { self.error("must be more than 0B") } else { Some(size) }
    }

    fn quantity<T>(&self, read: fn(&str) -> Result<T, BadQuantity>, unit: &str, smaller: &str) -> Option<T> {
        let no_unit = |number: &str| format!("has no unit; write {number}{unit} or {number}{smaller}");
        let text = match self.value {
            Value::Number(number) if number.is_u64() => {
                return self.error(no_unit(&number.to_string()));
            }
            Value::String(raw) => self.expanded(raw)?,
            _ => return self.mismatch(&format!("a string with a unit, such as 10{unit}")),
        };
        match read(&text.value) {
            Ok(value) => Some(value),
            Err(BadQuantity::Must(what)) => self.error(format!("must {what}, not {}", text.shown())),
            Err(BadQuantity::NoUnit) if text.is_expanded() => self
                .error(format!("has no unit in {}; give it one, such as {unit} or {smaller}", text.shown())),
            Err(BadQuantity::NoUnit) => self.error(no_unit(text.value.trim())),
        }
    }

    /// A path of the file system; a relative one starts at the directory of the file. With it
    /// comes how a message may call it.
    pub(super) fn file(&self) -> Option<(PathBuf, String)> {
        let text = self.filled()?;
        if text.value.contains('\0') {
            return self.error("must be a path without NUL");
        }
        Some((self.resolve(&text.value), text.shown()))
    }

    /// `path` as seen from the directory of the file.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.report.base.join(path)
    }
}

/// A mapping whose keys are known. One that is not in the file reads as empty.
pub(super) struct Map<'a, 'v> {
    pub(super) path: String,
    entries: Option<&'v Mapping>,
    pub(super) report: &'a Report<'a>,
}

impl<'a, 'v> Map<'a, 'v> {
    /// The path of a key of this mapping.
    pub(super) fn at(&self, key: &str) -> String {
        child(&self.path, key)
    }

    /// A value that stands for one that is not in the file.
    pub(super) fn inner<'w>(&self, key: &str, value: &'w Value) -> Inner<'a, 'w> {
        Node { path: self.at(key), value, report: self.report }
    }

    /// The value of an optional key.
    pub(super) fn find(&self, key: &str) -> Option<Inner<'a, 'v>> {
        let value = self.entries?.get(key)?;
        Some(Node { path: self.at(key), value, report: self.report })
    }

    /// The value of a key that has to be there; `how` says what to write.
    pub(super) fn need(&self, key: &str, how: &str) -> Option<Inner<'a, 'v>> {
        match self.find(key) {
            Some(node) if node.value.is_null() => node.error(format!("is empty; {how}")),
            Some(node) => Some(node),
            None => self.report.error(&self.at(key), format!("is missing; {how}")),
        }
    }

    /// The value of an optional key, or `default`; `None` if it is there and bad.
    pub(super) fn or<T>(
        &self,
        key: &str,
        default: T,
        read: impl FnOnce(&Inner<'a, 'v>) -> Option<T>,
    ) -> Option<T> {
        match self.find(key) {
            Some(node) => read(&node),
            None => Some(default),
        }
    }

    /// The value of an optional key without default; the outer `None` if it is there and bad.
    pub(super) fn maybe<T>(
        &self,
        key: &str,
        read: impl FnOnce(&Inner<'a, 'v>) -> Option<T>,
    ) -> Option<Option<T>> {
        self.or(key, None, |node| read(node).map(Some))
    }

    /// A mapping inside this one; absent, it reads as empty.
    pub(super) fn block(&self, key: &str, keys: &[&str]) -> Option<Map<'a, 'v>> {
        let absent = Map { path: self.at(key), entries: None, report: self.report };
        self.or(key, absent, |node| node.map(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_as_they_are_written() {
        for (path, key, expected) in [
            ("", "retry", "retry"),
            ("a[0]", "b", "a[0].b"),
            ("d", "gpt-4.1", "d[\"gpt-4.1\"]"),
            ("", "", "[\"\"]"),
        ] {
            assert_eq!(child(path, key), expected);
        }
    }
}
