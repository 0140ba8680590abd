//! Why a command has no result.

use std::time::Duration;

use redis::{ErrorKind, RedisError};

/// Errors of commands that Redis 6 wraps in an error of the script that ran them.
const WRAPPED_CODES: [&str; 6] = ["READONLY", "NOPERM", "MOVED", "OOM", "MISCONF", "MASTERDOWN"];

/// The first word of an error of the server, such as `NOPERM`; `None` for another error.
pub(super) fn code_of(error: &RedisError) -> Option<&str> {
    let code = error.code()?;
    let detail = error.detail().unwrap_or_default();
    let is_wrapped = |wrapped: &&&str| detail.contains(&format!("-{wrapped} "));
    let wrapped = WRAPPED_CODES.iter().find(is_wrapped).filter(|_| code == "ERR");
    Some(wrapped.copied().unwrap_or(code))
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// There is no connection, or none to the node of a cluster that has the key; the command was not carried out.
    #[error("there is no connection to the server")]
    Down,
    /// The connection broke. Whether the command was carried out is not known.
    #[error("the connection was lost")]
    Lost,
    /// No answer came in time. The command may still be carried out.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The server answered with an error.
    #[error("the server answered {code}{}", .detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default())]
    Refused {
        /// The first word of the error, such as `NOPERM`.
        code: String,
        /// The rest of it.
        detail: Option<String>,
    },
    /// The answer has another form than expected.
    #[error("the answer is not understood: {0}")]
    UnexpectedReply(String),
}

impl From<RedisError> for SharedError {
    fn from(error: RedisError) -> Self {
        match (error.kind(), code_of(&error)) {
            (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => {
                Self::UnexpectedReply(error.to_string())
            }
            (_, Some(code)) => {
                Self::Refused { code: code.to_owned(), detail: error.detail().map(ToOwned::to_owned) }
            }
            (ErrorKind::ClusterConnectionNotFound, None) => Self::Down,
            (_, None) => Self::Lost,
        }
    }
}
