//! `websocket`: the limits of Responses WebSockets.

use std::time::Duration;

/// The limits of Responses WebSockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebSocketConfig {
    /// From the 101 to the end of a client's first message; 100 ms to 5 min.
    pub first_frame_timeout: Duration,
    /// The largest message of a client or of a backend. At most
    /// [`RequestsConfig::max_total_buffered_bytes`](super::RequestsConfig::max_total_buffered_bytes).
    pub max_frame_bytes: usize,
    /// The age at which a socket is closed between two turns; 1 s to 24 h.
    pub rotate_after: Duration,
}
