//! What several operations share: the stand-in for a model, and the parameters that they have in common.

pub(in crate::demo) mod json_output;
pub(in crate::demo) mod listing;
pub(in crate::demo) mod parameters;
pub(in crate::demo) mod schema_document;
pub(in crate::demo) mod service_tier;
pub(in crate::demo) mod stream_options;
pub(in crate::demo) mod text_model;
pub(in crate::demo) mod usage;

mod schema_check;
mod schema_merge;
mod schema_scalars;
