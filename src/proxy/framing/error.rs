//! The error of a message whose framing is malformed. It passes through Pingora as the error of a read.

use std::error::Error as StdError;
use std::io;

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
    let mut cause: Option<&(dyn StdError + 'static)> = error.cause.as_deref().map(|cause| cause as _);
    while let Some(current) = cause {
        // The error in an `io::Error` is not its `source`.
        let inner = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<FramingError>()) {
            return true;
        }
        cause = match current.downcast_ref::<Box<pingora::Error>>() {
            Some(error) => error.cause.as_deref().map(|cause| cause as _),
            None => current.source(),
        };
    }
    false
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
