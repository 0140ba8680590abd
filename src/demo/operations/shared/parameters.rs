//! Parameters that several operations check in the same way.

use serde_json::Value;

use crate::demo::api::error_response::{error_with_code, invalid_parameter};
use crate::demo::api::response::{ErrorResponse, SimulatedResponse};

const MAX_PARAMETER_VALUE: u64 = 1_000_000_000;

/// A parameter that must be a positive integer if it is given.
///
/// # Errors
/// 400 for anything else, also for numbers beyond all reason, which would overflow later.
pub(in crate::demo) fn positive_integer(body: &Value, name: &str) -> Result<Option<u64>, ErrorResponse> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number @ 1..=MAX_PARAMETER_VALUE) => Ok(Some(number)),
            _ => Err(invalid_parameter(
                name,
                &format!("Invalid '{name}': expected a positive integer, but got {value}."),
            )),
        },
    }
}

/// The 400 for a model that does not support the operation.
pub(in crate::demo) fn unsupported_operation_response(operation: &str, model: &str) -> SimulatedResponse {
    let message = format!(
        "The {operation} operation does not work with the specified model, {model}. Please choose different model and try \
         again. You can learn more about which models can be used with each operation here: \
         https://go.microsoft.com/fwlink/?linkid=2197993."
    );
    error_with_code(400, "OperationNotSupported", &message)
}
