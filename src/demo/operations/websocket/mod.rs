//! The APIs that are spoken over a WebSocket: Realtime, and Responses on v1.

mod realtime_session;
mod responses_session;

pub(in crate::demo) mod session;
