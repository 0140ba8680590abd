//! What is checked, timed or counted in the bytes of a client's connection, because the engine does not show
//! it.

pub(super) mod chunked;
pub(super) mod http2_deadline;
pub(super) mod http2_errors;
mod http2_frames;
