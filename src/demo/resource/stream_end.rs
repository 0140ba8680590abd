//! The end of the stream of a stored response, from which on its read lag counts.

use std::time::{Duration, Instant};

use super::state::ResourceState;
use crate::demo::util::locking::lock_ignoring_poison;

/// A stored response that is about to be streamed.
#[derive(Debug, Clone)]
pub(in crate::demo) struct StreamedResponse {
    pub(in crate::demo) id: String,
    pub(in crate::demo) read_lag: Duration,
}

/// Ends the stream of a response when it is dropped: also if the client has disconnected, or the connection
/// was dropped.
#[derive(Debug)]
pub(in crate::demo) struct StreamEnd<'a> {
    resource: &'a ResourceState,
    streamed: StreamedResponse,
    is_complete: bool,
}

impl StreamedResponse {
    /// To be held until the stream has ended.
    pub(in crate::demo) fn begin(self, resource: &ResourceState) -> StreamEnd<'_> {
        StreamEnd { resource, streamed: self, is_complete: false }
    }
}

impl StreamEnd<'_> {
    /// The last event was sent as well, so that a background response is complete.
    pub(in crate::demo) fn set_complete(&mut self) {
        self.is_complete = true;
    }
}

impl Drop for StreamEnd<'_> {
    fn drop(&mut self) {
        let StreamedResponse { id, read_lag } = &self.streamed;
        lock_ignoring_poison(&self.resource.responses).on_stream_end(
            id,
            Instant::now(),
            *read_lag,
            self.is_complete,
        );
    }
}
