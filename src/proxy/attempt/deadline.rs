//! The deadline of the current attempt, and what happens when it passes.

use std::time::Instant;

use super::upstream_error::UpstreamError;

/// The deadline for the next event of the current attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct AttemptDeadline {
    pub(in crate::proxy) at: Instant,
    pub(in crate::proxy) action: DeadlineAction,
}

/// What happens when a deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum DeadlineAction {
    /// The attempt ends with this error.
    GiveUp(UpstreamError),
    /// The client's upload is refused, because its next piece does not arrive.
    RefuseUpload,
    /// The response is no longer held: the client gets it, or another attempt is made.
    EndHold,
    /// The attempt is watched, or leaves a backend that is stalled (`silence.rs`).
    CheckSilence,
}
