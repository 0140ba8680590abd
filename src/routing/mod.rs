//! Which backend a request is sent to: health of backends, pools of tiers, round robin, retries.
//!
//! These are rules over names, limits, health and the time that they are given; they know neither sockets
//! nor the clock.

pub mod answer_times;
pub mod attempt_errors;
pub mod attempt_outcome;
pub mod availability;
pub mod backend_health;
pub mod backend_state;
pub mod breaker;
pub mod episodes;
pub mod headroom;
pub mod health_snapshot;
pub mod pool;
pub mod recent_attempts;
pub mod rejection_review;
pub mod retry_budget;
pub mod retry_plan;
pub mod service_state;
pub mod stall;
mod weighted_round_robin;
mod window;
