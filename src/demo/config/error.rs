//! Why a file of `aoai-lb simulate` cannot be used.

use std::path::PathBuf;

use crate::files::FileError;

/// Why a file of `aoai-lb simulate` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    UnreadableFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: FileError,
    },
    /// The text is not YAML, or has unknown or missing keys. The message names line and column.
    #[error("{0}")]
    InvalidYaml(#[from] serde_yaml::Error),
    /// A value is invalid.
    #[error("{location}{separator}{reason}", separator = if location.is_empty() { "" } else { ": " })]
    InvalidValue {
        /// Where the value is, such as `resources[0].mood`.
        location: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl SimulatorConfigError {
    pub(super) fn invalid_value(location: &str, reason: impl Into<String>) -> Self {
        Self::InvalidValue { location: location.to_owned(), reason: reason.into() }
    }
}
