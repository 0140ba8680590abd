//! The clients' side: connections with their TLS and limits, request heads and bodies, admission, and the
//! responses that the balancer makes itself.

pub(super) mod admit;
pub(super) mod body_memory;
pub(super) mod client_request;
pub mod connection;
pub mod connection_limit;
pub(super) mod fair_share;
pub mod head;
pub(super) mod health;
pub(super) mod models_response;
pub(super) mod presence;
pub(crate) mod refusal_response;
pub(super) mod request_body;
pub(super) mod reset;
pub(super) mod response_writer;
pub(super) mod stream;
pub mod timeouts;
pub mod tls;
pub(super) mod websocket_handshake;
