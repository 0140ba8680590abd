//! Which backend a request is sent to: health of backends, pools of tiers, round robin, retries.
//!
//! These are rules over names, limits, health and the time that they are given; they know neither sockets
//! nor the clock.

pub mod asking;
pub mod attempt_errors;
pub mod attempt_outcome;
pub mod episodes;
pub mod headroom;
pub mod health;
pub mod homes;
pub mod pool;
pub mod prompt_cache;
pub mod retry_budget;
pub mod retry_plan;
pub mod routed_operation;
pub mod service_state;
pub mod spill;
mod weighted_round_robin;
mod window;
