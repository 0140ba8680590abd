//! Classifies responses and error events: whether another backend should be tried, and what the
//! response says about this one. Messages are searched only where Azure sends no specific code. What
//! follows from a verdict is decided elsewhere. The codes and shapes are those that Azure's reference
//! (<https://learn.microsoft.com/azure/ai-foundry/openai/reference>) and recorded traffic show.

use std::borrow::Cow;

use crate::azure::json;

/// What a response, or the error event at the start of a stream, means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A status below 400. It is relayed.
    Success,
    /// 429. Another backend is tried, and this deployment gets a cooldown.
    Throttled,
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
    /// Another 4xx that `retry.statuses` lists. Another backend is tried, and nothing is remembered.
    RetryElsewhere,
    /// An error of the request itself, or a status that `retry.statuses` does not list. It is relayed.
    ClientError,
}

/// Whether [`judge_response`] needs the body of a response with this status.
pub fn needs_body_to_judge(status: u16) -> bool {
    // Any 4xx can come from the content filter, and that must not be retried on another backend.
    (400..500).contains(&status) && !matches!(status, 408 | 429)
}

/// Classifies a response by its status and the beginning of its body (up to 64 KiB). `is_listed` says
/// whether `retry.statuses` lists a status. It decides about 408, 429, 5xx and other 4xx. A rejected
/// credential, a missing permission and a missing deployment have their verdict either way.
pub fn judge_response(status: u16, body: &[u8], is_listed: &dyn Fn(u16) -> bool) -> Verdict {
    let if_listed = |verdict| if is_listed(status) { verdict } else { Verdict::ClientError };
    match status {
        ..400 => return Verdict::Success,
        429 => return if_listed(Verdict::Throttled),
        408 | 500.. => return if_listed(Verdict::BackendFailure),
        _ => {}
    }
    let error = ErrorBody::parse(body);
    if error.is_not_retryable() {
        return Verdict::ClientError;
    }
    let verdict = match status {
        401 if error.has_code(&["PermissionDenied"]) => Some(Verdict::PermissionDenied),
        401 => Some(Verdict::CredentialRejected),
        403 if error.has_code(&["PermissionDenied"]) => Some(Verdict::PermissionDenied),
        403 if error.is_access_blocked() => Some(Verdict::CredentialRejected),
        404 if error.code_says_deployment_missing() => Some(Verdict::DeploymentNotFound),
        400 | 404 if error.code_says_deployment_missing() || error.message_says_deployment_missing() => {
            Some(Verdict::UnsupportedByBackend)
        }
        400 | 404 if error.says_api_version_unsupported() => Some(Verdict::UnsupportedByBackend),
        _ => None,
    };
    verdict.unwrap_or_else(|| if_listed(Verdict::RetryElsewhere))
}

/// Classifies the data of an error event at the start of a stream with status 200: `error`,
/// `response.failed`, or `{"error":…}` in chat. Azure rejects streamed requests over the rate limit this
/// way, sometimes with `"error":null`, so an error without any content counts as throttling (seen in
/// recorded traffic; not documented).
pub fn judge_error_event(data: &[u8]) -> Verdict {
    let error = ErrorBody::parse(data);
    match () {
        () if error.is_not_retryable() => Verdict::ClientError,
        () if error.is_rate_limit() => Verdict::Throttled,
        () if error.code_says_deployment_missing() => Verdict::DeploymentNotFound,
        () if error.message_says_deployment_missing() || error.says_api_version_unsupported() => {
            Verdict::UnsupportedByBackend
        }
        () if error.has_code(&["PermissionDenied"]) => Verdict::PermissionDenied,
        () if error.has_code(&["401", "403", "invalid_api_key", "AuthenticationTypeDisabled"]) => {
            Verdict::CredentialRejected
        }
        () if error.has_type("invalid_request_error") || error.has_code(CLIENT_ERROR_CODES) => {
            Verdict::ClientError
        }
        () if error.code.is_none() && error.error_type.is_none() && error.message.is_none() => {
            Verdict::Throttled
        }
        () => Verdict::BackendFailure,
    }
}

/// Whether a 400 complains about `stream_options`, which the balancer may have added.
pub fn mentions_stream_options(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"stream_options").is_some()
        || memchr::memmem::find(body, b"include_usage").is_some()
}

/// Codes of errors that another backend cannot cure: a prompt that the content filter blocks or that is
/// too long, and state that belongs to one resource. Trying several backends until the content filter of
/// one passes would be filter shopping.
const NOT_RETRYABLE_CODES: &[&str] = &[
    "content_filter",
    "ResponsibleAIPolicyViolation",
    "content_policy_violation",
    "context_length_exceeded",
    "invalid_prompt",
    "previous_response_not_found",
    "invalid_encrypted_content",
];

/// Other codes of errors in the request.
const CLIENT_ERROR_CODES: &[&str] =
    &["400", "BadRequest", "invalid_request_error", "unsupported_parameter", "OperationNotSupported"];

/// The fields of an error body that verdicts and records use.
#[derive(Debug, Default)]
pub(in crate::azure) struct ErrorBody<'a> {
    pub(in crate::azure) code: Option<Cow<'a, str>>,
    pub(in crate::azure) error_type: Option<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
    inner_code: Option<Cow<'a, str>>,
    /// Whether the body is JSON in one of Azure's shapes.
    is_known_shape: bool,
}

impl<'a> ErrorBody<'a> {
    /// Reads any of Azure's shapes: an `error` object, an `error` object in `response`, an `error` string,
    /// or code and message at the top level. A body that is not JSON is taken as the message.
    pub(in crate::azure) fn parse(body: &'a [u8]) -> Self {
        let Ok(fields) =
            json::parse_fields(body, &["error", "response", "code", "statusCode", "message", "type"])
        else {
            // The first lines of an HTML error page are enough.
            let page = body.get(..4096).unwrap_or(body);
            let message = Some(String::from_utf8_lossy(page)).filter(|text| !text.is_empty());
            return Self { message, ..Self::default() };
        };
        let [error, response, code, status, message, error_type] = fields.values;
        let nested = response.and_then(|raw| json::find_fields(raw, &["error"])[0]);
        match error.filter(|raw| *raw != "null").or(nested) {
            Some(object) if object.starts_with('{') => Self::from_error_object(object),
            Some(other) => {
                Self { message: json::decode_string(other), is_known_shape: true, ..Self::default() }
            }
            None => Self {
                code: code
                    .and_then(json::decode_string_or_number)
                    .or_else(|| status.and_then(json::decode_string_or_number)),
                // At the top level of an event, `type` is the name of the event and not of the error.
                error_type: error_type
                    .and_then(json::decode_string)
                    .filter(|error_type| error_type.ends_with("_error")),
                message: json::decode_non_empty_string(message),
                inner_code: None,
                is_known_shape: true,
            },
        }
    }

    fn from_error_object(object: &'a str) -> Self {
        let [code, error_type, message, innererror, inner_error] =
            json::find_fields(object, &["code", "type", "message", "innererror", "inner_error"]);
        let inner_code = innererror.or(inner_error).and_then(|raw| json::find_fields(raw, &["code"])[0]);
        Self {
            code: code.and_then(json::decode_string_or_number).filter(|code| !code.is_empty()),
            error_type: json::decode_non_empty_string(error_type),
            message: json::decode_non_empty_string(message),
            inner_code: json::decode_non_empty_string(inner_code),
            is_known_shape: true,
        }
    }

    fn has_code(&self, codes: &[&str]) -> bool {
        let is_listed = |code: &Cow<'_, str>| codes.iter().any(|c| c.eq_ignore_ascii_case(code));
        self.code.as_ref().is_some_and(is_listed) || self.inner_code.as_ref().is_some_and(is_listed)
    }

    fn has_type(&self, error_type: &str) -> bool {
        self.error_type.as_deref().is_some_and(|k| k.eq_ignore_ascii_case(error_type))
    }

    /// Whether the message contains all of these lower-case phrases.
    fn message_contains_all(&self, phrases: &[&str]) -> bool {
        self.message.as_ref().is_some_and(|message| {
            let message = message.to_ascii_lowercase();
            phrases.iter().all(|phrase| message.contains(phrase))
        })
    }

    fn is_not_retryable(&self) -> bool {
        self.has_code(NOT_RETRYABLE_CODES) || self.has_type("content_filter")
    }

    fn is_rate_limit(&self) -> bool {
        const RATE_LIMIT_CODES: &[&str] = &[
            "429",
            "rate_limit_exceeded",
            "too_many_requests",
            "RateLimitReached",
            "NoCapacity",
            "rate_limit_error",
        ];
        self.has_code(RATE_LIMIT_CODES) || RATE_LIMIT_CODES.iter().any(|code| self.has_type(code))
    }

    /// Whether the code is missing or so general that only the message says what is wrong.
    fn has_no_specific_code(&self) -> bool {
        self.code.is_none()
            || self.has_code(&["400", "404", "BadRequest", "NotFound", "invalid_request_error"])
    }

    fn code_says_deployment_missing(&self) -> bool {
        self.has_code(&["DeploymentNotFound", "model_not_found", "DeploymentModelNotFound"])
    }

    fn message_says_deployment_missing(&self) -> bool {
        self.is_known_shape
            && self.has_no_specific_code()
            && (self.message_contains_all(&["could not find an existing deployment"])
                || self.message_contains_all(&["deployment", "does not exist"])
                || self.message_contains_all(&["no such deployment"])
                || self.message_contains_all(&["unknown deployment"]))
    }

    fn says_api_version_unsupported(&self) -> bool {
        self.has_code(&["UnsupportedApiVersion", "InvalidApiVersion", "InvalidApiVersionParameter"])
            || (self.is_known_shape
                && self.has_no_specific_code()
                && [
                    ["api version", "not supported"],
                    ["api-version", "not supported"],
                    ["unsupported", "api version"],
                    ["unsupported", "api-version"],
                ]
                .iter()
                .any(|phrases| self.message_contains_all(phrases)))
    }

    /// Whether a 403 concerns every request to this backend: key authentication is disabled, a network
    /// rule applies, or the resource is blocked for abuse. Only Azure's own codes and messages count. Any
    /// other 403, such as one of a firewall about the text of a single prompt, must not make the backend
    /// unavailable.
    fn is_access_blocked(&self) -> bool {
        const ACCESS_BLOCKED_CODES: &[&str] = &[
            "AuthenticationTypeDisabled",
            "AccessDenied",
            "TrafficDenied",
            "PublicNetworkAccessDisabled",
            "SubscriptionDisabled",
        ];
        const ACCESS_BLOCKED_MESSAGES: [&str; 4] = [
            "access denied due to virtual network",
            "a virtual network is configured",
            "public access is disabled",
            "your resource has been temporarily blocked",
        ];
        let has_known_beginning = |message: &Cow<'_, str>| {
            let message = message.to_ascii_lowercase();
            ACCESS_BLOCKED_MESSAGES.iter().any(|beginning| message.starts_with(beginning))
        };
        let is_generic = self.code.as_ref().is_none_or(|code| matches!(&**code, "403" | "Forbidden"));
        self.has_code(ACCESS_BLOCKED_CODES)
            || (self.is_known_shape && is_generic && self.message.as_ref().is_some_and(has_known_beginning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_listed_by_default(status: u16) -> bool {
        matches!(status, 408 | 429 | 500..=599)
    }

    #[test]
    fn responses_are_judged_by_status_and_error_body() {
        use Verdict::{
            BackendFailure, ClientError, CredentialRejected, DeploymentNotFound, PermissionDenied, Success,
            Throttled, UnsupportedByBackend,
        };
        let rows: &[(u16, &str, Verdict)] = &[
            (200, "", Success),
            (304, "", Success),
            (429, r#"{"error":{"code":"429","message":"…"}}"#, Throttled),
            (408, r#"{"error":{"code":"Timeout","message":"The operation was timeout."}}"#, BackendFailure),
            (500, "<html>", BackendFailure),
            (503, "", BackendFailure),
            (
                401,
                r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#,
                CredentialRejected,
            ),
            (
                401,
                r#"{"statusCode":401,"message":"Unauthorized. Access token is missing, invalid, audience is incorrect"}"#,
                CredentialRejected,
            ),
            (401, "", CredentialRejected),
            (
                401,
                r#"{"error":{"code":"PermissionDenied","message":"The principal lacks the required data action"}}"#,
                PermissionDenied,
            ),
            (403, r#"{"error":{"code":"PermissionDenied"}}"#, PermissionDenied),
            (
                403,
                r#"{"error":{"code":"AuthenticationTypeDisabled","message":"Key based authentication is disabled for this resource."}}"#,
                CredentialRejected,
            ),
            (
                403,
                r#"{"error":{"code":"403","message":"Access denied due to Virtual Network/Firewall rules."}}"#,
                CredentialRejected,
            ),
            (
                403,
                r#"{"error":{"code":403,"message":"Your resource has been temporarily blocked"}}"#,
                CredentialRejected,
            ),
            (403, "<html>Denied: virtual network</html>", ClientError),
            (403, r#"{"error":{"code":null,"message":"'<script>' is denied, firewall"}}"#, ClientError),
            (403, r#"{"error":{"code":"unsupported_region","message":"…"}}"#, ClientError),
            (
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
                DeploymentNotFound,
            ),
            (
                404,
                r#"{"error":{"code":null,"type":"invalid_request_error","message":"The API deployment for this resource does not exist."}}"#,
                UnsupportedByBackend,
            ),
            (
                400,
                r#"{"error":{"type":"invalid_request_error","code":null,"message":"Could not find an existing deployment for x"}}"#,
                UnsupportedByBackend,
            ),
            (404, r#"{"code":"DeploymentNotFound","message":"x"}"#, DeploymentNotFound),
            (404, r#"{"error":{"code":"404","message":"Resource not found"}}"#, ClientError),
            (
                404,
                r#"{"error":{"message":"File file-1 not found","type":"invalid_request_error","code":null}}"#,
                ClientError,
            ),
            (404, "deployment does not exist", ClientError),
            (
                404,
                r#"{"error":{"code":"previous_response_not_found","message":"deployment does not exist"}}"#,
                ClientError,
            ),
            (
                400,
                r#"{"error":{"code":"BadRequest","message":"API version not supported"}}"#,
                UnsupportedByBackend,
            ),
            (
                400,
                r#"{"error":{"code":"BadRequest","message":"api-version query parameter is not allowed when using /v1 path"}}"#,
                ClientError,
            ),
            (
                400,
                r#"{"error":{"code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
                ClientError,
            ),
            (
                400,
                r#"{"error":{"code":"context_length_exceeded","type":"invalid_request_error"}}"#,
                ClientError,
            ),
            (400, r#"{"error":"plain words"}"#, ClientError),
            (400, "", ClientError),
            (409, r#"{"error":{"code":"conflict"}}"#, ClientError),
            (413, "", ClientError),
            (424, r#"{"error":{"code":"424"}}"#, ClientError),
            (431, "", ClientError),
        ];
        for (status, body, expected) in rows {
            assert_eq!(
                judge_response(*status, body.as_bytes(), &is_listed_by_default),
                *expected,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn the_configured_statuses_decide_about_the_rest() {
        let all = |status: u16| status >= 400;
        let filter = br#"{"error":{"code":null,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#;
        assert_eq!(judge_response(400, b"{}", &all), Verdict::RetryElsewhere);
        assert_eq!(judge_response(400, filter, &all), Verdict::ClientError);
        assert_eq!(judge_response(403, br#"{"error":{"code":"x"}}"#, &all), Verdict::RetryElsewhere);
        assert_eq!(judge_response(424, b"", &all), Verdict::RetryElsewhere);
        let none = |_: u16| false;
        assert_eq!(judge_response(429, b"", &none), Verdict::ClientError);
        assert_eq!(judge_response(503, b"", &none), Verdict::ClientError);
        assert_eq!(judge_response(401, b"", &none), Verdict::CredentialRejected);
        assert_eq!(
            judge_response(404, br#"{"error":{"code":"DeploymentNotFound"}}"#, &none),
            Verdict::DeploymentNotFound
        );
    }

    #[test]
    fn error_events_are_judged_by_their_code() {
        use Verdict::{BackendFailure, ClientError, Throttled, UnsupportedByBackend};
        let rows = [
            (
                r#"{"type":"error","error":{"type":"too_many_requests","code":"rate_limit_exceeded","message":"…"}}"#,
                Throttled,
            ),
            (
                r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"too_many_requests"}}}"#,
                Throttled,
            ),
            (r#"{"type":"response.failed","response":{"status":"failed","error":null}}"#, Throttled),
            (r#"{"type":"error","code":"rate_limit_exceeded","message":"…"}"#, Throttled),
            (
                r#"{"error":{"type":"invalid_request_error","code":null,"message":"Could not find an existing deployment"}}"#,
                UnsupportedByBackend,
            ),
            (r#"{"error":{"type":"invalid_request_error","code":"x"}}"#, ClientError),
            (r#"{"error":{"code":"content_filter"}}"#, ClientError),
            (
                r#"{"error":{"type":"server_error","code":null,"message":"The server had an error"}}"#,
                BackendFailure,
            ),
        ];
        for (data, expected) in rows {
            assert_eq!(judge_error_event(data.as_bytes()), expected, "{data}");
        }
    }

    #[test]
    fn a_complaint_about_stream_options_is_recognised() {
        assert!(mentions_stream_options(
            br#"{"error":{"message":"Unrecognized request argument supplied: stream_options"}}"#
        ));
        assert!(!mentions_stream_options(b""));
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(status: u16, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (judge_response(status, &body, &is_listed_by_default), judge_error_event(&body), needs_body_to_judge(status));
        }
    }
}
