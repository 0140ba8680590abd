//! Responses sockets: the Responses API over a WebSocket, `/openai/v1/responses`. Its URL names no model, so the
//! handshake is answered here and each turn is routed by its own message.
//!
//! `handshake.rs` answers the client, `session.rs` runs the socket: it reads the client's messages, starts turns and
//! closes the socket between two of them. `turn.rs` admits and routes one turn, `exchange.rs` moves its bytes.
//! `upstream_socket.rs` is a socket to a backend; `idle_upstreams.rs` keeps those without a turn, limited by
//! `idle_limit.rs`. `shared.rs` is the state that the tasks of one client socket share, `client_link.rs` its connection
//! to the client. `error_event.rs` turns errors into events, `closing.rs` has the ways to close a socket.

mod client_link;
mod closing;
mod error_event;
mod exchange;
mod handshake;
mod idle_limit;
mod idle_upstreams;
mod session;
mod shared;
mod turn;
mod upstream_socket;

pub(in crate::proxy) use self::handshake::open_responses_socket;
pub(in crate::proxy) use self::idle_limit::IdleSocketLimit;
pub(in crate::proxy) use self::shared::SocketServices;
