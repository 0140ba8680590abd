//! `stream_options`, and the obfuscation that it controls.

use serde_json::Value;

use crate::demo::api::error_response::{invalid_parameter, invalid_request_error};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::ErrorResponse;
use crate::demo::api::route::ApiDialect;
use crate::demo::util::ids::IdGenerator;

/// The first `api-version` of the classic dialect that knows `stream_options`.
const STREAM_OPTIONS_MIN_API_VERSION: &str = "2024-09-01";

/// Checks that `stream_options` may be given.
///
/// # Errors
/// 400 if the API version does not know them, or if the response is not streamed.
pub(in crate::demo) fn check_stream_options(
    request: &SimulatedRequest,
    body: &Value,
    is_streaming: bool,
) -> Result<(), ErrorResponse> {
    if body.get("stream_options").is_none_or(Value::is_null) {
        return Ok(());
    }
    if let ApiDialect::Classic { api_version } = &request.route.dialect
        && api_version.as_str() < STREAM_OPTIONS_MIN_API_VERSION
    {
        let message = "Unrecognized request argument supplied: stream_options";
        return Err(Box::new(invalid_request_error(400, message, None, None)));
    }
    if !is_streaming {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        return Err(invalid_parameter("stream_options", message));
    }
    Ok(())
}

/// A member of `stream_options`, or its default.
pub(in crate::demo) fn stream_option_flag(body: &Value, name: &str, default: bool) -> bool {
    body.pointer(&format!("/stream_options/{name}")).and_then(Value::as_bool).unwrap_or(default)
}

/// Padding of random length, which hides the length of a delta from an observer of the encrypted
/// traffic.
pub(in crate::demo) fn obfuscation_padding(ids: &IdGenerator) -> String {
    let length = ids.new_hex_id("", 1);
    ids.new_alphanumeric_id("", 1 + usize::from_str_radix(&length, 16).unwrap_or(8))
}
