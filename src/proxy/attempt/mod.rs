//! One attempt: which backend is next, the exchange with it, what its response means, and what the
//! client gets.
//!
//! `retry_state.rs` chooses the backend, `exchange.rs` moves the bytes, `response_handler.rs` decides
//! what of a response is held and what is passed on, `outcome.rs` what a whole response leads to, and
//! `final_response.rs` what the client gets at the end of all attempts.

pub(super) mod deadline;
pub(super) mod exchange;
mod exhaustion;
pub(super) mod final_response;
pub(super) mod held_response;
pub(super) mod held_stream;
pub(super) mod outcome;
pub(super) mod relayed_response;
mod response_handler;
pub(super) mod response_state;
pub(super) mod retry_state;
pub(super) mod upstream_error;
