//! One attempt: which backend is next, the exchange with it, and what becomes of its response.

pub(super) mod exchange;
pub(super) mod final_response;
pub(super) mod hold;
pub(super) mod outcome;
pub(super) mod relay;
pub(super) mod retry_state;
pub(super) mod upstream_error;
