//! Whether an exchange is the first one that shows the end of an object of an earlier request.

use crate::names::DeploymentName;

/// Whether an exchange is the first one that shows the end of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShownEnd {
    /// It is. The request that made the object named this deployment.
    First(Option<DeploymentName>),
    /// It is not, or it shows no end with tokens, or the object is not known, or another record has its tokens.
    NotCounted,
}
