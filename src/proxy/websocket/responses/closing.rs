//! How a Responses socket is closed: what its client is told.

use bytes::Bytes;

use super::error_event::{connection_limit_refusal, refusal_event};
use crate::proxy::websocket::frames::ReadError;
use crate::proxy::websocket::frames::decoder::FrameError;
use crate::refusal::{Refusal, RefusalReason};

// Close codes (RFC 6455, section 7.4.1).
pub(super) const CLOSE_NORMAL: u16 = 1000;
pub(super) const CLOSE_GOING_AWAY: u16 = 1001;
pub(super) const CLOSE_UNSUPPORTED_DATA: u16 = 1003;
pub(super) const CLOSE_POLICY_VIOLATION: u16 = 1008;

/// How a socket ends.
pub(super) struct Closing {
    /// The event that is sent before the close frame.
    pub(super) event: Option<Bytes>,
    pub(super) code: u16,
    pub(super) reason: &'static str,
    /// For the socket's record, if the client caused the close.
    pub(super) refusal: Option<RefusalReason>,
}

impl Closing {
    pub(super) fn with_code(code: u16, reason: &'static str) -> Self {
        Self { event: None, code, reason, refusal: None }
    }

    pub(super) fn refused(code: u16, refusal: &Refusal) -> Self {
        let reason = refusal.reason;
        Self { event: Some(refusal_event(refusal, None)), code, reason: reason.code(), refusal: Some(reason) }
    }

    /// Between two turns: the event and code that Azure uses after an hour.
    pub(super) fn between_turns() -> Self {
        let refusal = connection_limit_refusal();
        Self { refusal: None, ..Self::refused(CLOSE_GOING_AWAY, &refusal) }
    }

    /// After an error in the client's frames.
    pub(super) fn after_fault(code: u16, error: &ReadError) -> Self {
        Self { refusal: Some(refusal_of_read_error(error)), ..Self::with_code(code, "") }
    }
}

fn refusal_of_read_error(error: &ReadError) -> RefusalReason {
    match error {
        ReadError::Frame(FrameError::TooLarge) => RefusalReason::BodyTooLarge,
        ReadError::TooSlow => RefusalReason::RequestTimeout,
        ReadError::OutOfMemory => RefusalReason::Overloaded,
        ReadError::Lost(_) | ReadError::Frame(_) => RefusalReason::BadRequest,
    }
}
