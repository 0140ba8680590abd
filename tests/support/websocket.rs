//! A WebSocket that reads and writes single frames, good ones and wrong ones, for both ends of a connection.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::net::TcpStream;

use super::{Balancer, CLIENT_KEY, Client, Response};

/// The headers of the opening handshake.
pub const UPGRADE_HEADERS: [(&str, &str); 5] = [
    ("api-key", CLIENT_KEY),
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];
/// The target of a Responses socket.
pub const RESPONSES_TARGET: &str = "/openai/v1/responses";

// The first byte of a frame: its type, and whether it is the last of its message.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const FIRST_PART_OF_TEXT: u8 = 0x01;
pub const LAST_PART: u8 = 0x80;
const PONG: u8 = 0x8a;

const MASK: [u8; 4] = [0x5a, 0x17, 0xe3, 0x80];

/// A frame with this first byte.
pub fn frame(first_byte: u8, is_masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask_bit = if is_masked { 0x80 } else { 0 };
    let mut frame = vec![first_byte];
    match payload.len() {
        length @ 0..=125 => frame.push(mask_bit | u8::try_from(length).unwrap()),
        length @ 126..=0xffff => {
            frame.push(mask_bit | 126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(mask_bit | 127);
            frame.extend(u64::try_from(length).unwrap().to_be_bytes());
        }
    }
    if is_masked {
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        frame.extend(payload);
    }
    frame
}

/// A text frame of a client.
pub fn client_text_frame(text: &str) -> Vec<u8> {
    frame(TEXT, true, text.as_bytes())
}

/// First byte, payload, and length of the frame at the start of these bytes.
fn parse_frame(bytes: &[u8]) -> Option<((u8, Vec<u8>), usize)> {
    let (first_byte, second_byte) = (*bytes.first()?, *bytes.get(1)?);
    let (length, length_end) = match second_byte & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()), 10),
        short => (u64::from(short), 2),
    };
    let start = length_end + if second_byte & 0x80 == 0 { 0 } else { 4 };
    let end = start + usize::try_from(length).unwrap();
    let mut payload = bytes.get(start..end)?.to_vec();
    let mask = &bytes[length_end..start];
    if !mask.is_empty() {
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Some(((first_byte, payload), end))
}

/// Reads a frame of the server; `None` if the connection ended instead.
pub async fn try_read_frame(client: &mut Client) -> Option<String> {
    let (_, payload) = client.try_read_parsed(parse_frame).await?;
    Some(String::from_utf8(payload).unwrap())
}

/// Reads a frame of the server.
pub async fn read_frame(client: &mut Client) -> String {
    try_read_frame(client).await.expect("the connection ended before a WebSocket frame")
}

/// What one end of a WebSocket receives. The balancer does not fragment what it sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Code and reason, if it has them.
    Close(Option<(u16, String)>),
    /// The connection has ended.
    End,
}

/// One end of an open WebSocket.
pub struct WebSocket {
    pub connection: Client,
    is_client: bool,
}

impl WebSocket {
    /// Opens a Responses socket as `team-a`.
    pub async fn open(balancer: &Balancer) -> Self {
        Self::open_with(balancer.address, RESPONSES_TARGET, &UPGRADE_HEADERS).await.unwrap()
    }

    /// Opens a socket.
    ///
    /// # Errors
    /// The response if it is no 101.
    pub async fn open_with(
        address: SocketAddr,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, Response> {
        let mut connection = Client::connect(address).await;
        connection.send(Client::request_head("GET", target, headers).as_bytes()).await;
        let response = connection.read_response().await;
        if response.status != 101 {
            return Err(response);
        }
        assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        Ok(Self { connection, is_client: true })
    }

    /// The end of a server that has answered the handshake.
    pub fn of_server(stream: TcpStream) -> Self {
        Self { connection: Client::from_stream(stream), is_client: false }
    }

    /// Sends a frame with this first byte; returns whether the connection still took it.
    pub async fn try_send_frame(&mut self, first_byte: u8, payload: &[u8]) -> bool {
        let frame = frame(first_byte, self.is_client, payload);
        self.connection.try_send(&frame).await
    }

    pub async fn send_frame(&mut self, first_byte: u8, payload: &[u8]) {
        assert!(self.try_send_frame(first_byte, payload).await, "the connection has ended");
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes()).await;
    }

    pub async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Reads the next frame. Nothing is lost if this is cancelled.
    pub async fn next(&mut self) -> Incoming {
        let Some((first_byte, payload)) = self.connection.try_read_parsed(parse_frame).await else {
            return Incoming::End;
        };
        match first_byte {
            TEXT => Incoming::Text(String::from_utf8(payload).unwrap()),
            PING => Incoming::Ping(payload),
            PONG => Incoming::Pong(payload),
            CLOSE => Incoming::Close(payload.split_first_chunk().map(|(code, reason)| {
                (u16::from_be_bytes(*code), String::from_utf8(reason.to_vec()).unwrap())
            })),
            other => panic!("a frame with the first byte {other:#x}"),
        }
    }

    /// Reads the next event.
    pub async fn next_event(&mut self) -> Value {
        match self.next().await {
            Incoming::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("no event, but {other:?}"),
        }
    }

    /// Reads events until one has this type.
    pub async fn next_event_of(&mut self, event_type: &str) -> Value {
        loop {
            let event = self.next_event().await;
            if event["type"] == event_type {
                return event;
            }
            assert_ne!(event["type"], "error", "{event}");
        }
    }

    /// Reads the events of a turn up to the one that ends it.
    pub async fn rest_of_turn(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.next_event().await;
            let event_type = event["type"].as_str().unwrap().to_owned();
            events.push(event);
            if matches!(event_type.as_str(), "response.completed" | "response.failed" | "error") {
                return events;
            }
        }
    }

    /// Begins a turn with this message, and reads its events.
    pub async fn turn(&mut self, create: &Value) -> Vec<Value> {
        self.send(create).await;
        self.rest_of_turn().await
    }

    /// A turn that must succeed: returns its last event.
    pub async fn complete_turn(&mut self, create: &Value) -> Value {
        let last = self.turn(create).await.pop().unwrap();
        assert_eq!(last["type"], "response.completed", "{last}");
        last
    }

    /// A turn of which only an error event comes: returns it.
    pub async fn failing_turn(&mut self, create: &Value) -> Value {
        let events = self.turn(create).await;
        assert_eq!((events.len(), &events[0]["type"]), (1, &"error".into()), "{events:#?}");
        events.into_iter().next().unwrap()
    }

    /// Reads a close frame and answers it, after which the connection ends.
    pub async fn expect_close(&mut self) -> (u16, String) {
        let close = match self.next().await {
            Incoming::Close(Some(close)) => close,
            other => panic!("no close with a code, but {other:?}"),
        };
        self.try_send_frame(CLOSE, &close.0.to_be_bytes()).await;
        assert_eq!(self.next().await, Incoming::End);
        close
    }

    /// Resets the connection.
    pub fn reset(self) {
        self.connection.reset();
    }
}
