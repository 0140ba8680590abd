//! Where records go.

pub mod jsonl;
pub mod log_analytics;
