//! What differs between two configurations, in the words of the file. No value is told, which may be a secret.

use std::fmt;

use serde::Serialize;

use super::yaml::join_with_and;

/// The most names that a line of text has of each kind; the others are counted.
const MAX_SHOWN_NAMES: usize = 20;

/// What differs between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfigChanges {
    /// By name.
    pub backends: ListChanges,
    /// By name.
    pub clients: ListChanges,
    /// By address.
    pub listeners: ListChanges,
    /// Keys of the other blocks, such as `retry.attempts`.
    pub settings: Vec<String>,
}

/// What differs between two lists of named entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListChanges {
    /// Names that only the later list has.
    pub added: Vec<String>,
    /// Names that only the earlier list has.
    pub removed: Vec<String>,
    /// Entries that both have.
    pub changed: Vec<ChangedEntry>,
}

/// An entry of both lists that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangedEntry {
    /// Its name.
    pub name: String,
    /// The keys whose values differ.
    pub keys: Vec<&'static str>,
}

impl ConfigChanges {
    /// One line of text for each kind of change; a single line if there is none.
    pub fn to_lines(&self) -> Vec<String> {
        let lists =
            [("backends", &self.backends), ("clients", &self.clients), ("listeners", &self.listeners)];
        let mut lines: Vec<String> = lists
            .into_iter()
            .filter_map(|(what, list)| Some(format!("{what}: {}", list.to_text()?)))
            .collect();
        if !self.settings.is_empty() {
            lines.push(format!("settings: {}", join_shortened(&self.settings)));
        }
        if lines.is_empty() {
            lines.push("nothing changed".to_owned());
        }
        lines
    }
}

impl fmt::Display for ConfigChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_lines().join("; "))
    }
}

impl ListChanges {
    /// `None` if nothing differs.
    fn to_text(&self) -> Option<String> {
        let changed = self.changed.iter().map(|entry| format!("{} ({})", entry.name, entry.keys.join(", ")));
        let changed: Vec<String> = changed.collect();
        let kinds = [("added", &self.added), ("removed", &self.removed), ("changed", &changed)];
        let kinds = kinds.into_iter().filter(|(_, names)| !names.is_empty());
        let texts: Vec<String> =
            kinds.map(|(kind, names)| format!("{kind} {}", join_shortened(names))).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }
}

/// The first names, and how many more there are.
pub(crate) fn join_shortened<T: AsRef<str>>(names: &[T]) -> String {
    let mut shown: Vec<&str> = names.iter().take(MAX_SHOWN_NAMES).map(AsRef::as_ref).collect();
    let more = format!("{} more", names.len() - shown.len());
    if names.len() > shown.len() {
        shown.push(&more);
    }
    join_with_and(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_in_a_few_lines() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(ConfigChanges::default().to_lines(), ["nothing changed"]);
        let many = (1..=5000).map(|i| format!("c{i}")).collect();
        let changes = ConfigChanges {
            backends: ListChanges {
                added: names(&["x", "y"]),
                removed: names(&["z"]),
                changed: vec![
                    ChangedEntry { name: "west".to_owned(), keys: vec!["weight", "credential"] },
                    ChangedEntry { name: "east".to_owned(), keys: vec!["enabled"] },
                ],
            },
            clients: ListChanges { added: many, ..ListChanges::default() },
            listeners: ListChanges::default(),
            settings: names(&["retry.attempts"]),
        };
        let lines = changes.to_lines();
        assert_eq!(
            lines[0],
            "backends: added x and y, removed z, changed west (weight, credential) and east (enabled)"
        );
        assert!(
            lines[1].starts_with("clients: added c1, c2, ") && lines[1].ends_with(", c20 and 4980 more"),
            "{}",
            lines[1]
        );
        assert_eq!(lines[2..], ["settings: retry.attempts"]);
        assert_eq!(changes.to_string(), lines.join("; "));
    }
}
