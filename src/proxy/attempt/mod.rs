//! The attempts of a request: which backend is next, the exchange with it, what its response means, and
//! what the client gets.
//!
//! `retry_state.rs` keeps track of the attempts, `exchange.rs` moves the bytes, `response_handler.rs`
//! decides which part of a response is held and which is relayed, `outcome.rs` what a complete response
//! leads to, and `final_response.rs` makes the response that follows the last attempt.

mod affinity;
mod best_response;
pub(super) mod deadline;
pub(super) mod exchange;
mod exchange_failure;
mod exhaustion;
pub(super) mod final_response;
pub(super) mod held_response;
pub(super) mod held_stream;
pub(super) mod next_backend;
mod other_backends;
pub(super) mod outcome;
mod passed_deadline;
mod prompt_route;
mod queue_wait;
mod queueing;
mod rate_headers;
mod redaction;
pub(super) mod relayed_response;
pub(super) mod response_handler;
pub(super) mod response_state;
pub(super) mod retry_state;
pub(super) mod silence;
mod tunnel;
mod tunnel_exchange;
pub(super) mod upstream_error;
pub(super) mod upstream_target;
