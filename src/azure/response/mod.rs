//! Responses: their verdict, retry and rate limit headers, event streams, token usage, the ids of objects
//! that a resource has made, and the text for the record.

pub mod capture;
pub mod captured_text;
pub mod collected_body;
pub mod error_body;
pub(super) mod first_event;
pub mod hints;
mod id_scanner;
pub mod id_time;
mod json_outline;
mod known_errors;
mod learned_id;
pub mod made_objects;
mod oversized_event;
pub mod oversized_ids;
pub mod realtime_events;
pub mod socket_event;
pub mod sse;
pub mod stored_object;
pub mod usage;
pub mod verdict;
