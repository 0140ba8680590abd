//! A socket to a backend: its handshake, and the responses that only this socket keeps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::FutureExt;
use http::StatusCode;
use http::header::{
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::HttpTask;
use pingora::{Error, ErrorType, Result};
use tokio::io::{ReadHalf, WriteHalf};

use crate::azure::request::socket_message::{with_lane, without_lane};
use crate::names::BackendName;
use crate::proxy::client::body_memory::MemoryReservation;
use crate::proxy::upstream::connection::{UpstreamConnection, UpstreamEvent};
use crate::proxy::websocket::frames::{FrameSender, MessageReader, MessageWriter};

/// What a server appends to the key of a handshake (RFC 6455, section 1.3).
const HANDSHAKE_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Maximum number of unstored responses whose ids are remembered for one socket.
const MAX_UNSTORED_RESPONSES: usize = 64;

/// An open socket to a backend. It serves one turn at a time.
pub(super) struct UpstreamSocket {
    pub(super) route: UpstreamRoute,
    pub(super) reader: MessageReader<ReadHalf<Stream>>,
    pub(super) writer: MessageWriter<WriteHalf<Stream>>,
    pub(super) opened_at: Instant,
    /// When its last turn ended.
    pub(super) idle_since: Instant,
    /// An earlier turn has used it, so the backend may have closed it meanwhile.
    pub(super) is_reused: bool,
    /// The head of the 101. Its `x-ms-region` and `apim-request-id` hold for every turn on the socket.
    pub(super) handshake_head: Box<ResponseHeader>,
    /// The ids of responses that only this socket has, latest last.
    unstored_responses: VecDeque<Box<str>>,
    latest_response: Option<Box<str>>,
    /// The lane of its latest turn.
    pub(super) latest_lane: Option<String>,
    /// The backend rejects `stream_id`: the field is removed from what is sent to it and added to its events.
    pub(super) refuses_lanes: bool,
    /// Not everything that was pushed has been sent, so the socket cannot be reused.
    pub(super) has_unsent: bool,
    /// The error that ended the socket, if events that arrived before it are still being relayed.
    pub(super) end: Option<Box<Error>>,
}

/// Where a socket leads and which secret opened it. A turn reuses an idle socket only if its own attempt would open
/// one with the same route.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct UpstreamRoute {
    pub(super) backend: BackendName,
    /// Identifies the endpoint, which a reload may change for the same backend.
    pub(super) group_key: u64,
    /// The id of the secret that it was opened with.
    pub(super) secret_id: u64,
    /// Path and query.
    pub(super) path_and_query: Arc<str>,
}

/// What a backend answered to a handshake.
pub(super) enum Handshake {
    Opened(Box<UpstreamSocket>),
    /// A response other than 101, of which this part has been read.
    Refused(HttpTask),
}

/// The `Sec-WebSocket-Key` of a handshake, and the `Sec-WebSocket-Accept` that it requires.
pub(super) struct HandshakeKey {
    pub(super) key: String,
    accept: String,
}

impl HandshakeKey {
    pub(super) fn new() -> Self {
        let mut nonce = [0; 16];
        fastrand::fill(&mut nonce);
        let key = STANDARD.encode(nonce);
        let accept = accept_value(key.as_bytes());
        Self { key, accept }
    }
}

/// The value of `Sec-WebSocket-Accept` for the key of a handshake (RFC 6455, section 4.2.2).
pub(super) fn accept_value(key: &[u8]) -> String {
    STANDARD.encode(openssl::sha::sha1(&[key, HANDSHAKE_GUID.as_bytes()].concat()))
}

/// Replaces the WebSocket fields of the client's handshake with those of a new one. No extension is offered, because
/// compressed messages could not be read.
///
/// # Errors
/// If a field cannot be set.
pub(super) fn set_handshake_fields(
    head: &mut RequestHeader,
    key: &HandshakeKey,
    subprotocol: Option<&str>,
) -> Result<()> {
    head.insert_header(SEC_WEBSOCKET_KEY, key.key.as_str())?;
    head.remove_header(&SEC_WEBSOCKET_EXTENSIONS);
    head.remove_header(&SEC_WEBSOCKET_PROTOCOL);
    match subprotocol {
        Some(subprotocol) => head.insert_header(SEC_WEBSOCKET_PROTOCOL, subprotocol),
        None => Ok(()),
    }
}

/// Reads the response to a handshake that was sent on this connection. Messages of the new socket may have up to
/// `max_message_bytes` and are charged to `memory`.
///
/// # Errors
/// If the connection ends, or the response is not a valid WebSocket handshake.
pub(super) async fn finish_handshake(
    upstream: &mut UpstreamConnection,
    key: &HandshakeKey,
    route: UpstreamRoute,
    max_message_bytes: usize,
    memory: MemoryReservation,
) -> Result<Handshake> {
    let header = loop {
        match upstream.next_event().await {
            UpstreamEvent::Read(Ok(HttpTask::Header(header, _)))
                if header.status == StatusCode::SWITCHING_PROTOCOLS =>
            {
                break header;
            }
            UpstreamEvent::Read(Ok(HttpTask::Header(header, _))) if header.status.is_informational() => {}
            // A 2xx or 3xx is not a valid response to a handshake.
            UpstreamEvent::Read(Ok(HttpTask::Header(header, _))) if header.status.as_u16() < 400 => {
                return Err(protocol_error("a backend answered a WebSocket handshake without a 101"));
            }
            UpstreamEvent::Read(Ok(task)) => return Ok(Handshake::Refused(task)),
            UpstreamEvent::Read(Err(error)) => return Err(error.into_up()),
            UpstreamEvent::BodyPieceSent(_) => {}
        }
    };
    let is_accepted = header.headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|value| *value == key.accept);
    if !is_accepted || header.headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Err(protocol_error("a backend's 101 does not belong to the WebSocket handshake"));
    }
    // Bytes that arrived together with the head.
    let first_bytes = match upstream.next_event().now_or_never() {
        Some(UpstreamEvent::Read(Ok(
            HttpTask::UpgradedBody(Some(bytes), _) | HttpTask::Body(Some(bytes), _),
        ))) => bytes,
        Some(UpstreamEvent::Read(Err(error))) => return Err(error.into_up()),
        _ => Bytes::new(),
    };
    let Some(stream) = upstream.take_tunnel_stream() else {
        return Err(protocol_error("a WebSocket needs HTTP/1.1"));
    };
    let (read_half, write_half) = tokio::io::split(stream);
    let now = Instant::now();
    Ok(Handshake::Opened(Box::new(UpstreamSocket {
        route,
        reader: MessageReader::new(read_half, FrameSender::Backend, first_bytes, max_message_bytes, memory),
        writer: MessageWriter::new(write_half, FrameSender::Client),
        opened_at: now,
        idle_since: now,
        is_reused: false,
        handshake_head: header,
        unstored_responses: VecDeque::new(),
        latest_response: None,
        latest_lane: None,
        refuses_lanes: false,
        has_unsent: false,
        end: None,
    })))
}

impl UpstreamSocket {
    /// Records that a response was made on this socket.
    pub(super) fn note_response(&mut self, id: &str, is_unstored: bool) {
        let id: Box<str> = Box::from(id);
        if is_unstored {
            if self.unstored_responses.len() == MAX_UNSTORED_RESPONSES {
                self.unstored_responses.pop_front();
            }
            self.unstored_responses.push_back(Box::clone(&id));
        }
        self.latest_response = Some(id);
    }

    /// Whether only this socket has this response.
    pub(super) fn has_unstored_response(&self, id: &str) -> bool {
        self.unstored_responses.iter().any(|own| **own == *id)
    }

    /// Whether a turn of this lane may reuse the socket. A backend keeps only the latest unstored response of a socket,
    /// and a turn of another lane would replace it.
    pub(super) fn is_free_for(&self, lane: Option<&str>) -> bool {
        let latest_is_unstored =
            self.latest_response.as_deref().is_some_and(|latest| self.has_unstored_response(latest));
        self.latest_lane.as_deref() == lane || !latest_is_unstored
    }

    /// Whether this is the latest response that was made on it.
    pub(super) fn made_latest(&self, id: &str) -> bool {
        self.latest_response.as_deref() == Some(id)
    }

    /// Queues a message; [`Self::flush`] sends it.
    pub(super) fn push(&mut self, message: &Bytes, has_lane: bool) {
        if has_lane && self.refuses_lanes {
            self.writer.push_text(&without_lane(message));
        } else {
            self.writer.push_text(message);
        }
    }

    /// An event as its client gets it. `lane` is that of its turn.
    pub(super) fn event_for_client(&self, event: Bytes, lane: Option<&str>) -> Bytes {
        match lane {
            Some(lane) if self.refuses_lanes => with_lane(&event, lane),
            _ => event,
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the backend is lost, or does not take it in time.
    pub(super) async fn send(&mut self, message: &Bytes, has_lane: bool, limit: Duration) -> Result<()> {
        self.push(message, has_lane);
        self.flush(limit).await
    }

    /// Sends what was pushed.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) async fn flush(&mut self, limit: Duration) -> Result<()> {
        match tokio::time::timeout(limit, self.writer.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                Err(Error::because(ErrorType::ConnectionClosed, "on a backend's WebSocket", error).into_up())
            }
            Err(_) => Err(Error::explain(ErrorType::WriteTimedout, "a backend does not read").into_up()),
        }
    }
}

fn protocol_error(context: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, context).into_up()
}
