//! The APIs that are spoken over a WebSocket: Realtime, and Responses on v1.

mod error_event;
mod realtime_response;
mod realtime_session;
mod responses_session;
mod steering;
mod turn;

pub(in crate::demo) mod session;
