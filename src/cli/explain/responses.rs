//! What the responses of a backend would lead to.

use std::time::Duration;

use crate::azure::response::verdict::Verdict;
use crate::config::Config;
use crate::gateway::{AdmittedRequest, Gateway};

/// Sample responses: status, description, and as much of the body as the verdict depends on.
const SAMPLE_RESPONSES: [(u16, &str, &str); 16] = [
    (200, "success", ""),
    (400, "invalid request", r#"{"error":{"code":"BadRequest","message":"…"}}"#),
    (400, "content filter", r#"{"error":{"code":"content_filter","message":"…"}}"#),
    (400, "prompt too long", r#"{"error":{"code":"context_length_exceeded","message":"…"}}"#),
    (
        401,
        "credential rejected",
        r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key"}}"#,
    ),
    (403, "permission denied", r#"{"error":{"code":"PermissionDenied","message":"…"}}"#),
    (
        403,
        "network access denied",
        r#"{"error":{"code":"403","message":"Access denied due to Virtual Network/Firewall rules."}}"#,
    ),
    (404, "deployment not found", r#"{"error":{"code":"DeploymentNotFound","message":"…"}}"#),
    (404, "something else not found", r#"{"error":{"code":"404","message":"Resource not found"}}"#),
    (408, "timeout", ""),
    (409, "conflict", "{}"),
    (424, "failed dependency", "{}"),
    (429, "too many requests", ""),
    (429, "request too large now", r#"{"error":{"message":"Your request exceeds the maximum usage size"}}"#),
    (500, "server error", ""),
    (503, "unavailable", ""),
];

/// For each kind of response its label, and what it would lead to.
pub(super) fn response_lines(
    gateway: &Gateway,
    config: &Config,
    admitted: &AdmittedRequest,
) -> Vec<(String, String)> {
    let judged = SAMPLE_RESPONSES.iter().map(|(status, description, body)| {
        let verdict = gateway.judge_complete_response(admitted, *status, body.as_bytes());
        (status.to_string(), *description, verdict)
    });
    let none = ("none".to_owned(), "no connection, reset, no first byte in time", Verdict::BackendFailure);
    let to_line = |(label, description, verdict)| {
        (format!("  {label}"), format!("{description}: {}", describe_verdict(verdict, config)))
    };
    judged.chain([none]).map(to_line).collect()
}

/// What a verdict means for the request and for the backend.
fn describe_verdict(verdict: Verdict, config: &Config) -> String {
    let duration = |length: Duration| humantime::format_duration(length).to_string();
    match verdict {
        Verdict::Success | Verdict::ClientError => "relayed".to_owned(),
        Verdict::Throttled => format!(
            "the next backend; the deployment is unavailable as long as the response says (by default {}, at most {}), for \
             flex requests alone if this is one (service_tier)",
            duration(config.cooldown.default_duration),
            duration(config.cooldown.max_duration)
        ),
        Verdict::BackendFailure => format!(
            "the next backend; counts for its circuit breaker, which opens for {} after {} failures within {} if they \
             are at least {}% of its attempts",
            duration(config.breaker.open_duration),
            config.breaker.min_failures,
            duration(config.breaker.window),
            config.breaker.min_failure_percentage.percent(),
        ),
        Verdict::CredentialRejected => {
            "the next backend; if the balancer's own request confirms it, this one is unavailable for 60s or until its \
             credential is renewed"
                .to_owned()
        }
        Verdict::PermissionDenied => {
            "the next backend; if the balancer's own request confirms it, this operation is unavailable there for 60s"
                .to_owned()
        }
        Verdict::DeploymentNotFound => {
            "the next backend; if the balancer's own request confirms it, the deployment is unavailable there for 60s"
                .to_owned()
        }
        Verdict::UnsupportedByBackend => "the next backend; this one stays available".to_owned(),
        Verdict::TooLargeForBackend => "the next backend, each once; no cooldown".to_owned(),
        Verdict::NotOnThisResource => "the next resource; this one stays available".to_owned(),
        Verdict::PromptTooLong => "the next tier; this one stays available".to_owned(),
        Verdict::RetryElsewhere => "the next backend, each once; this one stays available".to_owned(),
    }
}
