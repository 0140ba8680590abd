//! Whether the client is still connected while something else is waited for.

use std::future::pending;

use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType};

use crate::proxy::context::RequestContext;
use crate::proxy::error_types::CLIENT_GONE;

/// Waits until the client disconnects. `has_pipelined` is set when it sends something after its
/// request instead; from then on it is not looked at any more.
pub(in crate::proxy) async fn client_disconnect(
    session: &mut ServerSession,
    has_pipelined: &mut bool,
) -> Box<Error> {
    while !*has_pipelined {
        match session.read_body_or_idle(true).await {
            // The engine's word for data after the end of a body: a stray line end, or the next
            // request already. The read has consumed a byte of it, so this response is the last on
            // the connection, and the client sends again what was not answered.
            Err(problem) if *problem.etype() == ErrorType::ConnectError => {
                *has_pipelined = true;
                session.set_keepalive(None);
            }
            Err(problem) => return problem.into_down(),
            Ok(_) => {
                return Error::explain(ErrorType::ConnectionClosed, "the client disconnected").into_down();
            }
        }
    }
    pending().await
}

/// Waits between attempts, unless the client disconnects meanwhile.
///
/// # Errors
/// [`CLIENT_GONE`].
pub(in crate::proxy) async fn wait_while_connected(
    session: &mut ServerSession,
    context: &mut RequestContext,
    wait: impl Future<Output = ()> + Send,
) -> pingora::Result<()> {
    if !session.is_body_done() {
        // Polling the connection would take a byte of the upload.
        wait.await;
        return Ok(());
    }
    tokio::select! {
        cause = client_disconnect(session, &mut context.has_pipelined) => {
            Err(Error::because(CLIENT_GONE, "while waiting", cause).into_down())
        }
        () = wait => Ok(()),
    }
}

/// Whether the client is still connected at this moment.
///
/// # Errors
/// [`CLIENT_GONE`].
pub(in crate::proxy) async fn ensure_connected(
    session: &mut ServerSession,
    context: &mut RequestContext,
) -> pingora::Result<()> {
    if !session.is_body_done() {
        return Ok(());
    }
    tokio::select! {
        biased;
        cause = client_disconnect(session, &mut context.has_pipelined) => {
            Err(Error::because(CLIENT_GONE, "between attempts", cause).into_down())
        }
        () = std::future::ready(()) => Ok(()),
    }
}
