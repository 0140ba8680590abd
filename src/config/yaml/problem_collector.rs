//! Collects all errors and warnings of a file, so that a check can report them at once.

use std::cell::RefCell;
use std::path::Path;

use super::expansion::EnvironmentLookup;
use crate::config::error::ConfigProblem;

/// Collects errors and warnings. Also holds what expansion needs: the environment, and the directory that
/// relative paths start at.
pub(crate) struct ProblemCollector<'e> {
    base_directory: &'e Path,
    environment: &'e EnvironmentLookup<'e>,
    errors: RefCell<Vec<ConfigProblem>>,
    warnings: RefCell<Vec<ConfigProblem>>,
}

impl<'e> ProblemCollector<'e> {
    pub(crate) fn new(base_directory: &'e Path, environment: &'e EnvironmentLookup<'e>) -> Self {
        Self { base_directory, environment, errors: RefCell::default(), warnings: RefCell::default() }
    }

    /// Adds an error. Returns `None`, so that a reader can return it.
    pub(crate) fn report_error<T>(&self, key_path: &str, message: impl Into<String>) -> Option<T> {
        self.errors
            .borrow_mut()
            .push(ConfigProblem { key_path: key_path.to_owned(), message: message.into() });
        None
    }

    /// Adds a warning.
    pub(crate) fn report_warning(&self, key_path: &str, message: impl Into<String>) {
        self.warnings
            .borrow_mut()
            .push(ConfigProblem { key_path: key_path.to_owned(), message: message.into() });
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
        (self.errors.into_inner(), self.warnings.into_inner())
    }
}
