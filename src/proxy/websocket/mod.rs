//! WebSockets whose frames the balancer reads.

pub mod frames;
pub(super) mod responses;
