//! What a reply means: whether another backend should be asked, and what it says about this
//! one. Prose is looked at only where Azure gives no code. What follows from a verdict is
//! decided elsewhere.

use std::borrow::Cow;

use crate::azure::json;

/// What a reply, or the error event a stream began with, means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Below 400: relayed.
    Success,
    /// 429: another backend; this deployment cools.
    Throttled,
    /// 408 or 5xx: another backend; the breaker counts.
    Failed,
    /// The backend's credential or network rules refuse us: another backend.
    Credential,
    /// Our identity may not do this operation there: another backend.
    PermissionDenied,
    /// The backend has no such deployment: another backend.
    Absent,
    /// The backend cannot serve this request: it does not know the api-version, or says in
    /// words rather than by its code that the deployment is missing. Another backend; set
    /// apart from `Absent` because a client can bring this about with a made-up version or a
    /// text that Azure quotes, and must not take the deployment away from everybody else.
    NotHere,
    /// Another 4xx that `retry.statuses` lists: another backend, nothing is remembered.
    Elsewhere,
    /// About the request, or not listed in `retry.statuses`: relayed at once.
    Client,
}

/// Whether [`judge`] looks at the body of a reply with this status.
pub fn needs_body(status: u16) -> bool {
    // Any listed 4xx could be a content filter's, which must not be tried elsewhere.
    (400..500).contains(&status) && !matches!(status, 408 | 429)
}

/// Judges a complete reply by its status and (the first 64 KiB of) its body. `is_listed` is
/// `retry.statuses`: it decides about 408, 429, 5xx and any other 4xx, while 401, 403, 404 and
/// a missing deployment always mean what they mean.
pub fn judge(status: u16, body: &[u8], is_listed: &dyn Fn(u16) -> bool) -> Verdict {
    let listed = |verdict| if is_listed(status) { verdict } else { Verdict::Client };
    match status {
        ..400 => return Verdict::Success,
        429 => return listed(Verdict::Throttled),
        408 | 500.. => return listed(Verdict::Failed),
        _ => {}
    }
    let error = ApiError::read(body);
    if error.is_about_the_prompt() {
        return Verdict::Client;
    }
    let known = match status {
        401 if error.code_is(&["PermissionDenied"]) => Some(Verdict::PermissionDenied),
        401 => Some(Verdict::Credential),
        403 if error.code_is(&["PermissionDenied"]) => Some(Verdict::PermissionDenied),
        403 if error.is_closed_door() => Some(Verdict::Credential),
        404 if error.is_missing_by_code() => Some(Verdict::Absent),
        400 | 404 if error.is_missing_by_code() || error.is_missing_by_word() => Some(Verdict::NotHere),
        400 | 404 if error.is_unknown_version() => Some(Verdict::NotHere),
        _ => None,
    };
    known.unwrap_or_else(|| listed(Verdict::Elsewhere))
}

/// Judges the data of an error event that a stream of status 200 began with: `error`,
/// `response.failed`, or chat's `{"error":…}`. Azure refuses streamed calls over their limit
/// this way, at times with `"error":null`, which is why an error without code counts as a 429.
pub fn judge_event(data: &[u8]) -> Verdict {
    let error = ApiError::read(data);
    match () {
        () if error.is_about_the_prompt() => Verdict::Client,
        () if error.is_rate_limit() => Verdict::Throttled,
        () if error.is_missing_by_code() => Verdict::Absent,
        () if error.is_missing_by_word() || error.is_unknown_version() => Verdict::NotHere,
        () if error.code_is(&["PermissionDenied"]) => Verdict::PermissionDenied,
        () if error.code_is(&["401", "403", "invalid_api_key", "AuthenticationTypeDisabled"]) => {
            Verdict::Credential
        }
        () if error.kind_is("invalid_request_error") || error.code_is(CLIENT_CODES) => Verdict::Client,
        () if error.code.is_none() && error.kind.is_none() && error.message.is_none() => Verdict::Throttled,
        () => Verdict::Failed,
    }
}

/// Whether a 400 complains about `stream_options`, which we may have added.
pub fn names_stream_options(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"stream_options").is_some()
        || memchr::memmem::find(body, b"include_usage").is_some()
}

/// Codes that say that any backend would answer alike.
const PROMPT_CODES: &[&str] = &[
    "content_filter",
    "ResponsibleAIPolicyViolation",
    "content_policy_violation",
    "context_length_exceeded",
    "invalid_prompt",
    "previous_response_not_found",
    "invalid_encrypted_content",
];

const CLIENT_CODES: &[&str] =
    &["400", "BadRequest", "invalid_request_error", "unsupported_parameter", "OperationNotSupported"];

/// The parts of an error that verdicts and records look at.
#[derive(Debug, Default)]
pub(in crate::azure) struct ApiError<'a> {
    pub(in crate::azure) code: Option<Cow<'a, str>>,
    pub(in crate::azure) kind: Option<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
    inner_code: Option<Cow<'a, str>>,
    /// Whether the body was JSON of a shape we know.
    structured: bool,
}

impl<'a> ApiError<'a> {
    /// Reads any of Azure's shapes: an `error` object, the same in a `response`, an error that
    /// is a string, or code and message at the top. What is no JSON is taken as the message.
    pub(in crate::azure) fn read(body: &'a [u8]) -> Self {
        let Ok(fields) = json::probe(body, &["error", "response", "code", "statusCode", "message", "type"])
        else {
            // A page of HTML says what it has to say in its first lines.
            let page = body.get(..4096).unwrap_or(body);
            let message = Some(String::from_utf8_lossy(page)).filter(|text| !text.is_empty());
            return Self { message, ..Self::default() };
        };
        let [error, response, code, status, message, kind] = fields.values;
        let nested = response.and_then(|raw| json::fields(raw, &["error"])[0]);
        match error.filter(|raw| *raw != "null").or(nested) {
            Some(object) if object.starts_with('{') => Self::from_object(object),
            Some(other) => Self { message: json::string(other), structured: true, ..Self::default() },
            None => Self {
                code: code.and_then(json::word).or_else(|| status.and_then(json::word)),
                // At the top `type` is an event's name, which says nothing about the error.
                kind: kind.and_then(json::string).filter(|kind| kind.ends_with("_error")),
                message: json::text(message),
                inner_code: None,
                structured: true,
            },
        }
    }

    fn from_object(object: &'a str) -> Self {
        let [code, kind, message, inner, other_inner] =
            json::fields(object, &["code", "type", "message", "innererror", "inner_error"]);
        let inner_code = inner.or(other_inner).and_then(|raw| json::fields(raw, &["code"])[0]);
        Self {
            code: code.and_then(json::word).filter(|code| !code.is_empty()),
            kind: json::text(kind),
            message: json::text(message),
            inner_code: json::text(inner_code),
            structured: true,
        }
    }

    fn code_is(&self, codes: &[&str]) -> bool {
        let codes = |code: &Cow<'_, str>| codes.iter().any(|c| c.eq_ignore_ascii_case(code));
        self.code.as_ref().is_some_and(codes) || self.inner_code.as_ref().is_some_and(codes)
    }

    fn kind_is(&self, kind: &str) -> bool {
        self.kind.as_deref().is_some_and(|k| k.eq_ignore_ascii_case(kind))
    }

    /// Whether the message contains every one of these lower-case phrases.
    fn says(&self, phrases: &[&str]) -> bool {
        self.message.as_ref().is_some_and(|message| {
            let message = message.to_ascii_lowercase();
            phrases.iter().all(|phrase| message.contains(phrase))
        })
    }

    fn is_about_the_prompt(&self) -> bool {
        self.code_is(PROMPT_CODES) || self.kind_is("content_filter")
    }

    fn is_rate_limit(&self) -> bool {
        const CODES: &[&str] = &[
            "429",
            "rate_limit_exceeded",
            "too_many_requests",
            "RateLimitReached",
            "NoCapacity",
            "rate_limit_error",
        ];
        self.code_is(CODES) || CODES.iter().any(|code| self.kind_is(code))
    }

    /// Whether a code leaves it to the message to say what is wrong.
    fn has_a_vague_code(&self) -> bool {
        self.code.is_none()
            || self.code_is(&["400", "404", "BadRequest", "NotFound", "invalid_request_error"])
    }

    fn is_missing_by_code(&self) -> bool {
        self.code_is(&["DeploymentNotFound", "model_not_found", "DeploymentModelNotFound"])
    }

    fn is_missing_by_word(&self) -> bool {
        self.structured
            && self.has_a_vague_code()
            && (self.says(&["could not find an existing deployment"])
                || self.says(&["deployment", "does not exist"])
                || self.says(&["no such deployment"])
                || self.says(&["unknown deployment"]))
    }

    fn is_unknown_version(&self) -> bool {
        self.code_is(&["UnsupportedApiVersion", "InvalidApiVersion", "InvalidApiVersionParameter"])
            || (self.structured
                && self.has_a_vague_code()
                && [
                    ["api version", "not supported"],
                    ["api-version", "not supported"],
                    ["unsupported", "api version"],
                    ["unsupported", "api-version"],
                ]
                .iter()
                .any(|phrases| self.says(phrases)))
    }

    /// Whether a 403 closes the door on everything we could ask: key authentication is off, or
    /// a network rule or an abuse block is in force. Only what Azure says so counts: another
    /// 403, such as a front door's about the words of one prompt, is no reason to leave the
    /// backend alone.
    fn is_closed_door(&self) -> bool {
        const CODES: &[&str] = &[
            "AuthenticationTypeDisabled",
            "AccessDenied",
            "TrafficDenied",
            "PublicNetworkAccessDisabled",
            "SubscriptionDisabled",
        ];
        const BEGINNINGS: [&str; 4] = [
            "access denied due to virtual network",
            "a virtual network is configured",
            "public access is disabled",
            "your resource has been temporarily blocked",
        ];
        let begins = |message: &Cow<'_, str>| {
            let message = message.to_ascii_lowercase();
            BEGINNINGS.iter().any(|beginning| message.starts_with(beginning))
        };
        let vague = self.code.as_ref().is_none_or(|code| matches!(&**code, "403" | "Forbidden"));
        self.code_is(CODES) || (self.structured && vague && self.message.as_ref().is_some_and(begins))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn default_statuses(status: u16) -> bool {
        matches!(status, 408 | 429 | 500..=599)
    }

    #[test]
    fn replies_mean_what_the_table_says() {
        use Verdict::{Absent, Client, Credential, Failed, NotHere, PermissionDenied, Success, Throttled};
        let rows: &[(u16, &str, Verdict)] = &[
            (200, "", Success),
            (304, "", Success),
            (429, r#"{"error":{"code":"429","message":"…"}}"#, Throttled),
            (408, r#"{"error":{"code":"Timeout","message":"The operation was timeout."}}"#, Failed),
            (500, "<html>", Failed),
            (503, "", Failed),
            (
                401,
                r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#,
                Credential,
            ),
            (
                401,
                r#"{"statusCode":401,"message":"Unauthorized. Access token is missing, invalid, audience is incorrect"}"#,
                Credential,
            ),
            (401, "", Credential),
            (
                401,
                r#"{"error":{"code":"PermissionDenied","message":"The principal lacks the required data action"}}"#,
                PermissionDenied,
            ),
            (403, r#"{"error":{"code":"PermissionDenied"}}"#, PermissionDenied),
            (
                403,
                r#"{"error":{"code":"AuthenticationTypeDisabled","message":"Key based authentication is disabled for this resource."}}"#,
                Credential,
            ),
            (
                403,
                r#"{"error":{"code":"403","message":"Access denied due to Virtual Network/Firewall rules."}}"#,
                Credential,
            ),
            (
                403,
                r#"{"error":{"code":403,"message":"Your resource has been temporarily blocked"}}"#,
                Credential,
            ),
            (403, "<html>Denied: virtual network</html>", Client),
            (403, r#"{"error":{"code":null,"message":"'<script>' is denied, firewall"}}"#, Client),
            (403, r#"{"error":{"code":"unsupported_region","message":"…"}}"#, Client),
            (
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
                Absent,
            ),
            (
                404,
                r#"{"error":{"code":null,"type":"invalid_request_error","message":"The API deployment for this resource does not exist."}}"#,
                NotHere,
            ),
            (
                400,
                r#"{"error":{"type":"invalid_request_error","code":null,"message":"Could not find an existing deployment for x"}}"#,
                NotHere,
            ),
            (404, r#"{"code":"DeploymentNotFound","message":"x"}"#, Absent),
            (404, r#"{"error":{"code":"404","message":"Resource not found"}}"#, Client),
            (
                404,
                r#"{"error":{"message":"File file-1 not found","type":"invalid_request_error","code":null}}"#,
                Client,
            ),
            (404, "deployment does not exist", Client),
            (
                404,
                r#"{"error":{"code":"previous_response_not_found","message":"deployment does not exist"}}"#,
                Client,
            ),
            (400, r#"{"error":{"code":"BadRequest","message":"API version not supported"}}"#, NotHere),
            (
                400,
                r#"{"error":{"code":"BadRequest","message":"api-version query parameter is not allowed when using /v1 path"}}"#,
                Client,
            ),
            (
                400,
                r#"{"error":{"code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
                Client,
            ),
            (400, r#"{"error":{"code":"context_length_exceeded","type":"invalid_request_error"}}"#, Client),
            (400, r#"{"error":"plain words"}"#, Client),
            (400, "", Client),
            (409, r#"{"error":{"code":"conflict"}}"#, Client),
            (413, "", Client),
            (424, r#"{"error":{"code":"424"}}"#, Client),
            (431, "", Client),
        ];
        for (status, body, expected) in rows {
            assert_eq!(judge(*status, body.as_bytes(), &default_statuses), *expected, "{status} {body}");
        }
    }

    #[test]
    fn the_operator_decides_about_the_other_statuses() {
        let all = |status: u16| status >= 400;
        let filter = br#"{"error":{"code":null,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#;
        assert_eq!(judge(400, b"{}", &all), Verdict::Elsewhere);
        assert_eq!(judge(400, filter, &all), Verdict::Client);
        assert_eq!(judge(403, br#"{"error":{"code":"x"}}"#, &all), Verdict::Elsewhere);
        assert_eq!(judge(424, b"", &all), Verdict::Elsewhere);
        let none = |_: u16| false;
        assert_eq!(judge(429, b"", &none), Verdict::Client);
        assert_eq!(judge(503, b"", &none), Verdict::Client);
        assert_eq!(judge(401, b"", &none), Verdict::Credential);
        assert_eq!(judge(404, br#"{"error":{"code":"DeploymentNotFound"}}"#, &none), Verdict::Absent);
    }

    #[test]
    fn error_events_mean_what_they_say() {
        use Verdict::{Client, Failed, NotHere, Throttled};
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
                NotHere,
            ),
            (r#"{"error":{"type":"invalid_request_error","code":"x"}}"#, Client),
            (r#"{"error":{"code":"content_filter"}}"#, Client),
            (r#"{"error":{"type":"server_error","code":null,"message":"The server had an error"}}"#, Failed),
        ];
        for (data, expected) in rows {
            assert_eq!(judge_event(data.as_bytes()), expected, "{data}");
        }
    }

    #[test]
    fn our_own_addition_is_recognised() {
        assert!(names_stream_options(
            br#"{"error":{"message":"Unrecognized request argument supplied: stream_options"}}"#
        ));
        assert!(!names_stream_options(b""));
    }

    proptest! {
        #[test]
        fn nothing_panics(status: u16, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (judge(status, &body, &default_statuses), judge_event(&body), needs_body(status));
        }
    }
}
