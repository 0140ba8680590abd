//! What follows a backend's 101: a tunnel between its connection and the client's, observed if it is a realtime
//! session.

use std::io::Cursor;
use std::time::Duration;

use futures::FutureExt;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::{Error, ErrorType, Result};
use tokio::time::timeout;

use super::exchange::AttemptExchange;
use super::tunnel::{Tunnel, TunnelEnd};
use crate::proxy::context::RequestContext;
use crate::proxy::timer::Timer;
use crate::proxy::upstream::connection::UpstreamEvent;
use crate::proxy::websocket::frames::FrameSender;
use crate::proxy::websocket::frames::encoder::{FrameKind, close_payload, push_frame};
use crate::proxy::websocket::realtime::RealtimeObserver;

/// How long the client of a tunnel has to take its last frame when the process ends.
const LAST_FRAME_TIMEOUT: Duration = Duration::from_millis(500);
/// The close code "going away" (RFC 6455, section 7.4.1).
const CLOSE_GOING_AWAY: u16 = 1001;

impl AttemptExchange<'_> {
    /// Relays bytes both ways after a 101, until the tunnel ends. The sessions are empty then.
    ///
    /// # Errors
    /// If one side failed.
    pub(super) async fn run_tunnel(&mut self, timer: &mut Timer) -> Result<()> {
        let mut observer = RealtimeObserver::of_request(self.context);
        // What the sessions have already read comes first.
        let from_client = self.session.read_body_or_idle(false).now_or_never();
        let from_client = from_client.transpose().map_err(Error::into_down)?;
        let from_backend = match self.upstream.next_event().now_or_never() {
            Some(UpstreamEvent::Read(read)) => Some(read.map_err(Error::into_up)?),
            _ => None,
        };
        if let Some(task) = from_backend {
            let is_end = task.is_end();
            if let (Some(observer), HttpTask::Body(Some(bytes), _) | HttpTask::UpgradedBody(Some(bytes), _)) =
                (&mut observer, &task)
            {
                observer.observe(bytes);
            }
            let tasks = self.handle(vec![task])?;
            if self.record_and_write_to_client(tasks).await? || is_end {
                return Ok(());
            }
        }
        let unused = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
        let (ServerSession::H1(client), Some(backend)) =
            (std::mem::replace(self.session, unused), self.upstream.take_tunnel_stream())
        else {
            return Error::e_explain(ErrorType::InternalError, "a tunnel needs HTTP/1.1 on both sides");
        };
        let has_client_ended = matches!(from_client, Some(None));
        let client_bytes = from_client.flatten().unwrap_or_default();
        let mut tunnel = Tunnel::new(client.into_inner(), backend, client_bytes, has_client_ended);
        let idle_limit = self.context.gateway().timeouts.response_idle;
        let mut open_socket = self.context.gateway().process_state.open_sockets.register_realtime();
        let RequestContext { ending, request, .. } = &mut *self.context;
        let relay = tunnel.run(idle_limit, timer, |bytes| {
            ending.note_response_body_bytes(bytes.len(), request.received_instant);
            if let Some(observer) = &mut observer {
                observer.observe(bytes);
            }
        });
        let end = tokio::select! {
            end = relay => end,
            // The process ends, though the session does not.
            () = open_socket.ending() => {
                self.context.ending.has_response_failed = true;
                // In the middle of another frame it would be a part of that.
                if observer.is_some_and(|observer| observer.is_between_frames()) {
                    let mut frame = Vec::new();
                    let payload = close_payload(CLOSE_GOING_AWAY, "the balancer stops");
                    push_frame(&mut frame, FrameSender::Backend, FrameKind::Close, &payload);
                    let _ = timeout(LAST_FRAME_TIMEOUT, tunnel.send_last_frame(&frame)).await;
                }
                return Ok(());
            }
        };
        match end {
            TunnelEnd::Closed => Ok(()),
            TunnelEnd::ClientLost(cause) => {
                Err(Error::because(ErrorType::ConnectionClosed, "in a tunnel", cause).into_down())
            }
            TunnelEnd::ClientDoesNotRead => {
                Err(Error::explain(ErrorType::WriteTimedout, "a tunnel's client does not read").into_down())
            }
            TunnelEnd::BackendLost(cause) => {
                Err(Error::because(ErrorType::ConnectionClosed, "in a tunnel", cause).into_up())
            }
            TunnelEnd::BackendDoesNotRead => {
                Err(Error::explain(ErrorType::WriteTimedout, "a tunnel's backend does not read").into_up())
            }
        }
    }
}
