//! The Responses API.
//!
//! Responses, their items and encrypted reasoning are known only to the resource that created them. This is
//! why a load balancer needs affinity.

mod create;
mod hosted_tools;
mod item_events;
mod operations;
mod output;
mod output_context;
mod references;
mod response_object;

pub(in crate::demo) use operations::create_on_websocket;
pub(super) use operations::{handle_responses, response_for_batch_line};
