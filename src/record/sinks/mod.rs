//! The sinks that deliver records from the spool: a file of JSON lines, and Log Analytics.

pub(super) mod backoff;
pub(super) mod incident;
pub mod jsonl;
pub mod log_analytics;
