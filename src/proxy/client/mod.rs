//! The downstream side: connections of clients, their TLS and limits, request heads and bodies,
//! admission, and the responses that the balancer gives by itself.

pub(super) mod admit;
pub mod connection;
mod connection_limit;
mod head;
pub(super) mod health;
pub(crate) mod refusal_response;
pub(super) mod request_body;
pub(super) mod reset;
pub mod tls;
