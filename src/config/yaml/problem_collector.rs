//! The one list of problems, and what expansion needs.

use std::cell::RefCell;
use std::path::Path;

use super::expansion::EnvironmentLookup;
use crate::config::error::ConfigProblem;

/// The one list of problems, and what expansion needs.
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

    /// Notes an error; the `None` is for the caller to return.
    pub(crate) fn report_error<T>(&self, path: &str, message: impl Into<String>) -> Option<T> {
        self.errors.borrow_mut().push(ConfigProblem { key_path: path.to_owned(), message: message.into() });
        None
    }

    pub(crate) fn report_warning(&self, path: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(ConfigProblem { key_path: path.to_owned(), message: message.into() });
    }

    /// A variable of the environment.
    pub(crate) fn environment_variable(&self, name: &str) -> Option<String> {
        (self.environment)(name)
    }

    /// Where relative paths start.
    pub(crate) fn base_directory(&self) -> &'e Path {
        self.base_directory
    }

    /// The environment.
    pub(crate) fn environment(&self) -> &'e EnvironmentLookup<'e> {
        self.environment
    }

    /// The errors and the warnings.
    pub(crate) fn into_problems(self) -> (Vec<ConfigProblem>, Vec<ConfigProblem>) {
        (self.errors.into_inner(), self.warnings.into_inner())
    }
}
