//! From a request to its response: the checks before the operation, the operation, and the mood.
//!
//! Order of the checks: path, `Host`, number of headers, credential, mood, `api-version`, operation.

use std::time::Instant;

use bytes::Bytes;

use crate::demo::api::authentication::check_credential;
use crate::demo::api::common_headers::with_common_headers;
use crate::demo::api::error_response::{error_with_code, to_response};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, SimulatedResponse};
use crate::demo::api::route::{ApiDialect, RequestRoute};
use crate::demo::faults::response_faults::{apply_mood_to_request, apply_mood_to_response, refusal_by_mood};
use crate::demo::http::request_head::RequestHead;
use crate::demo::moods::mood::Mood;
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::operations::dispatch::dispatch_operation;
use crate::demo::resource::rate_limiter::LimitOverride;
use crate::demo::resource::state::ResourceState;

/// Azure documents at most ten custom headers, and responds with 431 to more.
const MAX_CUSTOM_HEADERS: usize = 10;

/// The response to a request, as the mood makes it.
pub(super) fn build_response(
    resource: &ResourceState,
    head: &RequestHead,
    body: &Bytes,
    mood: &Mood,
    now: Instant,
) -> SimulatedResponse {
    let Some(route) = RequestRoute::from_head(head) else {
        return with_common_headers(resource, head, to_response(SimulatedError::ResourceNotFound));
    };
    let request = SimulatedRequest {
        resource,
        head,
        body,
        route: &route,
        limit_override: LimitOverride::None,
        keeps_responses: true,
        read_lag: resource.read_lag(),
        received_at: now,
    };
    let request = apply_mood_to_request(&request, mood);
    let response = check_request_and_mood(&request, mood)
        .and_then(|()| dispatch_operation(&request))
        .unwrap_or_else(|error| *error);
    with_common_headers(resource, head, apply_mood_to_response(&request, mood, response))
}

/// The checks that come before the operation.
fn check_request_and_mood(request: &SimulatedRequest, mood: &Mood) -> Result<(), ErrorResponse> {
    check_host(request)?;
    if custom_header_count(request.head) > MAX_CUSTOM_HEADERS {
        let body = "Request Header Fields Too Large";
        return Err(Box::new(SimulatedResponse::from_body(431, "text/plain", body)));
    }
    check_credential(&request.resource.definition, request.head, request.route)?;
    match refusal_by_mood(request, mood) {
        Some(refusal) => Err(Box::new(refusal)),
        None => check_api_version(request),
    }
}

/// The required host is compared with and without the port.
fn check_host(request: &SimulatedRequest) -> Result<(), ErrorResponse> {
    if let Some(required) = &request.resource.definition.required_host {
        let host = request.head.header("host").unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        if !name.eq_ignore_ascii_case(required) && !host.eq_ignore_ascii_case(required) {
            return Err(SimulatedError::ResourceNotFound.into());
        }
    }
    Ok(())
}

fn check_api_version(request: &SimulatedRequest) -> Result<(), ErrorResponse> {
    match &request.route.dialect {
        ApiDialect::Classic { api_version } if is_dated_api_version(api_version) => Ok(()),
        ApiDialect::Classic { .. } => Err(SimulatedError::ResourceNotFound.into()),
        ApiDialect::V1 => match request.head.query_parameter("api-version").as_deref() {
            None | Some("v1" | "preview") => Ok(()),
            Some(_) => Err(Box::new(error_with_code(400, "BadRequest", "API version not supported"))),
        },
    }
}

/// A date at which the API existed, such as `2024-10-21` or `2025-04-01-preview`.
fn is_dated_api_version(version: &str) -> bool {
    let date = version.strip_suffix("-preview").unwrap_or(version);
    let numbers: Vec<Option<u32>> = date.split('-').map(|part| part.parse().ok()).collect();
    date.len() == 10 && matches!(numbers.as_slice(), [Some(2022..=2026), Some(1..=12), Some(1..=31)])
}

/// Counts the headers beyond those of HTTP itself, of browsers and of the SDKs.
///
/// Azure does not document what it counts; the `x-stainless-*` headers of the SDKs are evidently not counted.
fn custom_header_count(head: &RequestHead) -> usize {
    const STANDARD_HEADERS: [&str; 27] = [
        "host",
        "connection",
        "keep-alive",
        "content-type",
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "accept",
        "accept-encoding",
        "accept-language",
        "accept-charset",
        "authorization",
        "api-key",
        "ocp-apim-subscription-key",
        "user-agent",
        "expect",
        "te",
        "trailer",
        "upgrade",
        "cache-control",
        "pragma",
        "origin",
        "referer",
        "cookie",
        "date",
        "range",
        "x-ms-client-request-id",
    ];
    const STANDARD_HEADER_PREFIXES: [&str; 4] = ["x-stainless-", "openai-", "sec-", "if-"];
    let is_standard = |name: &str| {
        STANDARD_HEADERS.contains(&name)
            || STANDARD_HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    head.headers.iter().filter(|(name, _)| !is_standard(&name.to_ascii_lowercase())).count()
}
