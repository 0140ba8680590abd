//! Frames of WebSockets (RFC 6455): whole messages are read from one side, and messages are written to it.
//!
//! `decoder.rs` and `encoder.rs` are without I/O; `reader.rs` and `writer.rs` put them on a connection.

pub mod decoder;
pub mod encoder;
mod mask;
mod reader;
mod writer;

use bytes::Bytes;

pub(in crate::proxy) use self::reader::{MessageReader, ReadError};
pub(in crate::proxy) use self::writer::MessageWriter;

/// The side that sends frames. Those of a client must be masked, those of a backend must not (RFC 6455,
/// section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSender {
    /// The side that opened the connection.
    Client,
    /// The side that answered 101.
    Backend,
}

/// A whole message: the payloads of its frames, unmasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Valid UTF-8.
    Text(Bytes),
    /// Any bytes.
    Binary(Bytes),
    /// To be answered with a pong of the same payload, which is at most 125 bytes.
    Ping(Bytes),
    /// The answer to a ping.
    Pong,
    /// The side sends nothing more. Its code and its reason, if it gave any.
    Close(Option<(u16, String)>),
}
