//! Error responses in Azure's own shapes.
//!
//! The shapes differ on purpose: `code` may be text, a number in quotes or null, and some front ends respond
//! in HTML. A client has to cope with all of them.

use serde_json::{Value, json};

use super::response::{ErrorResponse, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;

const DEPLOYMENT_NOT_FOUND_MESSAGE: &str = "The API deployment for this resource does not exist. If you created the deployment within \
                            the last 5 minutes, please wait a moment and try again.";
const INVALID_TOKEN_MESSAGE: &str = "Unauthorized. Access token is missing, invalid, audience is incorrect \
                         (https://cognitiveservices.azure.com), or have expired.";
const INVALID_KEY_MESSAGE: &str = "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid \
                       key for an active subscription and use a correct regional API endpoint for your resource.";
const MISSING_ROLE_MESSAGE: &str = "The principal `00000000-0000-0000-0000-000000000000` lacks the required data action \
                       `Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action` to perform \
                       `POST /openai/deployments/{deployment-id}/chat/completions` operation.";

/// The response that Azure sends for an error.
pub(in crate::demo) fn to_response(error: SimulatedError) -> SimulatedResponse {
    let status = error.status();
    match error {
        SimulatedError::ContentFilter => SimulatedResponse::from_json(status, &content_filter_error())
            .with_header("ms-azureml-model-error-reason", "model_error"),
        SimulatedError::ContextLengthExceeded => {
            let message = "This model's maximum context length is 8192 tokens. However, your messages resulted in \
                               9001 tokens. Please reduce the length of the messages.";
            invalid_request_error(status, message, Some("messages"), Some("context_length_exceeded"))
                .with_header("ms-azureml-model-error-reason", "model_error")
                .with_header("ms-azureml-model-error-statuscode", "400")
        }
        SimulatedError::InvalidEncryptedContent => {
            invalid_request_error(status, "The encrypted content gAAA... could not be verified.", None, None)
        }
        SimulatedError::PreviousResponseNotFound => invalid_request_error(
            status,
            "Previous response with id 'resp_…' not found.",
            Some("previous_response_id"),
            Some("previous_response_not_found"),
        ),
        SimulatedError::InvalidKey => error_with_code(status, "401", INVALID_KEY_MESSAGE),
        SimulatedError::InvalidToken => SimulatedResponse::from_json(
            status,
            &json!({"statusCode": 401, "message": INVALID_TOKEN_MESSAGE}),
        ),
        SimulatedError::PermissionDenied => error_with_code(status, "PermissionDenied", MISSING_ROLE_MESSAGE),
        SimulatedError::AuthenticationTypeDisabled => error_with_code(
            status,
            "AuthenticationTypeDisabled",
            "Key based authentication is disabled for this resource.",
        ),
        SimulatedError::Firewall => {
            error_with_code(status, "403", "Access denied due to Virtual Network/Firewall rules.")
                .with_header("policy-id", "ThrowExceptionDueToTrafficDenied")
        }
        SimulatedError::DeploymentNotFound => {
            error_with_code(status, "DeploymentNotFound", DEPLOYMENT_NOT_FOUND_MESSAGE)
        }
        SimulatedError::ResourceNotFound => error_with_code(status, "404", "Resource not found"),
        SimulatedError::Timeout => error_with_code(status, "Timeout", "The operation was timeout."),
        SimulatedError::Conflict => {
            error_with_code(status, "conflict", "The object is in a state that does not allow this.")
        }
        SimulatedError::FailedDependency => {
            error_with_code(status, "424", "A dependency of the request failed.")
        }
        SimulatedError::ServerError => {
            let message = "The server had an error while processing your request. Sorry about that!";
            let error = json!({"message": message, "type": "server_error", "param": null, "code": null});
            SimulatedResponse::from_json(status, &json!({ "error": error }))
        }
        SimulatedError::ServerErrorHtml => html_error_page(status, "500 Internal Server Error"),
        SimulatedError::BadGateway => html_error_page(status, "502 Bad Gateway"),
        SimulatedError::Unavailable => {
            let message =
                "The service is temporarily unable to process your request. Please try again later.";
            error_with_code(status, "503", message)
        }
        SimulatedError::GatewayTimeout => SimulatedResponse::from_body(status, "text/html", ""),
        SimulatedError::Status(known @ (408 | 409 | 424 | 500 | 502 | 503 | 504)) => {
            to_response(SimulatedError::for_status(known))
        }
        SimulatedError::Status(_) => error_with_code(status, &status.to_string(), "A simulated refusal."),
    }
}

impl From<SimulatedError> for ErrorResponse {
    fn from(error: SimulatedError) -> Self {
        Box::new(to_response(error))
    }
}

/// An error in the shape of Azure's gateway: `{"error":{"code":…,"message":…}}`.
pub(in crate::demo) fn error_with_code(status: u16, code: &str, message: &str) -> SimulatedResponse {
    SimulatedResponse::from_json(status, &json!({"error": {"code": code, "message": message}}))
}

/// An error of the request, in the shape of the model servers:
/// `{"error":{"message":…,"type":…,"param":…,"code":…}}`.
pub(in crate::demo) fn invalid_request_error(
    status: u16,
    message: &str,
    param: Option<&str>,
    code: Option<&str>,
) -> SimulatedResponse {
    let error = json!({"message": message, "type": "invalid_request_error", "param": param, "code": code});
    SimulatedResponse::from_json(status, &json!({ "error": error }))
}

/// 400 for a missing or invalid parameter.
pub(in crate::demo) fn invalid_parameter(param: &str, message: &str) -> ErrorResponse {
    Box::new(invalid_request_error(400, message, Some(param), None))
}

/// 404 for an object that this resource does not have.
pub(in crate::demo) fn not_found(object_kind: &str, id: &str) -> ErrorResponse {
    Box::new(invalid_request_error(404, &format!("{object_kind} with id '{id}' not found."), None, None))
}

fn html_error_page(status: u16, title: &str) -> SimulatedResponse {
    let page = format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
         <hr><center>Microsoft-Azure-Application-Gateway/v2</center>\r\n</body>\r\n</html>\r\n"
    );
    SimulatedResponse::from_body(status, "text/html", page)
}

fn content_filter_error() -> Value {
    let safe = json!({"filtered": false, "severity": "safe"});
    json!({"error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. \
                    Please modify your prompt and retry.",
        "type": null, "param": "prompt", "code": "content_filter", "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {
            "hate": {"filtered": true, "severity": "high"}, "self_harm": safe, "sexual": safe, "violence": safe,
            "jailbreak": {"detected": false, "filtered": false},
        }},
    }})
}
