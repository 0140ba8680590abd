//! The definitions of simulated resources: the file of `aoai-lb simulate`, and the resources of `aoai-lb
//! demo`.

pub(in crate::demo) mod demo_resources;
pub(in crate::demo) mod error;
pub(in crate::demo) mod mood_parser;
pub(in crate::demo) mod resource_file;

mod duration;
