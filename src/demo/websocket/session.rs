//! Serves a WebSocket until the client closes it, or until its maximum lifetime.

use super::realtime_session::run_realtime_session;
use super::responses_session::ResponsesSession;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::WebSocketApi;
use crate::demo::faults::delivery::CutoffMethod;
use crate::demo::http::connection::HttpConnection;
use crate::demo::http::error::ConnectionError;
use crate::demo::http::resettable_stream::ResettableStream;
use crate::demo::resource::request_log::LoggedRequest;

/// Receives the messages of the client, and sends the events that each leads to. Returns how the connection is to
/// end.
pub(in crate::demo) async fn run_websocket_session<S: ResettableStream>(
    request: &SimulatedRequest<'_>,
    handshake: &LoggedRequest,
    api: &WebSocketApi,
    connection: &mut HttpConnection<S>,
) -> Result<CutoffMethod, ConnectionError> {
    match api {
        WebSocketApi::Realtime(deployment) => run_realtime_session(request, deployment, connection).await,
        WebSocketApi::Responses => ResponsesSession::new(request, handshake).run(connection).await,
    }
}
