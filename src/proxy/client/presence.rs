//! Notices that a client disconnects while its request waits for something else.

use std::future::pending;

use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType};

use crate::proxy::context::RequestContext;
use crate::proxy::error_types::CLIENT_GONE;

/// Waits until the client disconnects; returns Pingora's error. If the client sends bytes after its request
/// instead, sets `has_pipelined_bytes` and waits forever, because the connection cannot be polled any more.
pub(in crate::proxy) async fn wait_for_disconnect(
    session: &mut ServerSession,
    has_pipelined_bytes: &mut bool,
) -> Box<Error> {
    while !*has_pipelined_bytes {
        match session.read_body_or_idle(true).await {
            // Pingora's error for data after the end of the body: an extra line end, or the next request
            // already. Its read has consumed a byte of that. So the connection is closed after this response,
            // and the client has to send the next request again.
            Err(error) if *error.etype() == ErrorType::ConnectError => {
                *has_pipelined_bytes = true;
                session.set_keepalive(None);
            }
            Err(error) => return error.into_down(),
            Ok(_) => {
                return Error::explain(ErrorType::ConnectionClosed, "the client disconnected").into_down();
            }
        }
    }
    pending().await
}

/// Waits for this future between attempts.
///
/// # Errors
/// [`CLIENT_GONE`] if the client disconnects meanwhile.
pub(in crate::proxy) async fn wait_while_client_connected(
    session: &mut ServerSession,
    context: &mut RequestContext,
    wait: impl Future<Output = ()> + Send,
) -> pingora::Result<()> {
    // Polling the connection would consume a byte of the upload.
    if !session.is_body_done() {
        wait.await;
        return Ok(());
    }
    tokio::select! {
        cause = wait_for_disconnect(session, &mut context.has_pipelined_bytes) => {
            Err(Error::because(CLIENT_GONE, "during a wait between attempts", cause).into_down())
        }
        () = wait => Ok(()),
    }
}

/// Checks whether the client is still connected, without waiting.
///
/// # Errors
/// [`CLIENT_GONE`] if it has disconnected.
pub(in crate::proxy) async fn ensure_client_connected(
    session: &mut ServerSession,
    context: &mut RequestContext,
) -> pingora::Result<()> {
    // As above.
    if !session.is_body_done() {
        return Ok(());
    }
    tokio::select! {
        biased;
        cause = wait_for_disconnect(session, &mut context.has_pipelined_bytes) => {
            Err(Error::because(CLIENT_GONE, "before an attempt", cause).into_down())
        }
        () = std::future::ready(()) => Ok(()),
    }
}
