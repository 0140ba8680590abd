//! Requests for which no backend is free wait here instead of being refused.
//!
//! Each deployment has a line (`line.rs`). The more urgent class goes first; within a class clients get the same
//! number of tokens, and the requests of one client are served in the order in which they came (`class_line.rs`).
//! How much may wait is limited for all lines together (`waiting_requests.rs`). Whatever may
//! free a backend calls [`RequestQueue::wake`], and what becomes free by itself has a time. What clients
//! are charged is collected for other instances (`charges.rs`).

mod charges;
mod choices;
mod class_line;
mod line;
mod request_queue;
mod ticket;
mod waiting_requests;

pub use self::charges::LineCharges;
pub use self::line::Choice;
pub use self::request_queue::{QueueCharge, QueueEnd, QueueLimits, QueueLine, QueuePlace, RequestQueue};
pub use self::ticket::QueuedRequest;
pub use self::waiting_requests::QueueBounds;
