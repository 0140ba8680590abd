//! The error of a command, as it is printed.

use std::error::Error;
use std::fmt;

use crate::system_error::without_error_number;

/// The message of a failed command: the error and its causes.
pub(super) struct CliError(pub(super) String);

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: Error> From<E> for CliError {
    fn from(error: E) -> Self {
        let mut text = without_error_number(&error.to_string()).to_owned();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let inner_text = without_error_number(&inner.to_string()).to_owned();
            // Many messages already contain that of their cause.
            if !text.contains(&inner_text) {
                text.push_str(": ");
                text.push_str(&inner_text);
            }
            cause = inner.source();
        }
        Self(text)
    }
}
