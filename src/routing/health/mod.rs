//! What is known of backends and their deployments: whether they can be used, how their attempts ended, and the word
//! for their state. It outlives a configuration.

pub mod answer_times;
pub mod availability;
pub mod backend_health;
pub mod backend_state;
pub mod breaker;
pub mod probe_permit;
pub mod recent_attempts;
pub mod rejection_review;
pub mod slow_start;
pub mod snapshot;
pub mod stall;
pub mod utilization;
