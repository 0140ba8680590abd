//! Why a request target is rejected.

/// Why a request target is refused with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither `/path` nor `http://host/path`.
    #[error("the request target must be a path")]
    NotAPath,
    /// A raw character that does not belong there.
    #[error(
        "the request target has a control character, a backslash, `#`, a blank, or a character that must be percent-encoded"
    )]
    ForbiddenCharacter,
    /// `%` without two hex digits.
    #[error("the request target has a percent sign without two hex digits")]
    InvalidPercentEncoding,
    /// An escape that could mean another path to another server.
    #[error("the path has an encoded slash, backslash, dot, percent sign, control or non-ASCII character")]
    AmbiguousEncoding,
    /// `.` or `..` as a segment.
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    /// The deployment is none.
    #[error("{}", crate::names::DeploymentNameError)]
    InvalidDeploymentName,
    /// A query key that may occur once occurs again.
    #[error("the query has more than one `{0}`")]
    DuplicateQueryKey(&'static str),
    /// An upgrade names two deployments.
    #[error("the query's `deployment` and `model` differ")]
    ConflictingDeployments,
}
