//! Why an attempt ended without a response, and what of the engine's errors is the client's fault.

use pingora::{Error, ErrorSource, ErrorType};

use crate::refusal::{Refusal, RefusalReason};

/// Why an attempt ended without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum UpstreamError {
    /// The backend's name has never resolved.
    Dns,
    ConnectTimeout,
    ConnectRefused,
    Connect,
    Tls,
    Reset,
    Protocol,
    FirstByteTimeout,
    IdleTimeout,
}

impl UpstreamError {
    /// From an error of making a connection.
    pub(in crate::proxy) fn from_connect_error(error: &Error) -> Self {
        match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Self::ConnectTimeout,
            ErrorType::ConnectRefused => Self::ConnectRefused,
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => Self::Tls,
            _ => Self::Connect,
        }
    }

    /// From an error on a connection that was made.
    pub(in crate::proxy) fn from_exchange_error(error: &Error) -> Self {
        match error.etype() {
            ErrorType::ConnectionClosed
            | ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::H2Error => Self::Reset,
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Self::IdleTimeout,
            _ => Self::Protocol,
        }
    }

    /// The word in the record's `attempts[].error`.
    pub(in crate::proxy) fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectRefused => "connect_refused",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::IdleTimeout => "idle_timeout",
        }
    }

    /// Whether an `attempts[].error` names a timeout, which the client is told with 504 and not 502.
    pub(super) fn is_timeout(word: &str) -> bool {
        [Self::ConnectTimeout, Self::FirstByteTimeout, Self::IdleTimeout]
            .iter()
            .any(|timeout| timeout.as_str() == word)
    }
}

/// Whether the client caused this error after its request was admitted: its upload grew too large or
/// did not arrive.
pub(in crate::proxy) fn is_client_error(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::HTTPStatus(_)) && *error.esource() == ErrorSource::Downstream
}

/// The refusal for such an error.
pub(in crate::proxy) fn client_error_refusal(error: &Error) -> Refusal {
    match error.etype() {
        ErrorType::HTTPStatus(413) => Refusal::new(
            RefusalReason::BodyTooLarge,
            "the upload is larger than requests.max_streamed_body allows",
        ),
        ErrorType::HTTPStatus(408) => {
            Refusal::new(RefusalReason::RequestTimeout, "the rest of the upload did not arrive in time")
        }
        _ => Refusal::bad_request("the request body's framing is malformed"),
    }
}
