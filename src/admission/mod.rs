//! Who may call, and what for.

pub mod address;
pub mod clients;
pub mod subject;
pub mod tokens;
