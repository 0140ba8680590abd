//! The field `model` of a JSON body or of a form.

use std::ops::Range;

use crate::names::DeploymentName;

/// What a body says under `model`. A bad value is an error only where the model names the
/// deployment: on a classic path the path wins, whatever `model` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelField {
    /// No `model`, or `null`.
    Absent,
    /// A deployment name.
    Named {
        /// The name.
        name: DeploymentName,
        /// The bytes to replace: the JSON string with its quotes, or a form field's content.
        range: Range<usize>,
    },
    /// A string that is no deployment name.
    InvalidName,
    /// Something else than a string.
    NotString,
}

impl ModelField {
    /// The deployment this names.
    ///
    /// # Errors
    /// [`ModelFieldError`].
    pub fn deployment(&self) -> Result<Option<&DeploymentName>, ModelFieldError> {
        match self {
            Self::Absent => Ok(None),
            Self::Named { name, .. } => Ok(Some(name)),
            Self::InvalidName => Err(ModelFieldError::InvalidName),
            Self::NotString => Err(ModelFieldError::NotString),
        }
    }

    /// The name and its place, if it differs in a byte from `upstream`.
    pub(in crate::azure) fn range_to_replace(&self, upstream: &DeploymentName) -> Option<Range<usize>> {
        match self {
            Self::Named { name, range } if name.as_str() != upstream.as_str() => Some(range.clone()),
            _ => None,
        }
    }
}

/// Why `model` names no deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelFieldError {
    /// `model` is a number, a list, …
    #[error("`model` must be a string")]
    NotString,
    /// `model` is no deployment name.
    #[error("`model`: {}", crate::names::DeploymentNameError)]
    InvalidName,
}
