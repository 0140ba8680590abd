//! WebSockets: their frames, Responses sockets, and what passes in realtime sessions.

pub mod frames;
pub mod realtime;
pub(super) mod responses;
