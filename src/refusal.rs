//! Every reason the balancer itself says no: status, code and kind, in one table.
//!
//! What a refusal looks like on the wire is `proxy/reply.rs`'s; when to refuse is everyone
//! else's.

use std::borrow::Cow;
use std::time::Duration;

/// The closed set of reasons. Each is one code of the record's `refusal` field and one
/// `error.code` a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// The request is malformed: path, header, body or framing.
    BadRequest,
    /// No key, a wrong key, or keys of two different clients.
    InvalidApiKey,
    /// The client's list of deployments does not hold this one, or no call without one.
    DeploymentNotAllowed,
    /// No backend of the configuration serves the deployment. Azure's own spelling.
    DeploymentNotFound,
    /// `requests.allow` does not list this method and path.
    PathNotAllowed,
    /// A method that is never served: OPTIONS, TRACE, CONNECT.
    MethodNotAllowed,
    /// Head or body did not arrive in time.
    RequestTimeout,
    /// The body exceeds `requests.max_body` or `requests.max_streamed_body`.
    BodyTooLarge,
    /// A v1 body that is compressed: the deployment's name in it cannot be read.
    UnsupportedEncoding,
    /// The request's head is larger than the balancer reads.
    HeadersTooLarge,
    /// Every backend of the deployment asked to wait.
    AllThrottled,
    /// Backends were asked and none gave an answer.
    UpstreamFailed,
    /// No backend of the deployment can be asked now.
    NoBackend,
    /// The balancer's own limits are reached (memory for held bodies).
    Overloaded,
    /// Backends refused their own credential or lack the deployment: the operator's to mend.
    BackendMisconfigured,
    /// Backends were asked and none answered in time.
    UpstreamTimeout,
}

impl RefusalReason {
    /// HTTP status, `error.code` and `error.type`, in that order.
    fn wire_fields(self) -> (u16, &'static str, &'static str) {
        const INVALID_REQUEST_ERROR: &str = "invalid_request_error";
        const SERVER_ERROR: &str = "server_error";
        match self {
            Self::BadRequest => (400, "bad_request", INVALID_REQUEST_ERROR),
            Self::InvalidApiKey => (401, "invalid_api_key", "authentication_error"),
            Self::DeploymentNotAllowed => (403, "deployment_not_allowed", "permission_error"),
            Self::DeploymentNotFound => (404, "DeploymentNotFound", INVALID_REQUEST_ERROR),
            Self::PathNotAllowed => (404, "path_not_allowed", INVALID_REQUEST_ERROR),
            Self::MethodNotAllowed => (405, "method_not_allowed", INVALID_REQUEST_ERROR),
            Self::RequestTimeout => (408, "request_timeout", INVALID_REQUEST_ERROR),
            Self::BodyTooLarge => (413, "body_too_large", INVALID_REQUEST_ERROR),
            Self::UnsupportedEncoding => (415, "unsupported_encoding", INVALID_REQUEST_ERROR),
            Self::HeadersTooLarge => (431, "headers_too_large", INVALID_REQUEST_ERROR),
            Self::AllThrottled => (429, "all_throttled", "rate_limit_error"),
            Self::UpstreamFailed => (502, "upstream_failed", SERVER_ERROR),
            Self::NoBackend => (503, "no_backend", SERVER_ERROR),
            Self::Overloaded => (503, "overloaded", SERVER_ERROR),
            Self::BackendMisconfigured => (503, "backend_misconfigured", SERVER_ERROR),
            Self::UpstreamTimeout => (504, "upstream_timeout", SERVER_ERROR),
        }
    }

    /// Whether it is said because backends failed rather than because of the request or of
    /// limits.
    pub fn is_upstream_failure(self) -> bool {
        matches!(self, Self::UpstreamFailed | Self::UpstreamTimeout)
    }

    /// The HTTP status of the answer.
    pub fn status(self) -> u16 {
        self.wire_fields().0
    }

    /// The code clients and records read.
    pub fn code(self) -> &'static str {
        self.wire_fields().1
    }

    /// `error.type`, as the SDKs show it.
    pub fn error_type(self) -> &'static str {
        self.wire_fields().2
    }
}

/// A reason with what to tell this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: RefusalReason,
    /// What was wrong and what would be right; no key, prompt or token.
    pub message: Cow<'static, str>,
    /// When another try can succeed, told as `retry-after` and `retry-after-ms`.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal with its message.
    pub fn new(reason: RefusalReason, message: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }

    /// The same, telling the client when to come back.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// A request without a valid key, token or certificate.
    pub fn invalid_api_key(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RefusalReason::InvalidApiKey, message)
    }

    /// A malformed request.
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RefusalReason::BadRequest, message)
    }
}
