//! What several operations share: the stand-in for a model, and the parameters that they have in common.

pub(in crate::demo) mod parameters;
pub(in crate::demo) mod stream_options;
pub(in crate::demo) mod text_model;
pub(in crate::demo) mod usage;
