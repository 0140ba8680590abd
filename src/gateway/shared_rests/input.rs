//! What the task gets.

use std::sync::Arc;
use std::time::Duration;

use super::part::SharedPart;
use super::targets::Targets;
use super::tracked::Key;
use crate::names::BackendName;

/// What the task gets.
#[derive(Debug)]
pub(super) enum Input {
    /// A request has found this unavailable; the status of the response, if that matters.
    Found(BackendName, SharedPart, Option<u16>),
    /// A message has come.
    Received(Vec<u8>),
    /// The server has kept this message, for so long from now.
    Kept(Vec<u8>, Duration),
    /// The active configuration has these backends.
    Targets(Arc<Targets>),
    /// Whether a probe has been claimed for so long; `None` if that is not known.
    Claimed(Key, Option<bool>, Duration),
    /// The last write has ended.
    Written,
}
