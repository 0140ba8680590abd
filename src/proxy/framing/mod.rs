//! The framing of HTTP/1.1, checked to the letter on the bytes of a connection before Pingora parses them.
//!
//! Pingora is lenient in places where two parsers may disagree about where a message ends: it takes a chunk
//! whose size is missing for the last one, accepts any byte in a chunk extension, and drops a response's
//! `Content-Length` if there is a `Transfer-Encoding` as well.

pub(super) mod chunked;
pub(super) mod error;
pub(super) mod response;
