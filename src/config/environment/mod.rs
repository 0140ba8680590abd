//! The environment variables that `${NAME}` stands for: those of the process, and those of an environment
//! file. A variable of the process wins over one of the file.

mod file_syntax;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigProblem, Severity};
use crate::files::read_text_file;

/// The largest environment file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The name of the file that is read if none is given.
const DEFAULT_FILE_NAME: &str = "environment";

/// The variables that a configuration is expanded with. They stay as they are when the file changes.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `None` if there is no environment file.
    file: Option<EnvironmentFile>,
}

/// An environment file as it was read.
#[derive(Clone)]
struct EnvironmentFile {
    path: PathBuf,
    /// Whether the command line names it.
    is_explicit: bool,
    variables: HashMap<String, String>,
}

/// How a variable changes for a successor of this process.
#[derive(Debug, PartialEq, Eq)]
pub struct VariableChange {
    /// The name of the variable.
    pub name: String,
    /// The new value; `None` if it is not set any more.
    pub value: Option<String>,
}

impl Environment {
    /// The environment of a command: the process's own, and that of the file. Without `file` it is `environment`
    /// beside the configuration, if that file is there and may be read. Also returns warnings about the file.
    ///
    /// # Errors
    /// If `file` cannot be read.
    pub fn load(file: Option<&Path>, config_file: &Path) -> Result<(Self, Vec<ConfigProblem>), ConfigError> {
        let (path, is_explicit) = match file {
            Some(path) => (path.to_owned(), true),
            None => (config_file.with_file_name(DEFAULT_FILE_NAME), false),
        };
        match read_assignments(&path) {
            Ok((variables, warnings)) => {
                let file = EnvironmentFile { path, is_explicit, variables };
                Ok((Self { file: Some(file) }, warnings))
            }
            Err(problem) if is_explicit => Err(problem),
            Err(_) => Ok((Self::default(), Vec::new())),
        }
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<String> {
        self.variable_over(std::env::var(name).ok(), name)
    }

    fn variable_over(&self, of_process: Option<String>, name: &str) -> Option<String> {
        of_process.or_else(|| self.file.as_ref()?.variables.get(name).cloned())
    }

    /// The environment file, if one was read.
    pub fn file_path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// The environment file, if the command line names it.
    pub fn explicit_file_path(&self) -> Option<&Path> {
        self.file.as_ref().filter(|file| file.is_explicit).map(|file| file.path.as_path())
    }

    /// Whether the file sets other variables now, or other values. False if it cannot be read.
    pub fn has_file_changed(&self) -> bool {
        let Some(file) = &self.file else { return false };
        read_assignments(&file.path).is_ok_and(|(variables, _)| variables != file.variables)
    }

    /// What differs between the file as it was read and the file now, for the variables that this process has
    /// from the file: systemd sets them for the process when the unit has the same `EnvironmentFile=`. A successor
    /// inherits them, and they would win over the new values in the file.
    pub fn changes_for_successor(&self) -> Vec<VariableChange> {
        self.changes_over(|name| std::env::var(name).ok())
    }

    fn changes_over(&self, of_process: impl Fn(&str) -> Option<String>) -> Vec<VariableChange> {
        let Some(file) = &self.file else { return Vec::new() };
        let Ok((variables_now, _)) = read_assignments(&file.path) else { return Vec::new() };
        let inherited =
            file.variables.iter().filter(|(name, value)| of_process(name).as_ref() == Some(*value));
        let changed = inherited.filter(|(name, value)| variables_now.get(*name) != Some(*value));
        changed
            .map(|(name, _)| VariableChange { name: name.clone(), value: variables_now.get(name).cloned() })
            .collect()
    }
}

/// Reads a file: its variables and warnings about it.
fn read_assignments(path: &Path) -> Result<(HashMap<String, String>, Vec<ConfigProblem>), ConfigError> {
    let refused = |problem: String| ConfigError::of_file(path, problem);
    let text = read_text_file(path, MAX_FILE_BYTES)
        .map_err(|error| refused(format!("cannot read the environment file: {error}")))?;
    if text.contains('\0') {
        return Err(refused("the environment file contains a NUL character".to_owned()));
    }
    let assignments = file_syntax::parse(&text);
    let warning = |(line, problem)| ConfigProblem::of_file(Severity::Warning, path, Some(line), problem);
    Ok((assignments.variables.into_iter().collect(), assignments.problems.into_iter().map(warning).collect()))
}

/// Shows no value.
impl fmt::Debug for EnvironmentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvironmentFile").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_variable_of_the_process_wins_over_one_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let config_file = directory.path().join("aoai-lb.yaml");
        std::fs::write(directory.path().join("environment"), "A=file\nB=first\nB='last'\n").unwrap();
        let (environment, warnings) = Environment::load(None, &config_file).unwrap();
        assert_eq!((warnings, environment.explicit_file_path()), (vec![], None));
        for (of_process, name, expected) in [
            (Some("process"), "A", Some("process")),
            (Some(""), "A", Some("")),
            (None, "A", Some("file")),
            (None, "B", Some("last")),
            (Some("process"), "C", Some("process")),
            (None, "C", None),
        ] {
            let value = environment.variable_over(of_process.map(str::to_owned), name);
            assert_eq!(value.as_deref(), expected, "{of_process:?} {name}");
        }
        assert!(!format!("{environment:?}").contains("last"));
    }

    #[test]
    fn only_the_default_file_may_be_missing_or_unreadable() {
        let directory = tempfile::tempdir().unwrap();
        let config_file = directory.path().join("aoai-lb.yaml");
        let file = directory.path().join("environment");
        let load =
            |file: Option<&Path>| Environment::load(file, &config_file).map(|(environment, _)| environment);
        assert_eq!(load(None).unwrap().file_path(), None);
        let error = load(Some(&file)).unwrap_err().to_string();
        assert!(
            error
                .ends_with("environment: error: cannot read the environment file: No such file or directory"),
            "{error}"
        );
        std::fs::create_dir(&file).unwrap();
        assert_eq!(load(None).unwrap().file_path(), None);
        assert!(load(Some(&file)).unwrap_err().to_string().contains("it is a directory"));
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, "A=1\0").unwrap();
        assert!(load(Some(&file)).unwrap_err().to_string().contains("NUL"));
        std::fs::write(&file, "A=1\nhunter2\n").unwrap();
        let (environment, warnings) = Environment::load(Some(&file), &config_file).unwrap();
        assert_eq!(environment.explicit_file_path(), Some(file.as_path()));
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let expected =
            format!("{}:2: warning: has no `=`, so it is ignored; write NAME=value", file.display());
        assert_eq!(warnings, [expected]);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
        // Root may read it nevertheless.
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(load(None).unwrap().file_path().is_some(), is_root);
        assert_eq!(load(Some(&file)).is_ok(), is_root);
    }

    #[test]
    fn a_successor_gets_the_new_values_of_variables_that_came_from_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("environment");
        std::fs::write(&file, "SAME=1\nCHANGED=1\nREMOVED=1\nOVERRIDDEN=1\nUNSET=1\n").unwrap();
        let (environment, _) = Environment::load(Some(&file), Path::new("x.yaml")).unwrap();
        let of_process = |name: &str| match name {
            "SAME" | "CHANGED" | "REMOVED" => Some("1".to_owned()),
            "OVERRIDDEN" => Some("process".to_owned()),
            _ => None,
        };
        assert!(environment.changes_over(of_process).is_empty() && !environment.has_file_changed());
        std::fs::write(&file, "SAME=1\nCHANGED=2\nOVERRIDDEN=2\nUNSET=2\nNEW=2\n").unwrap();
        let mut changes = environment.changes_over(of_process);
        changes.sort_by(|a, b| a.name.cmp(&b.name));
        let change = |name: &str, value: Option<&str>| VariableChange {
            name: name.to_owned(),
            value: value.map(str::to_owned),
        };
        assert_eq!(changes, [change("CHANGED", Some("2")), change("REMOVED", None)]);
        assert!(environment.has_file_changed());
        std::fs::remove_file(&file).unwrap();
        assert!(environment.changes_over(of_process).is_empty() && !environment.has_file_changed());
    }
}
