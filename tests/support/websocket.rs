//! The few parts of WebSockets that a conversation in short text frames needs.

use super::{CLIENT_KEY, Client};

/// The headers of the opening handshake.
pub const UPGRADE_HEADERS: [(&str, &str); 5] = [
    ("api-key", CLIENT_KEY),
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A text frame of a client, masked with zeros, of at most 125 bytes.
pub fn client_text_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend(text.bytes());
    frame
}

/// Reads a frame of the server; `None` if the connection ended instead.
pub async fn try_read_frame(client: &mut Client) -> Option<String> {
    let head = client.try_read_exactly(2).await?;
    let length = match head[1] & 0x7f {
        126 => {
            let extended_length = client.try_read_exactly(2).await?;
            usize::from(u16::from_be_bytes([extended_length[0], extended_length[1]]))
        }
        short => usize::from(short),
    };
    Some(String::from_utf8(client.try_read_exactly(length).await?).unwrap())
}

/// Reads a frame of the server.
pub async fn read_frame(client: &mut Client) -> String {
    try_read_frame(client).await.expect("the connection ended before a WebSocket frame")
}
