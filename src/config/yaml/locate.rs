//! Finds the line of a key path in a document, and the names of the list items on the way.

use crate::yaml::{Scalar, Value};

/// Where a key path leads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The line of the deepest part of the path that is in the document; `None` for the whole document.
    pub(crate) line: Option<usize>,
    /// The path with the names of list items, as in `backends[2] (westus).weight`.
    pub(crate) named_path: String,
}

/// One step of a key path.
enum Step<'p> {
    Index(usize),
    Key(&'p str),
}

/// Finds a key path, as [`crate::yaml::child_key_path`] writes it.
pub(crate) fn locate(root: &Value, key_path: &str) -> Location {
    let (mut value, mut rest) = (root, key_path);
    let mut location = Location { line: None, named_path: String::with_capacity(key_path.len()) };
    while let Some((step, length)) = next_step(rest) {
        let found = match (&step, value) {
            (Step::Index(index), Value::List(items)) => {
                items.get(*index).map(|item| (item.line, &item.value))
            }
            (Step::Key(key), Value::Mapping(entries)) => entries.line_of(key).zip(entries.get(key)),
            _ => None,
        };
        let Some((line, inner)) = found else { break };
        location.line = Some(line);
        location.named_path.push_str(rest.get(..length).unwrap_or_default());
        if let (Step::Index(_), Some(name)) = (step, name_of(inner)) {
            location.named_path += &format!(" ({name})");
        }
        value = inner;
        rest = rest.get(length..).unwrap_or_default();
    }
    location.named_path.push_str(rest);
    location
}

/// The first step of a path and its length. `None` at the end, and at a key that the path does not show.
fn next_step(path: &str) -> Option<(Step<'_>, usize)> {
    if let Some(inside) = path.strip_prefix('[') {
        let (inside, _) = inside.split_once(']')?;
        let step = match inside.strip_prefix('"') {
            Some(key) => Step::Key(key.strip_suffix('"')?),
            None => Step::Index(inside.parse().ok()?),
        };
        return Some((step, inside.len() + 2));
    }
    let word = path.strip_prefix('.').unwrap_or(path);
    let word = word.split(['.', '[']).next().filter(|word| !word.is_empty())?;
    Some((Step::Key(word), word.len() + usize::from(path.starts_with('.'))))
}

/// The `name` of a list item, if it looks like the name of a backend or client. Other texts are not shown.
fn name_of(item: &Value) -> Option<&str> {
    let Value::Mapping(entries) = item else { return None };
    let Some(Value::Scalar(Scalar { text, .. })) = entries.get("name") else { return None };
    let is_shown = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&text.len()).then_some(text.as_str()).filter(|text| text.bytes().all(is_shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_line_and_shows_the_names_on_the_way() {
        let text = "backends:\n  - name: east\n    weight: 0\n  - weight: 1\n    name: ${NAME}\n\
                    \x20 - { deployments: { gpt-4.1: x,\n      b: y }, name: 'we.st' }\nclients: open\n";
        let root = crate::yaml::parse(text, &mut |_, _, problem| panic!("{problem}")).unwrap();
        for (path, line, named_path) in [
            ("", None, ""),
            ("backends", Some(1), "backends"),
            ("backends[0]", Some(2), "backends[0] (east)"),
            ("backends[0].weight", Some(3), "backends[0] (east).weight"),
            // A key that is missing has the line of the item that it is missing in.
            ("backends[0].endpoint", Some(2), "backends[0] (east).endpoint"),
            ("backends[0].tls.ca", Some(2), "backends[0] (east).tls.ca"),
            // A name that is expanded is not shown.
            ("backends[1].weight", Some(4), "backends[1].weight"),
            ("backends[2].deployments[\"gpt-4.1\"]", Some(6), "backends[2] (we.st).deployments[\"gpt-4.1\"]"),
            ("backends[2].deployments.b", Some(7), "backends[2] (we.st).deployments.b"),
            ("backends[2].deployments[…]", Some(6), "backends[2] (we.st).deployments[…]"),
            ("backends[9].weight", Some(1), "backends[9].weight"),
            ("clients.name", Some(8), "clients.name"),
            ("listeners", None, "listeners"),
        ] {
            let expected = Location { line, named_path: named_path.to_owned() };
            assert_eq!(locate(&root, path), expected, "{path}");
        }
    }
}
