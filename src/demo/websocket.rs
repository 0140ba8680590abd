//! WebSocket frames for a server (RFC 6455): text in, text out, ping, close. No extensions.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::codec::{base64, sha1};
use super::http1::{Head, Socket, Wire, WireError};

/// Appended to the key of a handshake (RFC 6455 section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What `Sec-WebSocket-Accept` answers to a handshake; `None` if it is not a proper one.
pub(super) fn accept_key(head: &Head) -> Option<String> {
    let key = head.value("sec-websocket-key")?;
    let is_current = head.value("sec-websocket-version") == Some("13");
    is_current.then(|| base64(&sha1(format!("{key}{GUID}").as_bytes())))
}

/// The next text or binary message; `None` once the caller closes or `patience` is over.
pub(super) async fn receive<S: Socket>(
    wire: &mut Wire<S>,
    patience: Duration,
) -> Result<Option<Vec<u8>>, WireError> {
    timeout(patience, message(wire)).await.unwrap_or(Ok(None))
}

/// Sends a text message in one frame.
pub(super) async fn send<S: Socket>(wire: &mut Wire<S>, text: &str) -> Result<(), WireError> {
    wire.write(&frame(TEXT, text.as_bytes())).await
}

/// Sends a close frame with a status code (RFC 6455 section 7.4).
pub(super) async fn close<S: Socket>(wire: &mut Wire<S>, code: u16, reason: &str) -> Result<(), WireError> {
    let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
    wire.write(&frame(CLOSE, &payload)).await
}

async fn message<S: Socket>(wire: &mut Wire<S>) -> Result<Option<Vec<u8>>, WireError> {
    let mut whole = Vec::new();
    loop {
        let (is_last, kind, payload) = read_frame(wire, LARGEST_MESSAGE - whole.len()).await?;
        match kind {
            CLOSE => {
                wire.write(&frame(CLOSE, payload.get(..2).unwrap_or_default())).await?;
                return Ok(None);
            }
            PING => wire.write(&frame(PONG, &payload)).await?,
            PONG => {}
            0 | TEXT | BINARY => {
                whole.extend_from_slice(&payload);
                if is_last {
                    return Ok(Some(whole));
                }
            }
            _ => return Err(WireError::Malformed(400, "unknown WebSocket frame")),
        }
    }
}

async fn read_frame<S: Socket>(wire: &mut Wire<S>, largest: usize) -> Result<(bool, u8, Vec<u8>), WireError> {
    let start = number(&wire.exactly(2).await?);
    let (flags, marked) = (start >> 8, start & 0x7f);
    if start & 0x80 == 0 || flags & 0x70 != 0 {
        return Err(WireError::Malformed(
            400,
            "WebSocket frame of a client without a mask, or with an extension",
        ));
    }
    let length = match marked {
        126 => number(&wire.exactly(2).await?),
        127 => number(&wire.exactly(8).await?),
        short => short,
    };
    let length = usize::try_from(length).ok().filter(|length| *length <= largest);
    let length = length.ok_or(WireError::Malformed(413, "WebSocket message too large"))?;
    let mask = wire.exactly(4).await?;
    let masked = wire.exactly(length).await?;
    let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Ok((flags & 0x80 != 0, u8::try_from(flags & 0x0f).unwrap_or(0), payload))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

fn frame(kind: u8, payload: &[u8]) -> Bytes {
    let mut frame = vec![0x80 | kind];
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
