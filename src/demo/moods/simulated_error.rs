//! The errors that a simulated resource can be told to respond with.

/// An error that Azure OpenAI responds with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimulatedError {
    /// 400: the content filter blocked the prompt.
    ContentFilter,
    /// 400: the prompt has more tokens than the context of the model holds.
    ContextLengthExceeded,
    /// 400: the request contains reasoning that another resource encrypted.
    InvalidEncryptedContent,
    /// 400: the resource does not know the `previous_response_id`.
    PreviousResponseNotFound,
    /// 401: the API key is wrong.
    InvalidKey,
    /// 401: there is no credential, or the Entra token is invalid.
    InvalidToken,
    /// 401: the token is valid, but its principal lacks the role.
    PermissionDenied,
    /// 403: the resource does not accept API keys.
    AuthenticationTypeDisabled,
    /// 403: the network of the client is not allowed.
    Firewall,
    /// 404: the resource has no such deployment.
    DeploymentNotFound,
    /// 404: unknown path, or invalid `api-version`.
    ResourceNotFound,
    /// 408: the service took too long to process the request.
    Timeout,
    /// 409: the state of an object does not allow the operation.
    Conflict,
    /// 424: a tool, data source or image could not be reached.
    FailedDependency,
    /// 500, with a JSON body.
    ServerError,
    /// 500, with an HTML body.
    ServerErrorHtml,
    /// 502, with an HTML body.
    BadGateway,
    /// 503, with a JSON body.
    Unavailable,
    /// 504, with an empty body.
    GatewayTimeout,
    /// A status by its number, with the response of the error above that is usual for it, or else a plain
    /// one.
    Status(u16),
}

impl SimulatedError {
    /// The HTTP status of the response.
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

    /// The error of this name, or the status of this number, as files and `x-simulate` spell it.
    pub fn from_name(name: &str) -> Option<Self> {
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

    /// Whether the error is about the client, its network or the path, and not about what it asks for.
    pub(super) fn is_about_connections(self) -> bool {
        match self {
            Self::InvalidKey
            | Self::InvalidToken
            | Self::PermissionDenied
            | Self::AuthenticationTypeDisabled
            | Self::Firewall
            | Self::ResourceNotFound => true,
            Self::Status(status) => matches!(status, 401 | 403 | 407),
            _ => false,
        }
    }

    /// The usual error for a status; [`Self::ServerError`] for any that has none.
    pub(in crate::demo) fn for_status(status: u16) -> Self {
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
