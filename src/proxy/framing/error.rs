//! The error of a message whose framing is malformed. It passes through Pingora as the error of a read.

use std::io;

use crate::proxy::error_types::find_io_error;

/// What is malformed about a message.
#[derive(Debug, thiserror::Error)]
#[error("malformed HTTP/1.1: {0}")]
pub(in crate::proxy) struct FramingError(pub(in crate::proxy) &'static str);

impl From<FramingError> for io::Error {
    fn from(error: FramingError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Whether this error of Pingora is caused by a [`FramingError`].
pub(in crate::proxy) fn is_framing_error(error: &pingora::Error) -> bool {
    // The error in an `io::Error` is not its `source`.
    let is_framing = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<FramingError>());
    find_io_error(error, is_framing).is_some()
}

#[cfg(test)]
mod tests {
    use pingora::{Error, ErrorType};

    use super::*;

    #[test]
    fn a_framing_error_is_found_in_what_pingora_makes_of_it() {
        let read_error = |cause: io::Error| Error::because(ErrorType::ReadError, "when reading body", cause);
        assert!(is_framing_error(&read_error(FramingError("x").into())));
        assert!(is_framing_error(&Error::because(
            ErrorType::InternalError,
            "outer",
            read_error(FramingError("x").into())
        )));
        assert!(!is_framing_error(&read_error(io::ErrorKind::ConnectionReset.into())));
        assert!(!is_framing_error(&read_error(io::Error::other("x"))));
        assert!(!is_framing_error(&Error::new(ErrorType::ReadError)));
    }
}
