//! Gives the client a response that the balancer has whole, once its record is written.

use std::time::Duration;

use http::header;
use pingora::protocols::http::{HttpTask, ServerSession};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::timeouts::DRAIN_TIMEOUT;
use crate::proxy::attempt::final_response;
use crate::proxy::context::RequestContext;
use crate::record::writer::WriteReceipt;
use crate::refusal::Refusal;

/// How long the last bytes of a response wait for its record.
const RECORD_TIMEOUT: Duration = Duration::from_millis(20);

/// Refuses a request before any backend is tried; the connection is kept if it can be.
///
/// # Errors
/// Pingora's, when the client has disconnected.
pub(in crate::proxy) async fn refuse_request(
    session: &mut ServerSession,
    context: &mut RequestContext,
    refusal: &Refusal,
) -> pingora::Result<()> {
    if session.get_header(header::EXPECT).is_some() && !session.is_body_done() {
        // The client may or may not send the body that it declared: where its next request begins
        // would be a guess.
        session.set_keepalive(None);
    }
    let tasks = final_response::refuse(context, refusal)?;
    write_whole_response(session, context, tasks).await
}

/// Writes a whole response, once its record is written.
///
/// # Errors
/// Pingora's, when the client has disconnected.
pub(in crate::proxy) async fn write_whole_response(
    session: &mut ServerSession,
    context: &mut RequestContext,
    tasks: Vec<HttpTask>,
) -> pingora::Result<()> {
    let receipt = context.settle();
    wait_until_recorded(context, receipt).await;
    session.response_duplex_vec(tasks).await?;
    Ok(())
}

/// Waits for the record of a response whose last bytes are about to go out, at most
/// [`RECORD_TIMEOUT`]: what a client got whole is on record even if this process is killed.
pub(in crate::proxy) async fn wait_until_recorded(context: &RequestContext, receipt: Option<WriteReceipt>) {
    let Some(receipt) = receipt else { return };
    // Requests that end at the same moment share one write.
    yield_now().await;
    context.gateway().flush_records();
    if timeout(RECORD_TIMEOUT, receipt).await.is_err() {
        context.gateway().count_late_record();
    }
}

/// Reads the rest of an upload after its response, for at most [`DRAIN_TIMEOUT`]: a connection that is
/// reset while the client sends takes the response away before the client has read it.
pub(in crate::proxy) async fn drain_upload(session: &mut ServerSession) {
    if !session.was_upgraded() && !session.is_body_done() {
        session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
        let _ = session.drain_request_body().await;
    }
}
