//! Serves a WebSocket until the client closes it, or until its maximum lifetime.

use std::time::Instant;

use serde_json::{Value, json};

use super::realtime_session::RealtimeSession;
use super::responses_session::ResponsesSession;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::WebSocketApi;
use crate::demo::http::connection::HttpConnection;
use crate::demo::http::error::ConnectionError;
use crate::demo::http::resettable_stream::ResettableStream;
use crate::demo::http::websocket::{receive_message, send_close, send_text};

/// The close code "going away" (RFC 6455 section 7.4.1).
const CLOSE_GOING_AWAY: u16 = 1001;

enum WebSocketSession<'a> {
    Realtime(RealtimeSession<'a>),
    Responses(ResponsesSession<'a>),
}

/// Receives the messages of the client, and sends the events that each leads to.
pub(in crate::demo) async fn run_websocket_session<S: ResettableStream>(
    request: &SimulatedRequest<'_>,
    api: &WebSocketApi,
    connection: &mut HttpConnection<S>,
) -> Result<(), ConnectionError> {
    let max_lifetime = request.resource.definition.max_websocket_lifetime;
    let mut session = match api {
        WebSocketApi::Realtime(deployment) => {
            WebSocketSession::Realtime(RealtimeSession::new(request, deployment))
        }
        WebSocketApi::Responses => WebSocketSession::Responses(ResponsesSession::new(request)),
    };
    if let WebSocketSession::Realtime(realtime) = &session {
        send_text(connection, &realtime.created_event().to_string()).await?;
    }
    let opened_at = Instant::now();
    loop {
        let remaining_lifetime = max_lifetime.saturating_sub(opened_at.elapsed());
        let Some(message) = receive_message(connection, remaining_lifetime).await? else { break };
        let message: Value = serde_json::from_slice(&message).unwrap_or_default();
        let (events, stream_end) = match &mut session {
            WebSocketSession::Realtime(realtime) => (realtime.handle_client_event(&message), None),
            WebSocketSession::Responses(responses) => responses.handle_message(&message, Instant::now()),
        };
        for event in events {
            connection.sleep_while_connected(request.resource.definition.timing.event_interval).await?;
            send_text(connection, &event.to_string()).await?;
        }
        if let Some(mut stream_end) = stream_end {
            stream_end.set_complete();
        }
    }
    if opened_at.elapsed() >= max_lifetime {
        let message = "Your session hit the maximum duration of 60 minutes.";
        let code = "websocket_connection_limit_reached";
        let error = json!({"type": "invalid_request_error", "code": code, "message": message, "param": null});
        send_text(connection, &json!({"type": "error", "status": 400, "error": error}).to_string()).await?;
        send_close(connection, CLOSE_GOING_AWAY, "session expired").await?;
    }
    Ok(())
}
