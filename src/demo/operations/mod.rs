//! The operations of the simulated API. `dispatch` finds the one that a request is for.

mod audio;
mod batches;
mod chat;
mod completions;
mod embeddings;
mod files;
mod images;
mod models;
mod objects;
mod responses;
mod shared;
mod uploads;

pub(in crate::demo) mod dispatch;
pub(in crate::demo) mod websocket;
