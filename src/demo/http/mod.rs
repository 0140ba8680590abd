//! HTTP/1.1 and WebSocket over a byte stream, written by hand.
//!
//! An HTTP library would normalise what the tests want to see (the case and order of headers, the
//! framing of bodies) and could not be made to misbehave in the ways that `faults` needs.

pub(in crate::demo) mod connection;
pub(in crate::demo) mod error;
pub(in crate::demo) mod multipart;
pub(in crate::demo) mod request_head;
pub(in crate::demo) mod resettable_stream;
pub(in crate::demo) mod status;
pub(in crate::demo) mod websocket;
