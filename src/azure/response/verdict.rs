//! Classifies responses and error events: whether another backend should be tried, and what the
//! response says about this one. The words that are known are in `known_errors.rs`. What follows from a
//! verdict is decided elsewhere.

use super::error_body::ErrorBody;
use super::known_errors::Meaning;

/// What a response, or the error event at the start of a stream, means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A status below 400. It is relayed.
    Success,
    /// 429. Another backend is tried, and this deployment gets a cooldown.
    Throttled,
    /// A 429 about the size of this request. Another backend is tried, and this one gets no cooldown:
    /// smaller requests are served.
    TooLargeForBackend,
    /// 408 or 5xx. Another backend is tried, and the circuit breaker counts a failure.
    BackendFailure,
    /// The backend rejects the credential or blocks all access. Another backend is tried.
    CredentialRejected,
    /// The credential is valid but lacks permission for this operation. Another backend is tried.
    PermissionDenied,
    /// The backend does not have the deployment. Another backend is tried.
    DeploymentNotFound,
    /// The backend cannot serve this request: it does not support the api-version, or a message, not a
    /// code, says that the deployment is missing. Another backend is tried, and nothing is remembered: a
    /// client can provoke this with an invented version or with a text that Azure quotes, and must not be
    /// able to make the deployment unavailable for other clients.
    UnsupportedByBackend,
    /// The prompt is longer than the context window. The next tier is tried, where the window may be larger
    /// (provisioned deployments of a model can have a smaller one than standard deployments).
    PromptTooLong,
    /// The resource does not have what the request refers to, such as a response, a file, or the key of
    /// encrypted content. Another resource may have it, if the request does refer to something. It is no
    /// verdict on what is not stored anywhere, because the client asked for that.
    NotOnThisResource,
    /// Another 4xx that `retry.statuses` lists. Another backend is tried, and nothing is remembered.
    RetryElsewhere,
    /// An error of the request itself, or a status that `retry.statuses` does not list. It is relayed.
    ClientError,
}

impl Verdict {
    /// Its name in traces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Throttled => "throttled",
            Self::TooLargeForBackend => "too_large_for_backend",
            Self::BackendFailure => "backend_failure",
            Self::CredentialRejected => "credential_rejected",
            Self::PermissionDenied => "permission_denied",
            Self::DeploymentNotFound => "deployment_not_found",
            Self::UnsupportedByBackend => "unsupported_by_backend",
            Self::PromptTooLong => "prompt_too_long",
            Self::NotOnThisResource => "not_on_this_resource",
            Self::RetryElsewhere => "retry_elsewhere",
            Self::ClientError => "client_error",
        }
    }
}

/// Whether [`judge_response`] needs the body of a response with this status.
pub fn needs_body_to_judge(status: u16) -> bool {
    // Any 4xx can come from the content filter, and that must not be retried on another backend.
    (400..500).contains(&status) && status != 408
}

/// Classifies a response by its status and the beginning of its body (up to 64 KiB). `is_listed` says
/// whether `retry.statuses` lists a status. It decides about 408, 429, 5xx and other 4xx. A rejected
/// credential, a missing permission and a missing deployment have their verdict either way.
pub fn judge_response(status: u16, body: &[u8], is_listed: &dyn Fn(u16) -> bool) -> Verdict {
    let if_listed = |verdict| if is_listed(status) { verdict } else { Verdict::ClientError };
    match status {
        ..400 => return Verdict::Success,
        408 | 500.. => return if_listed(Verdict::BackendFailure),
        _ => {}
    }
    let error = ErrorBody::parse(body);
    if status == 429 {
        return if_listed(throttling_verdict(&error));
    }
    if error.means(Meaning::RequestRefused) {
        return Verdict::ClientError;
    }
    if error.means(Meaning::NotOnThisResource) {
        return if matches!(status, 400 | 404) { Verdict::NotOnThisResource } else { Verdict::ClientError };
    }
    match status {
        401 | 403 if error.means(Meaning::PermissionMissing) => Verdict::PermissionDenied,
        401 => Verdict::CredentialRejected,
        // Only what is known: any other 403, such as one of a firewall about the text of a single prompt,
        // must not make the backend unavailable.
        403 if error.means(Meaning::AccessBlocked) => Verdict::CredentialRejected,
        400 | 404 if error.means(Meaning::DeploymentMissing) => Verdict::DeploymentNotFound,
        400 | 403 | 404
            if error.means(Meaning::NotServedHere) || error.means(Meaning::ApiVersionUnsupported) =>
        {
            Verdict::UnsupportedByBackend
        }
        _ if error.means(Meaning::PromptTooLong) && !is_listed(status) => Verdict::PromptTooLong,
        _ => if_listed(Verdict::RetryElsewhere),
    }
}

/// Classifies the data of an error event at the start of a stream with status 200: `error`,
/// `response.failed`, or `{"error":…}` in chat. Azure rejects streamed requests over the rate limit this
/// way, sometimes with `"error":null`, so an error without any content counts as throttling (seen in
/// recorded traffic; not documented). An unknown error is relayed.
pub fn judge_error_event(data: &[u8]) -> Verdict {
    let error = ErrorBody::parse(data);
    match () {
        () if error.means(Meaning::RequestRefused) => Verdict::ClientError,
        () if error.means(Meaning::NotOnThisResource) => Verdict::NotOnThisResource,
        () if error.means(Meaning::RateLimited) || error.is_empty() => throttling_verdict(&error),
        () if error.means(Meaning::DeploymentMissing) => Verdict::DeploymentNotFound,
        () if error.means(Meaning::NotServedHere) || error.means(Meaning::ApiVersionUnsupported) => {
            Verdict::UnsupportedByBackend
        }
        () if error.means(Meaning::PermissionMissing) => Verdict::PermissionDenied,
        () if error.means(Meaning::CredentialRejected) || error.means(Meaning::AccessBlocked) => {
            Verdict::CredentialRejected
        }
        () if error.means(Meaning::PromptTooLong) => Verdict::PromptTooLong,
        () if error.means(Meaning::BackendFailed) => Verdict::BackendFailure,
        () => Verdict::ClientError,
    }
}

/// Whether a 4xx complains about `stream_options`, which the balancer may have added.
pub fn mentions_stream_options(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"stream_options").is_some()
        || memchr::memmem::find(body, b"include_usage").is_some()
}

fn throttling_verdict(error: &ErrorBody<'_>) -> Verdict {
    if error.means(Meaning::RequestTooLargeNow) { Verdict::TooLargeForBackend } else { Verdict::Throttled }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
