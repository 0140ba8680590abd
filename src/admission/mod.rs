//! Who may call and what each client may use: keys, tokens and certificates of clients, budgets, and the
//! address that a request comes from.

pub mod budgets;
pub mod certificate_subject;
pub mod client;
pub mod client_ip;
pub mod client_registry;
pub mod limits;
pub mod queue;
pub mod token_verifier;
