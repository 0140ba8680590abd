//! The `model` field of a JSON body or a form.

use std::ops::Range;

use crate::names::DeploymentName;

/// The value of `model`. A bad value is kept as such, because it is an error only where `model` names
/// the deployment. On a classic path the deployment in the path wins, whatever `model` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelField {
    /// No `model`, or `null`.
    Absent,
    /// A valid deployment name.
    Named {
        /// The name.
        name: DeploymentName,
        /// Where the value is in the body: the JSON string with its quotes, or the form field's
        /// content.
        range: Range<usize>,
    },
    /// A string that is not a valid deployment name.
    InvalidName,
    /// Not a string.
    NotString,
}

impl ModelField {
    /// The deployment name, if there is a `model`.
    ///
    /// # Errors
    /// The value is not a string or not a valid deployment name.
    pub fn deployment(&self) -> Result<Option<&DeploymentName>, ModelFieldError> {
        match self {
            Self::Absent => Ok(None),
            Self::Named { name, .. } => Ok(Some(name)),
            Self::InvalidName => Err(ModelFieldError::InvalidName),
            Self::NotString => Err(ModelFieldError::NotString),
        }
    }

    /// Where the name is, if it must be replaced: if it differs from `upstream` in any byte. Deployment
    /// names compare without case, but Azure gets the spelling of the configuration.
    pub(in crate::azure) fn range_to_replace(&self, upstream: &DeploymentName) -> Option<Range<usize>> {
        match self {
            Self::Named { name, range } if name.as_str() != upstream.as_str() => Some(range.clone()),
            _ => None,
        }
    }
}

/// Why `model` does not name a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelFieldError {
    /// `model` is a number, a list, …
    #[error("`model` must be a string")]
    NotString,
    /// `model` is a string, but not a valid deployment name.
    #[error("`model`: {}", crate::names::DeploymentNameError)]
    InvalidName,
}
