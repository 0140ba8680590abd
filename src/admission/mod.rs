//! Who may call, and what for.

pub mod certificate_subject;
pub mod client;
pub mod client_ip;
pub mod client_registry;
pub mod token_verifier;
