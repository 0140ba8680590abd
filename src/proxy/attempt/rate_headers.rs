//! `x-ratelimit-*` in responses to clients that have rate limits of their own.

use std::time::Instant;

use pingora::http::ResponseHeader;

use crate::admission::limits::LimitKind;
use crate::proxy::context::RequestContext;

const PREFIX: &str = "x-ratelimit-";

/// Tells a client that has rate limits of its own what is left of these, instead of what is left of a backend's.
///
/// # Errors
/// If a header field cannot be set.
pub(super) fn replace_rate_headers(
    context: &RequestContext,
    header: &mut ResponseHeader,
) -> pingora::Result<()> {
    let limiter = context.request.client.as_ref().and_then(|client| client.limiter.as_ref());
    let Some(limiter) = limiter.filter(|limiter| limiter.tells_rates()) else { return Ok(()) };
    let deployment = context.retry_state.as_ref().and_then(|retry| retry.admitted.deployment.as_ref());
    let deployment = deployment.or(context.request.deployment.as_ref());
    let now = Instant::now();
    let names = header.headers.keys().filter(|name| name.as_str().starts_with(PREFIX));
    for name in names.cloned().collect::<Vec<_>>() {
        header.remove_header(&name);
    }
    for RateHeaders { kind, limit, remaining, reset } in &RATE_HEADERS {
        if let Some(rate) = limiter.rate_state(*kind, deployment, now) {
            header.insert_header(*limit, rate.limit)?;
            header.insert_header(*remaining, rate.remaining)?;
            header.insert_header(*reset, rate.reset.as_secs_f64().ceil().to_string())?;
        }
    }
    Ok(())
}

/// The header fields that tell of one rate.
struct RateHeaders {
    kind: LimitKind,
    limit: &'static str,
    remaining: &'static str,
    reset: &'static str,
}

/// As OpenAI and Azure name them.
const RATE_HEADERS: [RateHeaders; 2] = [
    RateHeaders {
        kind: LimitKind::RequestsPerMinute,
        limit: "x-ratelimit-limit-requests",
        remaining: "x-ratelimit-remaining-requests",
        reset: "x-ratelimit-reset-requests",
    },
    RateHeaders {
        kind: LimitKind::TokensPerMinute,
        limit: "x-ratelimit-limit-tokens",
        remaining: "x-ratelimit-remaining-tokens",
        reset: "x-ratelimit-reset-tokens",
    },
];
