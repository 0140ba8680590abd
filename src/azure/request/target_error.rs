//! The error of parsing a request target.

/// Why a request target is rejected with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither `/path` nor `http://host/path`.
    #[error("the request target must be a path")]
    NotAPath,
    /// A character that may not appear unencoded in a request target (RFC 3986, section 2).
    #[error(
        "the request target has a control character, a space, a backslash, `#`, or another character that must be percent-encoded"
    )]
    ForbiddenCharacter,
    /// A percent sign that is not followed by two hex digits.
    #[error("the request target has a percent sign without two hex digits")]
    InvalidPercentEncoding,
    /// A percent-encoded character that another server could read as a different path.
    #[error("the path has an encoded slash, backslash, dot, percent sign, control or non-ASCII character")]
    AmbiguousEncoding,
    /// A `.` or `..` segment.
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    /// The deployment segment or query value is not a valid deployment name.
    #[error("{}", crate::names::DeploymentNameError)]
    InvalidDeploymentName,
    /// A query key that may appear only once is repeated.
    #[error("the query has more than one `{0}`")]
    DuplicateQueryKey(&'static str),
    /// A WebSocket upgrade names two different deployments.
    #[error("the query's `deployment` and `model` differ")]
    ConflictingDeployments,
}
