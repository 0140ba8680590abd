//! The server side of WebSocket (RFC 6455): messages in, text out, ping, close. No extensions.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

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

/// The value of `Sec-WebSocket-Accept` for a handshake (RFC 6455 section 4.2.2); `None` if the handshake
/// lacks a key or is for another version than 13.
pub(in crate::demo) fn handshake_accept_value(head: &RequestHead) -> Option<String> {
    let key = head.header("sec-websocket-key")?;
    let is_version_13 = head.header("sec-websocket-version") == Some("13");
    is_version_13.then(|| base64_encode(&sha1(format!("{key}{HANDSHAKE_GUID}").as_bytes())))
}

/// Receives the next text or binary message; `None` if the client closes, or after `timeout_duration`.
pub(in crate::demo) async fn receive_message<S: ResettableStream>(
    connection: &mut HttpConnection<S>,
    timeout_duration: Duration,
) -> Result<Option<Vec<u8>>, ConnectionError> {
    timeout(timeout_duration, read_message(connection)).await.unwrap_or(Ok(None))
}

/// Sends a text message in one frame.
pub(in crate::demo) async fn send_text<S: ResettableStream>(
    connection: &mut HttpConnection<S>,
    text: &str,
) -> Result<(), ConnectionError> {
    connection.write_all(&encode_frame(OPCODE_TEXT, text.as_bytes())).await
}

/// Sends a close frame with a status code (RFC 6455 section 7.4).
pub(in crate::demo) async fn send_close<S: ResettableStream>(
    connection: &mut HttpConnection<S>,
    code: u16,
    reason: &str,
) -> Result<(), ConnectionError> {
    let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
    connection.write_all(&encode_frame(OPCODE_CLOSE, &payload)).await
}

/// Reads frames up to the end of a message, and responds to pings and to a close on the way.
async fn read_message<S: ResettableStream>(
    connection: &mut HttpConnection<S>,
) -> Result<Option<Vec<u8>>, ConnectionError> {
    let mut message = Vec::new();
    loop {
        let (is_last, opcode, payload) = read_frame(connection, MAX_MESSAGE_BYTES - message.len()).await?;
        match opcode {
            OPCODE_CLOSE => {
                connection
                    .write_all(&encode_frame(OPCODE_CLOSE, payload.get(..2).unwrap_or_default()))
                    .await?;
                return Ok(None);
            }
            OPCODE_PING => connection.write_all(&encode_frame(OPCODE_PONG, &payload)).await?,
            OPCODE_PONG => {}
            OPCODE_CONTINUATION | OPCODE_TEXT | OPCODE_BINARY => {
                message.extend_from_slice(&payload);
                if is_last {
                    return Ok(Some(message));
                }
            }
            _ => return Err(ConnectionError::MalformedRequest(400, "unknown WebSocket frame")),
        }
    }
}

/// Whether the frame is the last of its message, its opcode, and its payload without the mask.
async fn read_frame<S: ResettableStream>(
    connection: &mut HttpConnection<S>,
    max_payload: usize,
) -> Result<(bool, u8, Vec<u8>), ConnectionError> {
    let start = big_endian_number(&connection.read_exact(2).await?);
    let (flags, short_length) = (start >> 8, start & 0x7f);
    // Frames of a client are masked; the reserved bits belong to extensions (RFC 6455 section 5.2).
    if start & 0x80 == 0 || flags & 0x70 != 0 {
        return Err(ConnectionError::MalformedRequest(
            400,
            "WebSocket frame of a client without a mask, or with an extension",
        ));
    }
    // Lengths from 126 on follow in 2 or 8 bytes of their own.
    let length = match short_length {
        126 => big_endian_number(&connection.read_exact(2).await?),
        127 => big_endian_number(&connection.read_exact(8).await?),
        short => short,
    };
    let length = usize::try_from(length).ok().filter(|length| *length <= max_payload);
    let length = length.ok_or(ConnectionError::MalformedRequest(413, "WebSocket message too large"))?;
    let mask = connection.read_exact(4).await?;
    let masked = connection.read_exact(length).await?;
    let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Ok((flags & 0x80 != 0, u8::try_from(flags & 0x0f).unwrap_or(0), payload))
}

fn big_endian_number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// A frame of a server: final, and without a mask.
fn encode_frame(opcode: u8, payload: &[u8]) -> Bytes {
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
    Bytes::from(frame)
}
