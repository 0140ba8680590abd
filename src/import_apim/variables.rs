//! The variables of the configuration that is written: named values of API Management, secrets, and what the policies
//! leave to the service.

use std::collections::{HashMap, HashSet};

use super::source::shown_name;

/// What a variable has to be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum VariableKind {
    Url,
    Secret,
    KeyHash,
    Id,
    Version,
    Number,
    Text,
}

impl VariableKind {
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Url => "a URL",
            Self::Secret => "a secret",
            Self::KeyHash => "a SHA-256",
            Self::Id => "an id",
            Self::Version => "a version",
            Self::Number => "a number",
            Self::Text => "a text",
        }
    }
}

/// Variables that the environment of a process has for other purposes.
const TAKEN_NAMES: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "SHELL",
    "LANG",
    "TERM",
    "PWD",
    "TMPDIR",
    "HOSTNAME",
    "LOGNAME",
    "IDENTITY_HEADER",
    "IDENTITY_ENDPOINT",
    "AZURE_POD_IDENTITY_AUTHORITY_HOST",
];
/// The longest name, without the number that makes it unique.
const MAX_NAME_BYTES: usize = 64;

/// A variable with what it is for.
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) kind: VariableKind,
    /// What it is for, as text of a comment.
    pub(super) purpose: String,
}

/// All variables, in the order of their first use.
#[derive(Default)]
pub(super) struct Variables {
    pub(super) list: Vec<Variable>,
    taken: HashSet<String>,
    /// The kinds of each named value, with the position in the list.
    of_named_values: HashMap<String, Vec<(VariableKind, usize)>>,
    next_numbers: HashMap<String, usize>,
    /// The variables of endpoints, by the backend in API Management.
    of_endpoints: HashMap<String, String>,
}

impl Variables {
    /// The variable for `{{named_value}}`. One that is used as text may also be of another kind.
    pub(super) fn named_value(&mut self, named_value: &str, kind: VariableKind) -> String {
        let named_value = named_value.trim();
        let known = self.of_named_values.entry(named_value.to_owned()).or_default();
        let same = known.iter().find(|(known, _)| *known == kind || kind == VariableKind::Text);
        if let Some((_, position)) = same.or(known.iter().find(|(known, _)| *known == VariableKind::Text))
            && let Some(variable) = self.list.get_mut(*position)
        {
            if variable.kind == VariableKind::Text && kind != VariableKind::Text {
                variable.kind = kind;
                let position = *position;
                known.retain(|(_, other)| *other != position);
                known.push((kind, position));
            }
            return variable.name.clone();
        }
        known.push((kind, self.list.len()));
        self.add(named_value, kind, format!("the named value {}", shown_name(named_value)))
    }

    /// The variable for the endpoint of a backend of API Management, of which `name` is the first name.
    pub(super) fn endpoint(&mut self, id: &str, name: &str) -> String {
        let id = id.to_ascii_lowercase();
        if let Some(known) = self.of_endpoints.get(&id) {
            return known.clone();
        }
        let variable =
            self.add(&format!("{name}_ENDPOINT"), VariableKind::Url, format!("the endpoint of {name}"));
        self.of_endpoints.insert(id, variable.clone());
        variable
    }

    /// A variable of its own, with a name like `wish`.
    pub(super) fn add(&mut self, wish: &str, kind: VariableKind, purpose: String) -> String {
        let mut base: String = wish
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .take(MAX_NAME_BYTES)
            .collect();
        if !base.starts_with(|c: char| c.is_ascii_alphabetic()) || TAKEN_NAMES.contains(&base.as_str()) {
            base.insert_str(0, "APIM_");
        }
        let mut name = base.clone();
        while !self.taken.insert(name.clone()) {
            let number = self.next_numbers.entry(base.clone()).or_insert(2);
            name = format!("{base}_{number}");
            *number += 1;
        }
        self.list.push(Variable { name: name.clone(), kind, purpose });
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_named_value_and_kind_has_one_valid_name() {
        let mut variables = Variables::default();
        let mut named = |text: &str, kind| variables.named_value(text, kind);
        let (secret, url) = (VariableKind::Secret, VariableKind::Url);
        let names = [
            named("aoai-key", secret),
            named(" aoai-key ", secret),
            named("aoai_key", secret),
            named("aoai-key", url),
            named("aoai-key", VariableKind::Text),
            named("host", VariableKind::Text),
            named("host", url),
            named("1st", secret),
            named("path", secret),
            named("a}${B\n", secret),
        ];
        let expected = [
            "AOAI_KEY",
            "AOAI_KEY",
            "AOAI_KEY_2",
            "AOAI_KEY_3",
            "AOAI_KEY",
            "HOST",
            "HOST",
            "APIM_1ST",
            "APIM_PATH",
            "A___B",
        ];
        assert_eq!(names, expected);
    }
}
