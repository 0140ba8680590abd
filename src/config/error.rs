//! What is wrong with a configuration.

use std::fmt;

/// One thing to look at, and where. Neither part shows a value that was expanded or a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The place, as `backends[2].weight`; empty for the whole file.
    pub key_path: String,
    /// What is wrong and what would be right.
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

/// Why a file is refused: all of it, one line each when displayed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", one_per_line(.errors))]
pub struct ConfigError {
    /// What has to be put right; at least one.
    pub errors: Vec<ConfigProblem>,
    /// What was noticed besides.
    pub warnings: Vec<ConfigProblem>,
}

pub(crate) fn one_per_line(problems: &[ConfigProblem]) -> String {
    problems.iter().map(ConfigProblem::to_string).collect::<Vec<_>>().join("\n")
}
