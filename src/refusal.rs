//! The responses that the balancer itself refuses a request with: status, code and type of each, in one
//! table. `proxy/client/refusal_response.rs` writes them.

use std::borrow::Cow;
use std::time::Duration;

use crate::names::DeploymentName;

/// Why a request is refused. Each reason has a code, which clients read as `error.code` and records
/// contain as `refusal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// The request is malformed: path, header, body or framing.
    BadRequest,
    /// No valid key, token or certificate, or valid ones of two different clients.
    InvalidApiKey,
    /// The client may not use this deployment, or may not make calls that name none.
    DeploymentNotAllowed,
    /// No backend of the configuration serves the deployment. The code is spelled as Azure spells it.
    DeploymentNotFound,
    /// `requests.allow` does not list this method and path.
    PathNotAllowed,
    /// The list has objects of all clients, and `affinity.owner` is `enforce`.
    ListNotAllowed,
    /// A method that is never served: OPTIONS, TRACE, CONNECT.
    MethodNotAllowed,
    /// The request refers to objects of different Azure resources.
    MixedResources,
    /// Another client made the object, and `affinity.owner` is `enforce`.
    ObjectNotFound,
    /// The same for the response that the request continues. The code is Azure's.
    PreviousResponseNotFound,
    /// The same for encrypted reasoning. The code is Azure's.
    EncryptedContentNotVerified,
    /// The resource that has what the request refers to is unavailable.
    HomeUnavailable,
    /// The head or the body of the request did not arrive in time.
    RequestTimeout,
    /// The body exceeds `requests.max_body` or `requests.max_streamed_body`.
    BodyTooLarge,
    /// The body of a v1 request is compressed, so the deployment in it cannot be read.
    UnsupportedEncoding,
    /// The handshake asks for another version of the WebSocket protocol than 13.
    UnsupportedWebSocketVersion,
    /// A Responses socket is closed between two turns. The code is Azure's, which clients know.
    SocketLimitReached,
    /// The head of the request is larger than the balancer's limit.
    HeadersTooLarge,
    /// A limit of the client is reached: a rate, or its requests in flight. The code is Azure's.
    RateLimitExceeded,
    /// A budget of the client is used up. The code is OpenAI's.
    InsufficientQuota,
    /// Every backend of the deployment is throttled.
    AllThrottled,
    /// Attempts were made, and none got a response.
    UpstreamFailed,
    /// No backend of the deployment is available.
    NoBackend,
    /// A limit of the balancer itself is reached: connections, or memory for buffered bodies.
    Overloaded,
    /// Backends rejected the balancer's credential or lack the deployment. The operator has to fix it.
    BackendMisconfigured,
    /// Attempts were made, and none got a response in time.
    UpstreamTimeout,
}

impl RefusalReason {
    /// HTTP status, `error.code` and `error.type`.
    fn status_code_and_type(self) -> (u16, &'static str, &'static str) {
        const INVALID_REQUEST_ERROR: &str = "invalid_request_error";
        const SERVER_ERROR: &str = "server_error";
        match self {
            Self::BadRequest => (400, "bad_request", INVALID_REQUEST_ERROR),
            Self::InvalidApiKey => (401, "invalid_api_key", "authentication_error"),
            Self::DeploymentNotAllowed => (403, "deployment_not_allowed", "permission_error"),
            Self::DeploymentNotFound => (404, "DeploymentNotFound", INVALID_REQUEST_ERROR),
            Self::MixedResources => (400, "mixed_resources", INVALID_REQUEST_ERROR),
            Self::ObjectNotFound => (404, "object_not_found", INVALID_REQUEST_ERROR),
            Self::PreviousResponseNotFound => (400, "previous_response_not_found", INVALID_REQUEST_ERROR),
            Self::EncryptedContentNotVerified => (400, "invalid_encrypted_content", INVALID_REQUEST_ERROR),
            Self::HomeUnavailable => (503, "home_unavailable", SERVER_ERROR),
            Self::PathNotAllowed => (404, "path_not_allowed", INVALID_REQUEST_ERROR),
            Self::ListNotAllowed => (403, "path_not_allowed", "permission_error"),
            Self::MethodNotAllowed => (405, "method_not_allowed", INVALID_REQUEST_ERROR),
            Self::RequestTimeout => (408, "request_timeout", INVALID_REQUEST_ERROR),
            Self::BodyTooLarge => (413, "body_too_large", INVALID_REQUEST_ERROR),
            Self::UnsupportedEncoding => (415, "unsupported_encoding", INVALID_REQUEST_ERROR),
            Self::UnsupportedWebSocketVersion => {
                (426, "unsupported_websocket_version", INVALID_REQUEST_ERROR)
            }
            Self::SocketLimitReached => (400, "websocket_connection_limit_reached", INVALID_REQUEST_ERROR),
            Self::HeadersTooLarge => (431, "headers_too_large", INVALID_REQUEST_ERROR),
            Self::RateLimitExceeded => (429, "rate_limit_exceeded", "rate_limit_error"),
            Self::InsufficientQuota => (429, "insufficient_quota", "insufficient_quota"),
            Self::AllThrottled => (429, "all_throttled", "rate_limit_error"),
            Self::UpstreamFailed => (502, "upstream_failed", SERVER_ERROR),
            Self::NoBackend => (503, "no_backend", SERVER_ERROR),
            Self::Overloaded => (503, "overloaded", SERVER_ERROR),
            Self::BackendMisconfigured => (503, "backend_misconfigured", SERVER_ERROR),
            Self::UpstreamTimeout => (504, "upstream_timeout", SERVER_ERROR),
        }
    }

    /// Whether backends failed, as opposed to a fault of the request or a limit.
    pub fn is_upstream_failure(self) -> bool {
        matches!(self, Self::UpstreamFailed | Self::UpstreamTimeout)
    }

    /// The HTTP status of the response.
    pub fn status(self) -> u16 {
        self.status_code_and_type().0
    }

    /// `refusal` in records.
    pub fn code(self) -> &'static str {
        self.status_code_and_type().1
    }

    /// `error.code` for clients. Azure has none for an object that does not exist.
    pub fn client_code(self) -> Option<&'static str> {
        (self != Self::ObjectNotFound).then(|| self.code())
    }

    /// `error.param` for clients.
    pub fn param(self) -> Option<&'static str> {
        (self == Self::PreviousResponseNotFound).then_some("previous_response_id")
    }

    /// Whether the balancer applies a limit of the client.
    pub fn is_client_limit(self) -> bool {
        matches!(self, Self::RateLimitExceeded | Self::InsufficientQuota)
    }

    /// `error.type`, which the SDKs show.
    pub fn error_type(self) -> &'static str {
        self.status_code_and_type().2
    }
}

/// The refusal of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why the request is refused.
    pub reason: RefusalReason,
    /// What is wrong and what would be right. It contains no key, prompt or token.
    pub message: Cow<'static, str>,
    /// How long to wait before the next request, sent as `retry-after` and `retry-after-ms`.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal with this message.
    pub fn new(reason: RefusalReason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }

    /// Adds how long the client should wait before it retries.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Whether the SDKs must not send the request again: it would be refused again.
    pub fn forbids_retry(&self) -> bool {
        match self.reason {
            RefusalReason::InsufficientQuota => true,
            RefusalReason::RateLimitExceeded => self.retry_after.is_none(),
            _ => false,
        }
    }

    /// Refuses a request that is not authenticated.
    pub fn invalid_api_key(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RefusalReason::InvalidApiKey, message)
    }

    /// Refuses a request for a deployment that no backend has.
    pub fn deployment_not_found(deployment: &DeploymentName) -> Self {
        let message = format!("The API deployment '{deployment}' does not exist: no backend has it.");
        Self::new(RefusalReason::DeploymentNotFound, message)
    }

    /// Refuses a malformed request.
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RefusalReason::BadRequest, message)
    }
}
