//! Collects all errors and warnings of a file, so that a check can report them at once.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use super::expansion::EnvironmentLookup;
use super::locate::locate;
use super::observer::{ReadObserver, ValueKind};
use crate::config::error::{ConfigProblem, Severity};
use crate::yaml::Value;

/// The most errors, and the most warnings, that are listed. The others are counted.
const MAX_PROBLEMS: usize = 100;

/// Collects errors and warnings. Also holds what expansion needs: the environment, and the directory that
/// relative paths start at.
pub(crate) struct ProblemCollector<'e> {
    base_directory: &'e Path,
    environment: &'e EnvironmentLookup<'e>,
    /// Whether secrets, and the files of certificates, may be missing.
    ignores_secrets: bool,
    observer: Option<&'e dyn ReadObserver>,
    errors: RefCell<ProblemList>,
    warnings: RefCell<ProblemList>,
    unusable_paths: RefCell<ProblemList>,
}

/// The first problems, and how many more there are.
#[derive(Default)]
struct ProblemList {
    problems: Vec<ConfigProblem>,
    omitted: usize,
}

impl ProblemList {
    fn add(&mut self, problem: ConfigProblem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.omitted += 1;
        }
    }

    /// The problems, and one for those that are left out.
    fn into_problems(mut self, severity: Severity, kind: &str) -> Vec<ConfigProblem> {
        if self.omitted > 0 {
            let message = format!("and {} more {kind}", self.omitted);
            self.problems
                .push(ConfigProblem { count: self.omitted, ..ConfigProblem::new(severity, "", message) });
        }
        self.problems
    }
}

impl<'e> ProblemCollector<'e> {
    pub(crate) fn new(base_directory: &'e Path, environment: &'e EnvironmentLookup<'e>) -> Self {
        Self {
            base_directory,
            environment,
            ignores_secrets: false,
            observer: None,
            errors: RefCell::default(),
            warnings: RefCell::default(),
            unusable_paths: RefCell::default(),
        }
    }

    /// Lets secrets, and the files of certificates, be missing.
    pub(crate) fn without_secrets(self) -> Self {
        Self { ignores_secrets: true, ..self }
    }

    /// Whether secrets, and the files of certificates, may be missing.
    pub(crate) fn ignores_secrets(&self) -> bool {
        self.ignores_secrets
    }

    /// Has this observer learn how values are read.
    pub(crate) fn with_observer(self, observer: &'e dyn ReadObserver) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// A value is read as one of a kind.
    pub(super) fn on_read(&self, key_path: &str, kind: impl FnOnce() -> ValueKind) {
        if let Some(observer) = self.observer {
            observer.on_read(key_path, kind());
        }
    }

    /// Adds an error. Returns `None`, so that a reader can return it.
    pub(crate) fn report_error<T>(&self, key_path: &str, message: impl Into<String>) -> Option<T> {
        self.errors.borrow_mut().add(ConfigProblem::new(Severity::Error, key_path, message));
        None
    }

    /// Adds an error of this line, which no value of the document may have.
    pub(crate) fn report_error_in_line(&self, key_path: &str, line: Option<usize>, message: String) {
        let problem = ConfigProblem { line, ..ConfigProblem::new(Severity::Error, key_path, message) };
        self.errors.borrow_mut().add(problem);
    }

    /// Adds a warning.
    pub(crate) fn report_warning(&self, key_path: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().add(ConfigProblem::new(Severity::Warning, key_path, message));
    }

    /// Whether further errors are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.errors.borrow().problems.len() >= MAX_PROBLEMS
    }

    /// Adds a problem of a path that may be usable later.
    pub(crate) fn report_unusable_path(&self, key_path: &str, message: impl Into<String>) {
        self.unusable_paths.borrow_mut().add(ConfigProblem::new(Severity::Error, key_path, message));
    }

    /// Adds the problems of another file.
    pub(crate) fn adopt(&self, other: AllProblems) {
        let AllProblems { errors, warnings, unusable_paths } = other;
        errors.into_iter().for_each(|problem| self.errors.borrow_mut().add(problem));
        warnings.into_iter().for_each(|problem| self.warnings.borrow_mut().add(problem));
        unusable_paths.into_iter().for_each(|problem| self.unusable_paths.borrow_mut().add(problem));
    }

    /// The value of an environment variable.
    pub(crate) fn environment_variable(&self, name: &str) -> Option<String> {
        (self.environment)(name)
    }

    /// The directory that relative paths start at.
    pub(crate) fn base_directory(&self) -> &'e Path {
        self.base_directory
    }

    /// The lookup of environment variables.
    pub(crate) fn environment(&self) -> &'e EnvironmentLookup<'e> {
        self.environment
    }

    /// All problems. With a file, each has its place in it.
    pub(crate) fn into_problems(self, file: Option<&Path>, root: Option<&Value>) -> AllProblems {
        let file: Option<Arc<Path>> = file.map(Into::into);
        let with_place = |mut problem: ConfigProblem| {
            // One of another file has its place already.
            if problem.file.is_some() {
                return problem;
            }
            problem.file.clone_from(&file);
            if let (Some(_), Some(root)) = (&file, root) {
                let location = locate(root, &problem.key_path);
                problem.line = problem.line.or(location.line);
                problem.key_path = location.named_path;
            }
            problem
        };
        let finish = |list: RefCell<ProblemList>, severity, kind| {
            list.into_inner().into_problems(severity, kind).into_iter().map(with_place).collect()
        };
        AllProblems {
            errors: finish(self.errors, Severity::Error, "errors"),
            warnings: finish(self.warnings, Severity::Warning, "warnings"),
            unusable_paths: finish(self.unusable_paths, Severity::Error, "paths"),
        }
    }
}

/// All problems of a configuration.
pub(crate) struct AllProblems {
    /// What must be corrected.
    pub(crate) errors: Vec<ConfigProblem>,
    /// What is probably a mistake.
    pub(crate) warnings: Vec<ConfigProblem>,
    /// Paths that cannot be used now, but may be later.
    pub(crate) unusable_paths: Vec<ConfigProblem>,
}
