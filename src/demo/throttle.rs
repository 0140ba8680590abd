//! The words and headers of 429, and the rate-limit headers of every other answer.

use std::time::Duration;

use serde_json::json;

use super::SimDeployment;
use super::answer::Answer;
use super::azure::{Call, Dialect};
use super::limits::{Cause, Counters};
use super::refusal::coded;

const QUOTA: &str = "Please go here: https://aka.ms/oai/quotaincrease if you would like to further increase the default \
                     rate limit.";

/// 429 because a deployment's own limit is reached.
pub(super) fn refused(
    call: &Call,
    own: &SimDeployment,
    cause: Cause,
    wait: Duration,
    counters: &Counters,
) -> Answer {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let seconds = millis.div_ceil(1000);
    let what = if cause == Cause::Requests { "call" } else { "token" };
    let answer = match cause {
        Cause::Capacity => coded(
            429,
            "429",
            &format!(
                "The requests have exceeded the provisioned capacity of the deployment '{}'. Please retry after {millis} \
                 milliseconds.",
                own.name
            ),
        ),
        _ => worded(call, &own.name, &own.model, what, seconds),
    };
    counted(answer, counters)
        .with("retry-after-ms", millis.to_string())
        .with("retry-after", seconds.to_string())
        .with("x-ms-deployment-name", own.name.clone())
}

/// 429 because somebody put the resource into that mood.
pub(super) fn in_bad_mood(call: &Call, retry_after_ms: Option<u64>, retry_after: Option<&str>) -> Answer {
    let named = retry_after.and_then(|text| text.parse().ok());
    let seconds = named.or(retry_after_ms.map(|millis| millis.div_ceil(1000))).unwrap_or(60);
    let name = call.route.deployment.as_deref().unwrap_or("deployment");
    let model = call.live.deployment(name).map_or("model", |own| own.model.as_str());
    let mut answer = worded(call, name, model, "token", seconds)
        .with("x-ratelimit-remaining-tokens", "0")
        .with("x-ratelimit-reset-tokens", seconds.to_string());
    if let Some(millis) = retry_after_ms {
        answer = answer.with("retry-after-ms", millis.to_string());
    }
    match retry_after {
        Some(text) => answer.with("retry-after", text),
        None => answer,
    }
}

/// 429 that names no time to wait.
pub(super) fn high_demand() -> Answer {
    let message = "The system is currently experiencing high demand and cannot process your request. Your request exceeds \
                   the maximum usage size allowed during peak load. For improved capacity reliability, consider switching \
                   to Provisioned Throughput.";
    let error =
        json!({"message": message, "type": "too_many_requests", "param": null, "code": "too_many_requests"});
    Answer::json(429, &json!({ "error": error }))
}

/// Adds the counters of a deployment to an answer.
pub(super) fn counted(answer: Answer, counters: &Counters) -> Answer {
    match counters {
        Counters::None => answer,
        Counters::Utilization(percent) => {
            answer.with("azure-openai-deployment-utilization", format!("{percent}%"))
        }
        Counters::MinusOne => answer
            .with("x-ratelimit-limit-requests", "-1")
            .with("x-ratelimit-remaining-requests", "-1")
            .with("x-ratelimit-limit-tokens", "-1")
            .with("x-ratelimit-remaining-tokens", "-1"),
        Counters::Standard { requests, requests_left, tokens, tokens_left, reset } => {
            let answer = answer
                .with("x-ratelimit-limit-requests", requests.to_string())
                .with("x-ratelimit-remaining-requests", requests_left.to_string())
                .with("x-ratelimit-limit-tokens", tokens.to_string())
                .with("x-ratelimit-remaining-tokens", tokens_left.to_string());
            if *tokens_left > 0 {
                return answer;
            }
            answer.with("x-ratelimit-reset-tokens", reset.as_millis().div_ceil(1000).to_string())
        }
    }
}

fn worded(call: &Call, deployment: &str, model: &str, what: &str, seconds: u64) -> Answer {
    match &call.route.dialect {
        Dialect::Classic { version } => {
            let operation = operation_name(call);
            let message = format!(
                "Requests to the {operation} Operation under Azure OpenAI API version {version} have exceeded {what} rate \
                 limit of your current OpenAI S0 pricing tier. Please retry after {seconds} seconds. {QUOTA}"
            );
            coded(429, "429", &message)
        }
        Dialect::V1 => {
            let region = &call.live.resource.region;
            let message = format!(
                "Your requests to {deployment} for {model} in {region} have exceeded the {what} rate limit for your current \
                 AIServices S0 pricing tier. This request was for {deployment} under Azure OpenAI. Please retry after \
                 {seconds} seconds. {QUOTA}"
            );
            coded(429, "RateLimitReached", &message)
        }
    }
}

fn operation_name(call: &Call) -> &'static str {
    let segments: Vec<&str> = call.route.segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["chat", "completions"] => "ChatCompletions_Create",
        ["completions"] => "Completions_Create",
        ["embeddings"] => "Embeddings_Create",
        ["audio", "transcriptions"] => "Transcriptions_Create",
        ["audio", "translations"] => "Translations_Create",
        ["audio", "speech"] => "Speech_Create",
        ["images", ..] => "ImageGenerations_Create",
        _ => "Responses_Create",
    }
}
