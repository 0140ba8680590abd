//! Where records go.

pub mod jsonl;
