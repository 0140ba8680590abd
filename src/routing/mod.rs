//! Which backend is next, and why: pools of tiers, round robin within a tier, rest, retry.
//!
//! Pure rules over names, limits, health and the time they are handed; no sockets, no clock.

pub mod breaker;
pub mod handover;
pub mod headroom;
pub mod health;
pub mod pool;
pub mod retry_budget;
pub mod retry_plan;
mod wheel;
mod window;
