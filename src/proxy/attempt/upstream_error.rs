//! Why an attempt ended without a complete response, and which of Pingora's errors the client caused.

use pingora::{Error, ErrorSource, ErrorType};

use crate::proxy::error_types::local_shortage;
use crate::proxy::framing::error::is_framing_error;
use crate::refusal::{Refusal, RefusalReason};

/// Why an attempt ended without a complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum UpstreamError {
    /// The backend's host name has never resolved.
    NameNeverResolved,
    /// No connection, TLS included, within `timeouts.connect`.
    ConnectTimeout,
    ConnectRefused,
    /// Any other error of connecting.
    Connect,
    /// This process has no file descriptor for a connection, or the kernel no memory. It says nothing about the backend.
    LocalShortage,
    /// The TLS handshake failed, or the certificate is not trusted.
    Tls,
    /// The connection was closed or reset, or the HTTP/2 stream was.
    Reset,
    /// The backend sent something that is not valid HTTP.
    Protocol,
    /// No response head within `timeouts.first_byte` or `timeouts.first_byte_stream`.
    FirstByteTimeout,
    /// Nothing more of the response, or no byte of the request taken, within `timeouts.idle`.
    IdleTimeout,
    /// No response head for half a minute, from a backend that does not answer free questions either.
    Stalled,
}

impl UpstreamError {
    /// From an error of connecting.
    pub(in crate::proxy) fn from_connect_error(error: &Error) -> Self {
        match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Self::ConnectTimeout,
            ErrorType::ConnectRefused => Self::ConnectRefused,
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => Self::Tls,
            _ if local_shortage(error).is_some() => Self::LocalShortage,
            _ => Self::Connect,
        }
    }

    /// From an error on an established connection.
    pub(in crate::proxy) fn from_exchange_error(error: &Error) -> Self {
        match error.etype() {
            ErrorType::ReadError if is_framing_error(error) => Self::Protocol,
            ErrorType::ConnectionClosed
            | ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::H2Error => Self::Reset,
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Self::IdleTimeout,
            _ => Self::Protocol,
        }
    }

    /// The value of `attempts[].error` in the record.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NameNeverResolved => "dns",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectRefused => "connect_refused",
            Self::Connect => "connect",
            Self::LocalShortage => "local_shortage",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::Stalled => "stalled",
        }
    }

    /// Whether this `attempts[].error` says that the balancer itself lacks something.
    pub(super) fn is_local_shortage_code(word: &str) -> bool {
        word == Self::LocalShortage.as_str()
    }

    /// Whether this `attempts[].error` is a timeout, for which the client gets 504 instead of 502.
    pub(super) fn is_timeout_code(word: &str) -> bool {
        [Self::ConnectTimeout, Self::FirstByteTimeout, Self::IdleTimeout, Self::Stalled]
            .iter()
            .any(|timeout| timeout.as_str() == word)
    }
}

/// Whether this error is a fault of the client's upload, for which the client gets a refusal: it was too
/// large, too slow, or malformed.
pub(in crate::proxy) fn is_upload_error(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::HTTPStatus(_)) && *error.esource() == ErrorSource::Downstream
}

/// The refusal for an error for which [`is_upload_error`] is true.
pub(in crate::proxy) fn upload_error_refusal(error: &Error) -> Refusal {
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
