//! The backends' side: addresses, peers, connections and their pool, request heads as a backend gets them,
//! and the balancer's own requests to backends.

mod balancer_request;
mod coalesced_stream;
pub(super) mod connection;
mod connection_pool;
pub mod dns;
pub mod headers;
pub mod live_check;
pub mod peer;
pub mod probe;
pub mod question;
pub mod rechecks;
pub mod stall_questions;
pub(super) mod trace_headers;
