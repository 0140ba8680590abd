//! What went wrong with a try, or with a request after it was admitted, out of the engine's
//! errors.

use pingora::{Error, ErrorSource, ErrorType};

use crate::refusal::{Reason, Refusal};

/// Why a try ended without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Trouble {
    /// The name has never resolved.
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

impl Trouble {
    /// The word in the record.
    pub(in crate::proxy) fn word(self) -> &'static str {
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
}

/// What kept a connection from being made.
pub(in crate::proxy) fn of_connecting(error: &Error) -> Trouble {
    match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Trouble::ConnectTimeout,
        ErrorType::ConnectRefused => Trouble::ConnectRefused,
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => Trouble::Tls,
        _ => Trouble::Connect,
    }
}

/// What broke a connection off.
pub(in crate::proxy) fn of(error: &Error) -> Trouble {
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError | ErrorType::H2Error => {
            Trouble::Reset
        }
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Trouble::IdleTimeout,
        _ => Trouble::Protocol,
    }
}

/// Whether the client is at fault, after its request was admitted: an upload that grew too large, or
/// did not arrive.
pub(in crate::proxy) fn is_clients_fault(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::HTTPStatus(_)) && *error.esource() == ErrorSource::Downstream
}

/// What the client is told of its fault.
pub(in crate::proxy) fn clients_fault(error: &Error) -> Refusal {
    match error.etype() {
        ErrorType::HTTPStatus(413) => {
            Refusal::new(Reason::BodyTooLarge, "the upload is larger than requests.max_streamed_body allows")
        }
        ErrorType::HTTPStatus(408) => {
            Refusal::new(Reason::RequestTimeout, "the rest of the upload did not arrive in time")
        }
        _ => Refusal::bad_request("the request body's framing is malformed"),
    }
}
