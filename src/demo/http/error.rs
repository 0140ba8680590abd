//! The errors of a connection.

use std::io;

/// Why a request could not be read, or a response could not be sent.
#[derive(Debug, thiserror::Error)]
pub(in crate::demo) enum ConnectionError {
    /// The client closed the connection, or the connection broke.
    #[error("the client disconnected")]
    Disconnected,
    /// The request is malformed: the status to respond with, and the reason.
    #[error("{1}")]
    MalformedRequest(u16, &'static str),
}

impl From<io::Error> for ConnectionError {
    fn from(_: io::Error) -> Self {
        Self::Disconnected
    }
}
