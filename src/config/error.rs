//! The problems of a configuration, each with the key that it is about.

use std::fmt;

/// An error or a warning about one key. It never contains a secret or an expanded value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The key, such as `backends[2].weight`; empty for the whole file.
    pub key_path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key_path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.key_path, self.message)
        }
    }
}

/// Why a configuration is refused. Displays all errors, one per line.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", one_per_line(.errors))]
pub struct ConfigError {
    /// What must be corrected; at least one.
    pub errors: Vec<ConfigProblem>,
    /// What is allowed but probably a mistake.
    pub warnings: Vec<ConfigProblem>,
}

pub(crate) fn one_per_line(problems: &[ConfigProblem]) -> String {
    problems.iter().map(ConfigProblem::to_string).collect::<Vec<_>>().join("\n")
}
