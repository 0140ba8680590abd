//! The server side of WebSocket (RFC 6455): frames of clients in, frames of the server out. No extensions.

use super::connection::HttpConnection;
use super::error::ConnectionError;
use super::request_head::RequestHead;
use super::resettable_stream::ResettableStream;
use crate::demo::util::encoding::{base64_encode, sha1};

/// What the server appends to the key of a handshake (RFC 6455 section 1.3).
const HANDSHAKE_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

// Opcodes (RFC 6455 section 5.2).
const OPCODE_CONTINUATION: u8 = 0;
const OPCODE_TEXT: u8 = 1;
const OPCODE_BINARY: u8 = 2;
const OPCODE_CLOSE: u8 = 8;
const OPCODE_PING: u8 = 9;
const OPCODE_PONG: u8 = 10;

// Close codes (RFC 6455 section 7.4.1).
pub(in crate::demo) const CLOSE_GOING_AWAY: u16 = 1001;
const CLOSE_PROTOCOL_ERROR: u16 = 1002;
pub(in crate::demo) const CLOSE_UNSUPPORTED_DATA: u16 = 1003;
const CLOSE_INVALID_TEXT: u16 = 1007;
const CLOSE_TOO_LARGE: u16 = 1009;

/// The value of `Sec-WebSocket-Accept` for a handshake (RFC 6455 section 4.2.2); `None` if the handshake
/// lacks a key or is for another version than 13.
pub(in crate::demo) fn handshake_accept_value(head: &RequestHead) -> Option<String> {
    let key = head.header("sec-websocket-key")?;
    let is_version_13 = head.header("sec-websocket-version") == Some("13");
    is_version_13.then(|| base64_encode(&sha1(format!("{key}{HANDSHAKE_GUID}").as_bytes())))
}

/// What arrives on a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::demo) enum WebSocketInput {
    Text(String),
    Binary,
    /// To be answered with a pong of the same payload.
    Ping(Vec<u8>),
    /// The client closes, with the payload of its close frame.
    Close(Vec<u8>),
    /// The client breaks the protocol: the code to close with, and the reason.
    Violation(u16, &'static str),
}

/// Puts messages together from frames.
#[derive(Debug, Default)]
pub(in crate::demo) struct MessageReader {
    /// The opcode and the beginning of a message that has not ended.
    fragments: Option<(u8, Vec<u8>)>,
}

impl MessageReader {
    /// The next message, ping or close. Pongs are skipped. Cancelling it loses nothing.
    pub(in crate::demo) async fn next_input<S: ResettableStream>(
        &mut self,
        connection: &mut HttpConnection<S>,
    ) -> Result<WebSocketInput, ConnectionError> {
        loop {
            let frame = match read_frame(connection).await? {
                Ok(frame) => frame,
                Err((code, reason)) => return Ok(WebSocketInput::Violation(code, reason)),
            };
            if let Some(input) = self.add_frame(frame) {
                return Ok(input);
            }
        }
    }

    fn add_frame(&mut self, frame: Frame) -> Option<WebSocketInput> {
        let violation = |reason| Some(WebSocketInput::Violation(CLOSE_PROTOCOL_ERROR, reason));
        match (frame.opcode, &mut self.fragments) {
            (OPCODE_PING, _) => return Some(WebSocketInput::Ping(frame.payload)),
            (OPCODE_PONG, _) => return None,
            (OPCODE_CLOSE, _) => return Some(WebSocketInput::Close(frame.payload)),
            (OPCODE_TEXT | OPCODE_BINARY, None) => self.fragments = Some((frame.opcode, frame.payload)),
            (OPCODE_TEXT | OPCODE_BINARY, Some(_)) => return violation("a message within another one"),
            (OPCODE_CONTINUATION, Some((_, message))) => message.extend_from_slice(&frame.payload),
            (OPCODE_CONTINUATION, None) => return violation("the end of a message without its beginning"),
            _ => return violation("a frame of an unknown kind"),
        }
        if self.fragments.as_ref().is_some_and(|(_, message)| message.len() > MAX_MESSAGE_BYTES) {
            return Some(WebSocketInput::Violation(CLOSE_TOO_LARGE, "message too large"));
        }
        let (opcode, message) = if frame.is_last { self.fragments.take()? } else { return None };
        Some(if opcode == OPCODE_BINARY {
            WebSocketInput::Binary
        } else {
            String::from_utf8(message).map_or(
                WebSocketInput::Violation(CLOSE_INVALID_TEXT, "text that is not UTF-8"),
                WebSocketInput::Text,
            )
        })
    }
}

struct Frame {
    is_last: bool,
    opcode: u8,
    /// Without the mask.
    payload: Vec<u8>,
}

/// Reads a frame. Nothing is taken out of the buffer before all of the frame has arrived.
///
/// The inner error is the code to close with, and the reason.
async fn read_frame<S: ResettableStream>(
    connection: &mut HttpConnection<S>,
) -> Result<Result<Frame, (u16, &'static str)>, ConnectionError> {
    let start = big_endian_number(connection.peek(0..2).await?);
    let (flags, short_length) = (start >> 8, start & 0x7f);
    let (is_last, opcode) = (flags & 0x80 != 0, u8::try_from(flags & 0x0f).unwrap_or(0));
    // Frames of a client are masked; the reserved bits belong to extensions (RFC 6455 section 5.2).
    if start & 0x80 == 0 || flags & 0x70 != 0 {
        return Ok(Err((CLOSE_PROTOCOL_ERROR, "a frame without a mask, or with an extension")));
    }
    if opcode >= OPCODE_CLOSE && (!is_last || short_length > 125) {
        return Ok(Err((CLOSE_PROTOCOL_ERROR, "a control frame that is long or in parts")));
    }
    // Lengths from 126 on follow in 2 or 8 bytes of their own.
    let (length, mask_start) = match short_length {
        126 => (big_endian_number(connection.peek(2..4).await?), 4),
        127 => (big_endian_number(connection.peek(2..10).await?), 10),
        short => (short, 2),
    };
    let Some(length) = usize::try_from(length).ok().filter(|length| *length <= MAX_MESSAGE_BYTES) else {
        return Ok(Err((CLOSE_TOO_LARGE, "message too large")));
    };
    let payload_start = mask_start + 4;
    connection.peek(payload_start..payload_start + length).await?;
    let mut frame = connection.read_exact(payload_start + length).await?;
    let mut payload = frame.split_off(payload_start);
    let mask = frame.split_off(mask_start);
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Ok(Frame { is_last, opcode, payload: payload.into() }))
}

/// The frame of a text message.
pub(in crate::demo) fn text_frame(text: &str) -> Vec<u8> {
    encode_frame(OPCODE_TEXT, text.as_bytes())
}

/// A ping with this payload.
pub(in crate::demo) fn ping_frame(payload: &[u8]) -> Vec<u8> {
    encode_frame(OPCODE_PING, payload)
}

/// The frame that answers a ping.
pub(in crate::demo) fn pong_frame(payload: &[u8]) -> Vec<u8> {
    encode_frame(OPCODE_PONG, payload)
}

/// A close frame with a status code (RFC 6455 section 7.4), or the echo of one without.
pub(in crate::demo) fn close_frame(code: Option<u16>, reason: &str) -> Vec<u8> {
    let code = code.map(u16::to_be_bytes);
    let payload = [code.as_ref().map_or(&[][..], |code| &code[..]), reason.as_bytes()].concat();
    encode_frame(OPCODE_CLOSE, &payload)
}

fn big_endian_number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// A frame of a server: final, and without a mask.
fn encode_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        short @ 0..126 => frame.push(u8::try_from(short).unwrap_or(125)),
        medium @ 126..65536 => {
            frame.push(126);
            frame.extend_from_slice(&u16::try_from(medium).unwrap_or(u16::MAX).to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}
