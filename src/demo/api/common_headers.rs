//! The headers that every response of the service carries.

use std::time::SystemTime;

use super::response::{ResponseBody, SimulatedResponse};
use crate::demo::http::request_head::RequestHead;
use crate::demo::resource::state::ResourceState;

/// Adds the headers that every response carries. A WebSocket upgrade is left as it is.
pub(in crate::demo) fn with_common_headers(
    resource: &ResourceState,
    head: &RequestHead,
    response: SimulatedResponse,
) -> SimulatedResponse {
    if matches!(response.body, ResponseBody::WebSocket(_)) {
        return response;
    }
    let request_id = resource.id_generator.new_uuid_v4();
    let client_request_id =
        head.header("x-ms-client-request-id").map_or_else(|| request_id.clone(), str::to_owned);
    let is_stream = matches!(response.body, ResponseBody::Stream(..));
    let response = response
        .with_header("apim-request-id", request_id)
        .with_header("x-ms-client-request-id", client_request_id)
        .with_header("x-request-id", resource.id_generator.new_uuid_v4())
        .with_header("x-ms-region", resource.definition.region.clone())
        .with_header("x-content-type-options", "nosniff")
        .with_header("strict-transport-security", "max-age=31536000; includeSubDomains; preload")
        .with_header("date", httpdate::fmt_http_date(SystemTime::now()));
    if is_stream {
        response.with_header("x-accel-buffering", "no").with_header("azureai-fe-is-streaming", "true")
    } else {
        response
    }
}
