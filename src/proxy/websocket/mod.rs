//! WebSockets whose frames the balancer reads.

#[allow(dead_code, unused_imports, reason = "the sessions that read and write frames come next")]
pub mod frames;
