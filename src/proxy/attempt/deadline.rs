//! What happens to an attempt when nothing arrives in time.

use std::time::Instant;

use super::upstream_error::UpstreamError;

/// When the current attempt is acted on although nothing has arrived, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct AttemptDeadline {
    pub(in crate::proxy) at: Instant,
    pub(in crate::proxy) action: DeadlineAction,
}

/// What a deadline does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum DeadlineAction {
    /// The attempt is given up with this error.
    GiveUp(UpstreamError),
    /// What is held of the response goes to the client.
    ReleaseHeld,
}
