//! Afterwards: what was asked, what was answered, from where, and how many tokens it took.
//!
//! Knows finished exchanges, not requests in flight.

pub mod exchange;
pub mod sinks;
