//! Every way the simulated service says no, in Azure's own shapes.
//!
//! The shapes differ on purpose: `code` may be text, a number in quotes or null, and some front doors
//! answer in HTML. Callers are meant to cope with all of them.

use serde_json::{Value, json};

use super::answer::Answer;

/// A canned error of Azure OpenAI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 400: the prompt was stopped by the content filter.
    ContentFilter,
    /// 400: more tokens than the model's context holds.
    ContextLengthExceeded,
    /// 400: reasoning that another resource encrypted.
    InvalidEncryptedContent,
    /// 400: `previous_response_id` that this resource never gave out.
    PreviousResponseNotFound,
    /// 401: a wrong key.
    InvalidKey,
    /// 401: no credential, or a bad Entra token.
    InvalidToken,
    /// 401: a good token whose principal lacks the role.
    PermissionDenied,
    /// 403: keys are switched off.
    AuthenticationTypeDisabled,
    /// 403: the caller's network is not allowed.
    Firewall,
    /// 404: no such deployment here.
    DeploymentNotFound,
    /// 404: no such path, or a bad `api-version`.
    ResourceNotFound,
    /// 408: the service gave up on itself.
    Timeout,
    /// 409: an object is in another state.
    Conflict,
    /// 424: a tool, data source or image could not be reached.
    FailedDependency,
    /// 500: in JSON.
    ServerError,
    /// 500: in HTML.
    ServerErrorHtml,
    /// 502: in HTML.
    BadGateway,
    /// 503: in JSON.
    Unavailable,
    /// 504: empty.
    GatewayTimeout,
    /// A status by its number, with Azure's body for it where there is only one, and a plain one elsewhere.
    Status(u16),
}

const NOT_DEPLOYED: &str = "The API deployment for this resource does not exist. If you created the deployment within \
                            the last 5 minutes, please wait a moment and try again.";
const BAD_TOKEN: &str = "Unauthorized. Access token is missing, invalid, audience is incorrect \
                         (https://cognitiveservices.azure.com), or have expired.";
const BAD_KEY: &str = "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid \
                       key for an active subscription and use a correct regional API endpoint for your resource.";
const NO_ROLE: &str = "The principal `00000000-0000-0000-0000-000000000000` lacks the required data action \
                       `Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action` to perform \
                       `POST /openai/deployments/{deployment-id}/chat/completions` operation.";

impl Refusal {
    /// The status it is sent with.
    pub fn status(self) -> u16 {
        match self {
            Self::ContentFilter
            | Self::ContextLengthExceeded
            | Self::InvalidEncryptedContent
            | Self::PreviousResponseNotFound => 400,
            Self::InvalidKey | Self::InvalidToken | Self::PermissionDenied => 401,
            Self::AuthenticationTypeDisabled | Self::Firewall => 403,
            Self::DeploymentNotFound | Self::ResourceNotFound => 404,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::FailedDependency => 424,
            Self::ServerError | Self::ServerErrorHtml => 500,
            Self::BadGateway => 502,
            Self::Unavailable => 503,
            Self::GatewayTimeout => 504,
            Self::Status(status) => status,
        }
    }

    /// The refusal of this name, as configuration files and `x-simulate` spell it.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "content_filter" => Self::ContentFilter,
            "context_length_exceeded" => Self::ContextLengthExceeded,
            "invalid_encrypted_content" => Self::InvalidEncryptedContent,
            "previous_response_not_found" => Self::PreviousResponseNotFound,
            "invalid_key" => Self::InvalidKey,
            "invalid_token" => Self::InvalidToken,
            "permission_denied" => Self::PermissionDenied,
            "authentication_type_disabled" => Self::AuthenticationTypeDisabled,
            "firewall" => Self::Firewall,
            "deployment_not_found" => Self::DeploymentNotFound,
            "resource_not_found" => Self::ResourceNotFound,
            "timeout" => Self::Timeout,
            "conflict" => Self::Conflict,
            "failed_dependency" => Self::FailedDependency,
            "server_error" => Self::ServerError,
            "server_error_html" => Self::ServerErrorHtml,
            "bad_gateway" => Self::BadGateway,
            "unavailable" => Self::Unavailable,
            "gateway_timeout" => Self::GatewayTimeout,
            status => Self::Status(status.parse().ok().filter(|status| (400..600).contains(status))?),
        })
    }

    pub(super) fn answer(self) -> Answer {
        let status = self.status();
        match self {
            Self::ContentFilter => {
                Answer::json(status, &content_filter()).with("ms-azureml-model-error-reason", "model_error")
            }
            Self::ContextLengthExceeded => {
                let message = "This model's maximum context length is 8192 tokens. However, your messages resulted in \
                               9001 tokens. Please reduce the length of the messages.";
                invalid(status, message, Some("messages"), Some("context_length_exceeded"))
                    .with("ms-azureml-model-error-reason", "model_error")
                    .with("ms-azureml-model-error-statuscode", "400")
            }
            Self::InvalidEncryptedContent => {
                invalid(status, "The encrypted content gAAA... could not be verified.", None, None)
            }
            Self::PreviousResponseNotFound => invalid(
                status,
                "Previous response with id 'resp_…' not found.",
                Some("previous_response_id"),
                Some("previous_response_not_found"),
            ),
            Self::InvalidKey => coded(status, "401", BAD_KEY),
            Self::InvalidToken => Answer::json(status, &json!({"statusCode": 401, "message": BAD_TOKEN})),
            Self::PermissionDenied => coded(status, "PermissionDenied", NO_ROLE),
            Self::AuthenticationTypeDisabled => coded(
                status,
                "AuthenticationTypeDisabled",
                "Key based authentication is disabled for this resource.",
            ),
            Self::Firewall => coded(status, "403", "Access denied due to Virtual Network/Firewall rules.")
                .with("policy-id", "ThrowExceptionDueToTrafficDenied"),
            Self::DeploymentNotFound => coded(status, "DeploymentNotFound", NOT_DEPLOYED),
            Self::ResourceNotFound => coded(status, "404", "Resource not found"),
            Self::Timeout => coded(status, "Timeout", "The operation was timeout."),
            Self::Conflict => coded(status, "conflict", "The object is in a state that does not allow this."),
            Self::FailedDependency => coded(status, "424", "A dependency of the request failed."),
            Self::ServerError => {
                let message = "The server had an error while processing your request. Sorry about that!";
                let error = json!({"message": message, "type": "server_error", "param": null, "code": null});
                Answer::json(status, &json!({ "error": error }))
            }
            Self::ServerErrorHtml => html(status, "500 Internal Server Error"),
            Self::BadGateway => html(status, "502 Bad Gateway"),
            Self::Unavailable => {
                let message =
                    "The service is temporarily unable to process your request. Please try again later.";
                coded(status, "503", message)
            }
            Self::GatewayTimeout => Answer::whole(status, "text/html", ""),
            Self::Status(known @ (408 | 409 | 424 | 500 | 502 | 503 | 504)) => Self::usual(known).answer(),
            Self::Status(_) => coded(status, &status.to_string(), "A simulated refusal."),
        }
    }
}

impl Refusal {
    /// What Azure says with a status that has only one meaning.
    fn usual(status: u16) -> Self {
        match status {
            408 => Self::Timeout,
            409 => Self::Conflict,
            424 => Self::FailedDependency,
            502 => Self::BadGateway,
            503 => Self::Unavailable,
            504 => Self::GatewayTimeout,
            _ => Self::ServerError,
        }
    }
}

impl From<Refusal> for Box<Answer> {
    fn from(refusal: Refusal) -> Self {
        Box::new(refusal.answer())
    }
}

/// `{"error":{"code":…,"message":…}}`
pub(super) fn coded(status: u16, code: &str, message: &str) -> Answer {
    Answer::json(status, &json!({"error": {"code": code, "message": message}}))
}

/// A complaint about the request itself, in the shape the model servers use.
pub(super) fn invalid(status: u16, message: &str, param: Option<&str>, code: Option<&str>) -> Answer {
    let error = json!({"message": message, "type": "invalid_request_error", "param": param, "code": code});
    Answer::json(status, &json!({ "error": error }))
}

/// 400 for one parameter.
pub(super) fn bad_parameter(param: &str, message: &str) -> Box<Answer> {
    Box::new(invalid(400, message, Some(param), None))
}

/// 404 for an object that lives elsewhere, or nowhere.
pub(super) fn no_such(what: &str, id: &str) -> Box<Answer> {
    Box::new(invalid(404, &format!("{what} with id '{id}' not found."), None, None))
}

fn html(status: u16, title: &str) -> Answer {
    let page = format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
         <hr><center>Microsoft-Azure-Application-Gateway/v2</center>\r\n</body>\r\n</html>\r\n"
    );
    Answer::whole(status, "text/html", page)
}

fn content_filter() -> Value {
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
