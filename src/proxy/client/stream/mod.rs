//! What is done with the bytes of a client's connection that the engine does not do: they are checked, timed, counted,
//! collected, or read without being copied.

pub(super) mod chunked;
pub(super) mod collected_writes;
pub(super) mod http1;
pub(super) mod http2;
mod http2_deadline;
mod http2_errors;
mod http2_frames;
pub(in crate::proxy) mod http2_unread;
