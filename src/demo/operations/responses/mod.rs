//! The Responses API.
//!
//! Responses, their items and encrypted reasoning are known only to the resource that created them. This is
//! why a load balancer needs affinity.

mod create;
mod item_events;
mod operations;
mod output;
mod references;
mod response_object;

pub(super) use create::create_response;
pub(super) use operations::handle_responses;
