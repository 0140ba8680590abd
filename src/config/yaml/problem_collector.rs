//! Collects all errors and warnings of a file, so that a check can report them at once.

use std::cell::RefCell;
use std::path::Path;

use super::expansion::EnvironmentLookup;
use crate::config::error::ConfigProblem;

/// The most errors, and the most warnings, that are listed. The others are counted.
const MAX_PROBLEMS: usize = 100;

/// Collects errors and warnings. Also holds what expansion needs: the environment, and the directory that
/// relative paths start at.
pub(crate) struct ProblemCollector<'e> {
    base_directory: &'e Path,
    environment: &'e EnvironmentLookup<'e>,
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
    fn add(&mut self, key_path: &str, message: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(ConfigProblem { key_path: key_path.to_owned(), message });
        } else {
            self.omitted += 1;
        }
    }

    fn into_problems(mut self, kind: &str) -> Vec<ConfigProblem> {
        if self.omitted > 0 {
            let message = format!("and {} more {kind}", self.omitted);
            self.problems.push(ConfigProblem { key_path: String::new(), message });
        }
        self.problems
    }
}

impl<'e> ProblemCollector<'e> {
    pub(crate) fn new(base_directory: &'e Path, environment: &'e EnvironmentLookup<'e>) -> Self {
        Self {
            base_directory,
            environment,
            errors: RefCell::default(),
            warnings: RefCell::default(),
            unusable_paths: RefCell::default(),
        }
    }

    /// Adds an error. Returns `None`, so that a reader can return it.
    pub(crate) fn report_error<T>(&self, key_path: &str, message: impl Into<String>) -> Option<T> {
        self.errors.borrow_mut().add(key_path, message.into());
        None
    }

    /// Adds a warning.
    pub(crate) fn report_warning(&self, key_path: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().add(key_path, message.into());
    }

    /// Whether further errors are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.errors.borrow().problems.len() >= MAX_PROBLEMS
    }

    /// Adds a problem of a path that may be usable later.
    pub(crate) fn report_unusable_path(&self, key_path: &str, message: impl Into<String>) {
        self.unusable_paths.borrow_mut().add(key_path, message.into());
    }

    /// Takes the problems of paths that may be usable later.
    pub(crate) fn take_unusable_paths(&self) -> Vec<ConfigProblem> {
        self.unusable_paths.take().into_problems("paths")
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

    /// The errors, and the warnings.
    pub(crate) fn into_problems(self) -> (Vec<ConfigProblem>, Vec<ConfigProblem>) {
        (
            self.errors.into_inner().into_problems("errors"),
            self.warnings.into_inner().into_problems("warnings"),
        )
    }
}
