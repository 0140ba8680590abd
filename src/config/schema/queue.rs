//! `queue`: requests wait here for which no backend is free.

use std::time::Duration;

/// How long and how much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// How long a request may wait.
    pub max_wait: Duration,
    /// How many requests may wait.
    pub max_requests: usize,
    /// The length of the bodies of those that wait together, in bytes.
    pub max_body_bytes: u64,
}
