//! Why a request could not be read, or a response not be written.

use std::io;

/// Why the exchange on a connection failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::demo) enum ConnectionError {
    /// The client closed the connection, or the connection broke.
    #[error("the client disconnected")]
    Disconnected,
    /// The request is malformed: the status to answer with, and the reason.
    #[error("{1}")]
    MalformedRequest(u16, &'static str),
}

impl From<io::Error> for ConnectionError {
    fn from(_: io::Error) -> Self {
        Self::Disconnected
    }
}
