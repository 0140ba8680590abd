//! Requests: the target, its operation and query, JSON and multipart bodies, and the ids of other
//! objects, and the prompt text for the record.

pub(super) mod body_references;
mod content_disposition;
pub(super) mod edit;
pub mod embedded_data;
mod header_parameters;
pub mod json_body;
pub(super) mod model_field;
pub mod multipart;
pub(super) mod operation;
mod percent;
pub mod prompt;
pub mod prompt_image;
pub mod prompt_opening;
pub(super) mod prompt_parts;
pub mod prompt_sample;
pub(super) mod query;
pub(super) mod reference_kind;
pub mod references;
pub mod route;
pub mod session_model;
pub mod socket_message;
pub mod subprotocol;
pub(super) mod target;
pub(super) mod target_cache;
pub(super) mod target_error;
