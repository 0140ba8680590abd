//! What is checked, timed, counted or collected of the bytes of a client's connection, because the engine does not do
//! it.

pub(super) mod chunked;
pub(super) mod collected_writes;
pub(super) mod http2;
mod http2_deadline;
mod http2_errors;
mod http2_frames;
pub(in crate::proxy) mod http2_unread;
