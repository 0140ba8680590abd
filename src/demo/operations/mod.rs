//! The operations of the simulated API. `dispatch` finds the one that a request is for.

mod audio;
mod batches;
mod chat;
mod completions;
mod containers;
mod conversations;
mod embeddings;
mod files;
mod images;
mod models;
mod objects;
pub(in crate::demo) mod responses;
pub(in crate::demo) mod shared;
mod uploads;
mod vector_stores;

pub(in crate::demo) mod dispatch;
