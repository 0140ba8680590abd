//! Writes responses to the client, complete ones after their record has been written.

use std::pin::pin;
use std::time::Duration;

use http::header;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::{Error, ErrorSource, ErrorType};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::body_memory::MemoryReservation;
use super::reset;
use super::timeouts::{UNREAD_GRACE, UPLOAD_DRAIN_TIMEOUT};
use crate::gateway::ModelsAnswer;
use crate::proxy::attempt::final_response;
use crate::proxy::context::RequestContext;
use crate::record::delivery::WriteReceipt;
use crate::refusal::Refusal;

/// Longest time that the last bytes of a response wait for its record.
const MAX_RECORD_WAIT: Duration = Duration::from_millis(20);

/// Maximum bytes that are written together, except for a part that is larger itself.
const MAX_WRITE_BYTES: usize = 64 * 1024;

/// Refuses a request before any attempt. The connection stays open if possible.
///
/// # Errors
/// If the client has disconnected.
pub(in crate::proxy) async fn refuse_request(
    session: &mut ServerSession,
    context: &mut RequestContext,
    refusal: &Refusal,
) -> pingora::Result<()> {
    close_if_body_may_follow(session);
    let tasks = final_response::prepare_refusal(context, refusal)?;
    record_and_write_response(session, context, tasks).await
}

/// Answers a request for models. The connection stays open if possible.
///
/// # Errors
/// If the client has disconnected.
pub(in crate::proxy) async fn answer_models_request(
    session: &mut ServerSession,
    context: &mut RequestContext,
    answer: &ModelsAnswer,
) -> pingora::Result<()> {
    close_if_body_may_follow(session);
    let tasks = final_response::prepare_models_answer(context, answer)?;
    record_and_write_response(session, context, tasks).await
}

/// Has the connection closed after the response if the client waits for a 100 before it sends its body: it
/// may or may not send it now, so it is not known where its next request begins.
fn close_if_body_may_follow(session: &mut ServerSession) {
    if session.get_header(header::EXPECT).is_some() && !session.is_body_done() {
        session.set_keepalive(None);
    }
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
    let limit = context.gateway().timeouts.response_idle;
    write_to_client(session, tasks, limit, || context.hold_unread_response()).await.map(|_| ())
}

/// Writes parts of a response; returns whether the client has all that it gets. `limit` is how long the client
/// may take to read [`MAX_WRITE_BYTES`], or as much as there is. After [`UNREAD_GRACE`] of that, `hold_memory` says
/// whether there is memory for what waits.
///
/// # Errors
/// If the client has disconnected or does not read, or there is no memory for what it does not read.
pub(in crate::proxy) async fn write_to_client(
    session: &mut ServerSession,
    mut tasks: Vec<HttpTask>,
    limit: Duration,
    hold_memory: impl Fn() -> Option<MemoryReservation>,
) -> pingora::Result<bool> {
    loop {
        let rest = split_off_after(&mut tasks, MAX_WRITE_BYTES);
        match write_within(session, tasks, limit, &hold_memory).await {
            Ok(Ok(is_over)) if is_over || rest.is_empty() => return Ok(is_over),
            Ok(Ok(_)) => tasks = rest,
            Ok(Err(mut error)) => {
                // Pingora leaves the source of some errors of writing to the client unset. Without a source they
                // would count as the backend's.
                if *error.esource() == ErrorSource::Unset {
                    error.as_down();
                }
                return Err(error);
            }
            Err(ClientDoesNotRead) => {
                // Otherwise the kernel keeps what the client has not read for some more minutes.
                if let Some(stream) = session.stream() {
                    let _ = reset::enable_reset_on_close(stream);
                }
                return Err(Error::explain(ErrorType::WriteTimedout, "the client does not read").into_down());
            }
        }
    }
}

/// The client has not read for too long, or no memory is left for what it does not read.
struct ClientDoesNotRead;

/// Writes parts of a response within this time.
async fn write_within(
    session: &mut ServerSession,
    tasks: Vec<HttpTask>,
    limit: Duration,
    hold_memory: impl Fn() -> Option<MemoryReservation>,
) -> Result<pingora::Result<bool>, ClientDoesNotRead> {
    let mut write = pin!(session.response_duplex_vec(tasks));
    let grace = limit.min(UNREAD_GRACE);
    if let Ok(written) = timeout(grace, &mut write).await {
        return Ok(written);
    }
    let _memory = hold_memory().ok_or(ClientDoesNotRead)?;
    timeout(limit - grace, write).await.map_err(|_| ClientDoesNotRead)
}

/// Splits the parts of a response after those that together have at least this many bytes.
fn split_off_after(tasks: &mut Vec<HttpTask>, max_bytes: usize) -> Vec<HttpTask> {
    let mut bytes = 0;
    let at = tasks.iter().position(|task| {
        let is_after = bytes >= max_bytes;
        bytes += body_length(task);
        is_after
    });
    at.map(|at| tasks.split_off(at)).unwrap_or_default()
}

/// The bytes of the body in this part of a response.
pub(in crate::proxy) fn body_length(task: &HttpTask) -> usize {
    match task {
        HttpTask::Body(Some(data), _) | HttpTask::UpgradedBody(Some(data), _) => data.len(),
        _ => 0,
    }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn parts_are_split_after_enough_bytes() {
        let body = |length| HttpTask::Body(Some(Bytes::from(vec![0; length])), false);
        for (lengths, expected) in
            [(&[][..], (0, 0)), (&[5], (1, 0)), (&[1, 2, 3], (3, 0)), (&[2, 3, 4, 5], (3, 1))]
        {
            let mut tasks: Vec<_> = lengths.iter().map(|length| body(*length)).collect();
            let rest = split_off_after(&mut tasks, 9);
            assert_eq!((tasks.len(), rest.len()), expected, "{lengths:?}");
        }
    }
}
