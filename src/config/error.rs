//! The problems of a configuration, each with its place in the file and the key that it is about.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Whether a problem prevents the use of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can be used, but this is probably a mistake.
    Warning,
}

/// An error or a warning about one key. It never contains a secret or an expanded value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Whether it is an error.
    pub severity: Severity,
    /// The file; `None` for a text that is not from a file.
    pub file: Option<Arc<Path>>,
    /// The line, from 1; `None` for the whole file.
    pub line: Option<usize>,
    /// The key, such as `backends[2].weight`; empty for the whole file. In a problem of a file, list items have
    /// their names, as in `backends[2] (westus).weight`.
    pub key_path: String,
    /// What is wrong, and what would be right.
    pub message: String,
    /// How many problems this is: more than one for the last of a list that leaves some out.
    pub count: usize,
}

impl ConfigProblem {
    /// A problem of a key.
    pub(crate) fn new(severity: Severity, key_path: &str, message: impl Into<String>) -> Self {
        Self {
            severity,
            file: None,
            line: None,
            key_path: key_path.to_owned(),
            message: message.into(),
            count: 1,
        }
    }

    /// A problem of a line of a file, or of the whole file.
    pub fn of_file(severity: Severity, file: &Path, line: Option<usize>, message: impl Into<String>) -> Self {
        Self { file: Some(file.into()), line, ..Self::new(severity, "", message) }
    }
}

/// `FILE:LINE: error: backends[2] (westus).weight: must be …`, or without the place if it is not from a file.
impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            let severity = match self.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            write!(f, " {severity}: ")?;
        }
        if !self.key_path.is_empty() {
            write!(f, "{}: ", self.key_path)?;
        }
        f.write_str(&self.message)
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

impl ConfigError {
    /// One error about a whole file.
    pub fn of_file(file: &Path, message: impl Into<String>) -> Self {
        let error = ConfigProblem::of_file(Severity::Error, file, None, message);
        Self { errors: vec![error], warnings: Vec::new() }
    }
}

/// Problems in the order of their lines. One without a line is about the whole file, or about those that are
/// left out.
fn by_line<'p>(problems: impl IntoIterator<Item = &'p ConfigProblem>) -> Vec<String> {
    let mut problems: Vec<&ConfigProblem> = problems.into_iter().collect();
    problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    problems.into_iter().map(ConfigProblem::to_string).collect()
}

pub(crate) fn one_per_line(problems: &[ConfigProblem]) -> String {
    by_line(problems).join("\n")
}

/// All problems in the order of their lines, one per line, and then how many there are. Empty without any.
pub fn problem_report(errors: &[ConfigProblem], warnings: &[ConfigProblem]) -> String {
    let mut lines = by_line(errors.iter().chain(warnings));
    let counts = [(errors, "error"), (warnings, "warning")].map(|(problems, word)| {
        let count: usize = problems.iter().map(|problem| problem.count).sum();
        (count > 0).then(|| format!("{count} {word}{}", if count == 1 { "" } else { "s" }))
    });
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    lines.extend((!counts.is_empty()).then(|| counts.join(", ")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_problems_by_line_and_then_their_count() {
        let problem = |severity, line, message: &str| ConfigProblem {
            line,
            ..ConfigProblem::of_file(severity, Path::new("/etc/x.yaml"), None, message)
        };
        let errors = [
            ConfigProblem { key_path: "a.b".to_owned(), ..problem(Severity::Error, Some(9), "is wrong") },
            ConfigProblem { count: 7, ..problem(Severity::Error, None, "and 7 more errors") },
            problem(Severity::Error, Some(2), "is missing"),
        ];
        let warnings = [problem(Severity::Warning, Some(3), "is odd")];
        let expected = "/etc/x.yaml:2: error: is missing\n/etc/x.yaml:3: warning: is odd\n\
                        /etc/x.yaml:9: error: a.b: is wrong\n/etc/x.yaml: error: and 7 more errors\n\
                        9 errors, 1 warning";
        assert_eq!(problem_report(&errors, &warnings), expected);
        assert_eq!(problem_report(&errors[2..], &[]), "/etc/x.yaml:2: error: is missing\n1 error");
        assert_eq!(problem_report(&[], &[]), "");
    }
}
