//! Writes complete responses to the client, after their record has been written.

use std::time::Duration;

use http::header;
use pingora::protocols::http::{HttpTask, ServerSession};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::timeouts::UPLOAD_DRAIN_TIMEOUT;
use crate::proxy::attempt::final_response;
use crate::proxy::context::RequestContext;
use crate::record::writer::WriteReceipt;
use crate::refusal::Refusal;

/// Longest time that the last bytes of a response wait for its record.
const MAX_RECORD_WAIT: Duration = Duration::from_millis(20);

/// Refuses a request before any attempt. The connection stays open if possible.
///
/// # Errors
/// If the client has disconnected.
pub(in crate::proxy) async fn refuse_request(
    session: &mut ServerSession,
    context: &mut RequestContext,
    refusal: &Refusal,
) -> pingora::Result<()> {
    if session.get_header(header::EXPECT).is_some() && !session.is_body_done() {
        // The client may or may not send its body now, so it is not known where its next request begins.
        session.set_keepalive(None);
    }
    let tasks = final_response::prepare_refusal(context, refusal)?;
    record_and_write_response(session, context, tasks).await
}

/// Writes a complete response, after its record.
///
/// # Errors
/// If the client has disconnected.
pub(in crate::proxy) async fn record_and_write_response(
    session: &mut ServerSession,
    context: &mut RequestContext,
    tasks: Vec<HttpTask>,
) -> pingora::Result<()> {
    let receipt = context.submit_record();
    flush_and_wait_for_record(context, receipt).await;
    session.response_duplex_vec(tasks).await?;
    Ok(())
}

/// Waits until the record of a response is written, at most [`MAX_RECORD_WAIT`]. Called before the last bytes
/// of the response are sent, so that a response that a client got completely is recorded even if this
/// process is killed.
pub(in crate::proxy) async fn flush_and_wait_for_record(
    context: &RequestContext,
    receipt: Option<WriteReceipt>,
) {
    let Some(receipt) = receipt else { return };
    // Other requests that end at this moment can submit their records meanwhile; one write has them all.
    yield_now().await;
    context.gateway().wake_record_writer();
    if timeout(MAX_RECORD_WAIT, receipt).await.is_err() {
        context.gateway().count_late_record();
    }
}

/// Reads and drops the rest of an upload after its response, for at most [`UPLOAD_DRAIN_TIMEOUT`]. If the connection
/// were closed while the client sends, the kernel would reset it, and the client might lose the response.
pub(in crate::proxy) async fn drain_upload(session: &mut ServerSession) {
    if !session.was_upgraded() && !session.is_body_done() {
        session.set_total_drain_timeout(Some(UPLOAD_DRAIN_TIMEOUT));
        let _ = session.drain_request_body().await;
    }
}
