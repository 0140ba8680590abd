//! A WebSocket client that sends what it is told, also what a client must not send.

use super::*;
use crate::demo::util::encoding::base64_encode;

pub(super) const TEXT: u8 = 0x81;
pub(super) const CONTINUATION: u8 = 0x80;
pub(super) const CLOSE: u8 = 0x88;
pub(super) const PING: u8 = 0x89;
pub(super) const PONG: u8 = 0x8a;

/// What the server has sent.
#[derive(Debug, PartialEq)]
pub(super) enum Received {
    Event(Value),
    Pong(Vec<u8>),
    Ping,
    Close(u16),
    /// The connection has ended, or was reset.
    End,
}

pub(super) struct SocketClient {
    connection: TestClient,
}

impl SocketClient {
    /// A WebSocket of the Responses API, with these lines in its handshake.
    pub(super) async fn open_responses(simulator: &Simulator, lines: &str) -> Self {
        Self::open(simulator, "/openai/v1/responses", &format!("api-key: k\r\n{lines}")).await.0
    }

    /// A WebSocket, and the head that has opened it.
    pub(super) async fn open(simulator: &Simulator, target: &str, lines: &str) -> (Self, TestResponse) {
        let mut connection = TestClient::connect(simulator.address("east")).await;
        let response = connection.round_trip(upgrade_request(target, lines)).await;
        assert_eq!(response.status, 101, "{}", response.head);
        (Self { connection }, response)
    }

    pub(super) async fn send(&mut self, message: &Value) {
        self.send_bytes(&client_frame(TEXT, message.to_string().as_bytes())).await;
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.connection.send(bytes).await;
    }

    pub(super) async fn receive(&mut self) -> Received {
        let received = tokio::time::timeout(RESPONSE_TIMEOUT, self.receive_untimed()).await;
        received.expect("nothing was received in time")
    }

    async fn receive_untimed(&mut self) -> Received {
        let client = &mut self.connection;
        if !client.buffer_at_least(2).await {
            return Received::End;
        }
        let length_bytes = match client.buffer[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if !client.buffer_at_least(2 + length_bytes).await {
            return Received::End;
        }
        let length = match length_bytes {
            0 => usize::from(client.buffer[1]),
            count => client.buffer[2..2 + count].iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)),
        };
        if !client.buffer_at_least(2 + length_bytes + length).await {
            return Received::End;
        }
        let frame: Vec<u8> = client.buffer.drain(..2 + length_bytes + length).collect();
        let payload = &frame[2 + length_bytes..];
        match frame[0] {
            TEXT => Received::Event(serde_json::from_slice(payload).unwrap()),
            PONG => Received::Pong(payload.to_vec()),
            PING => Received::Ping,
            CLOSE => Received::Close(payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code))),
            kind => panic!("a frame of kind {kind:#x}"),
        }
    }

    /// The next event; everything else fails.
    pub(super) async fn event(&mut self) -> Value {
        match self.receive().await {
            Received::Event(event) => event,
            other => panic!("no event: {other:?}"),
        }
    }

    /// Skips events until one of this type, or an error.
    pub(super) async fn event_of_type(&mut self, event_type: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["type"] == event_type || event["type"] == "error" {
                return event;
            }
        }
    }

    /// The events of one turn, to its last one.
    pub(super) async fn events_of_turn(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.event().await;
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            events.push(event);
            if matches!(kind.as_str(), "response.completed" | "response.incomplete" | "error") {
                return events;
            }
        }
    }

    /// Sends a `response.create` with these parameters. Returns the last event of the turn.
    pub(super) async fn turn(&mut self, parameters: Value) -> Value {
        self.send(&create(&parameters)).await;
        self.events_of_turn().await.pop().unwrap()
    }
}

/// A `response.create` for `gpt-4o`.
pub(super) fn create(parameters: &Value) -> Value {
    let mut message = json!({"type": "response.create", "model": "gpt-4o", "input": "hi"});
    message.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    message
}

/// A frame of a client, masked as RFC 6455 section 5.3 demands.
pub(super) fn client_frame(flags_and_opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![flags_and_opcode];
    match u16::try_from(payload.len()) {
        Ok(length @ ..126) => frame.push(0x80 | u8::try_from(length).unwrap()),
        Ok(length) => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A WebSocket handshake. `lines` are header lines, each with its end.
pub(super) fn upgrade_request(target: &str, lines: &str) -> String {
    let key = base64_encode(b"0123456789abcdef");
    format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\n{lines}Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
}
