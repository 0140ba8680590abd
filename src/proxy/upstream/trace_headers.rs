//! The trace context that backends get, if `traces.forward` says so: the `traceparent` of the attempt, and the client's
//! `tracestate` as it is (W3C Trace Context, section 3.3).

use http::{HeaderMap, HeaderName};
use pingora::Result;
use pingora::http::RequestHeader;

use crate::proxy::context::RequestContext;
use crate::record::trace_context::{SpanId, TraceContext, TraceId};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Adds the fields to the head of the current attempt. `client_headers` are those of the client's request. Without
/// `traces.forward` neither of the fields is in the head.
///
/// # Errors
/// If a field cannot be set.
pub(in crate::proxy) fn set_trace_headers(
    head: &mut RequestHeader,
    client_headers: &HeaderMap,
    context: &mut RequestContext,
) -> Result<()> {
    let traces = context.config.gateway.traces_config().filter(|traces| traces.forwards_context);
    let (Some(traces), Some(retry)) = (traces, &mut context.retry_state) else { return Ok(()) };
    let span_id = SpanId::random();
    let parent = context.request.headers_for_record.trace_context;
    let attempt = parent.map_or_else(
        || {
            let trace_id = TraceId::of_request(&context.request.id);
            // Whether the request fails or is slow is not known yet.
            TraceContext::beginning(trace_id, span_id, trace_id.is_in_share(traces.sample))
        },
        |parent| parent.with_span(span_id),
    );
    retry.note_span(span_id);
    head.insert_header(TRACEPARENT.clone(), attempt.to_string())?;
    // Without a valid `traceparent` it means nothing.
    if parent.is_some() {
        for value in client_headers.get_all(&TRACESTATE) {
            head.append_header(TRACESTATE.clone(), value.clone())?;
        }
    }
    Ok(())
}
