//! The text and headers of 429, and the rate-limit headers of all other responses.

use std::time::Duration;

use serde_json::json;

use super::error_response::error_with_code;
use super::response::SimulatedResponse;
use super::route::{ApiDialect, RequestRoute};
use crate::demo::resource::definition::SimulatedDeployment;
use crate::demo::resource::rate_limiter::{ExceededLimit, RateLimitCounters};
use crate::demo::resource::state::ResourceState;

const QUOTA_INCREASE_HINT: &str = "Please go here: https://aka.ms/oai/quotaincrease if you would like to further increase the default \
                     rate limit.";
/// What a 429 asks the client to wait if the mood names no time.
const DEFAULT_RETRY_AFTER_SECONDS: u64 = 60;

/// The 429 of a deployment that has reached one of its limits.
pub(super) fn rate_limited_response(
    route: &RequestRoute,
    region: &str,
    deployment: &SimulatedDeployment,
    exceeded_limit: ExceededLimit,
    retry_after: Duration,
    counters: &RateLimitCounters,
) -> SimulatedResponse {
    let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    let seconds = millis.div_ceil(1000);
    let counted_unit = if exceeded_limit == ExceededLimit::Requests { "call" } else { "token" };
    let response = match exceeded_limit {
        ExceededLimit::ProvisionedCapacity => error_with_code(
            429,
            "429",
            &format!(
                "The requests have exceeded the provisioned capacity of the deployment '{}'. Please retry after {millis} \
                 milliseconds.",
                deployment.name
            ),
        ),
        _ => rate_limit_error(route, region, &deployment.name, &deployment.model, counted_unit, seconds),
    };
    with_rate_limit_headers(response, counters)
        .with_header("retry-after-ms", millis.to_string())
        .with_header("retry-after", seconds.to_string())
        .with_header("x-ms-deployment-name", deployment.name.clone())
}

/// The 429 of a resource whose mood is to throttle.
pub(in crate::demo) fn throttled_by_mood_response(
    resource: &ResourceState,
    route: &RequestRoute,
    retry_after_ms: Option<u64>,
    retry_after: Option<&str>,
) -> SimulatedResponse {
    // `retry-after` may also be a date, which is not a number of seconds.
    let retry_after_seconds = retry_after.and_then(|text| text.parse().ok());
    let seconds = retry_after_seconds
        .or(retry_after_ms.map(|millis| millis.div_ceil(1000)))
        .unwrap_or(DEFAULT_RETRY_AFTER_SECONDS);
    let name = route.deployment.as_deref().unwrap_or("deployment");
    let model = resource.deployment(name).map_or("model", |deployment| deployment.model.as_str());
    let mut response = rate_limit_error(route, &resource.definition.region, name, model, "token", seconds)
        .with_header("x-ratelimit-remaining-tokens", "0")
        .with_header("x-ratelimit-reset-tokens", seconds.to_string());
    if let Some(millis) = retry_after_ms {
        response = response.with_header("retry-after-ms", millis.to_string());
    }
    match retry_after {
        Some(text) => response.with_header("retry-after", text),
        None => response,
    }
}

/// The 429 for lack of shared capacity, which names no time to wait.
pub(in crate::demo) fn high_demand_response() -> SimulatedResponse {
    let message = "The system is currently experiencing high demand and cannot process your request. Your request exceeds \
                   the maximum usage size allowed during peak load. For improved capacity reliability, consider switching \
                   to Provisioned Throughput.";
    let error =
        json!({"message": message, "type": "too_many_requests", "param": null, "code": "too_many_requests"});
    SimulatedResponse::from_json(429, &json!({ "error": error }))
}

/// The 429 of a request for flex processing while there is no capacity for it.
pub(in crate::demo) fn flex_throttled_response(retry_after_ms: Option<u64>) -> SimulatedResponse {
    let message = "Flex processing has no capacity for this request right now. Please retry later, or with another \
                   service tier.";
    let response = error_with_code(429, "resource_unavailable", message);
    match retry_after_ms {
        Some(millis) => response.with_header("retry-after-ms", millis.to_string()),
        None => response,
    }
}

/// Adds the counters of a deployment.
pub(super) fn with_rate_limit_headers(
    response: SimulatedResponse,
    counters: &RateLimitCounters,
) -> SimulatedResponse {
    match counters {
        RateLimitCounters::None => response,
        RateLimitCounters::UtilizationPercent(percent) => {
            response.with_header("azure-openai-deployment-utilization", format!("{percent}%"))
        }
        RateLimitCounters::MinusOne => response
            .with_header("x-ratelimit-limit-requests", "-1")
            .with_header("x-ratelimit-remaining-requests", "-1")
            .with_header("x-ratelimit-limit-tokens", "-1")
            .with_header("x-ratelimit-remaining-tokens", "-1"),
        RateLimitCounters::Standard {
            request_limit,
            remaining_requests,
            token_limit,
            remaining_tokens,
            time_to_reset,
        } => {
            let response = response
                .with_header("x-ratelimit-limit-requests", request_limit.to_string())
                .with_header("x-ratelimit-remaining-requests", remaining_requests.to_string())
                .with_header("x-ratelimit-limit-tokens", token_limit.to_string())
                .with_header("x-ratelimit-remaining-tokens", remaining_tokens.to_string());
            if *remaining_tokens > 0 {
                return response;
            }
            let seconds = time_to_reset.as_millis().div_ceil(1000);
            response.with_header("x-ratelimit-reset-tokens", seconds.to_string())
        }
    }
}

/// The error of a standard deployment. Its text differs between the dialects.
fn rate_limit_error(
    route: &RequestRoute,
    region: &str,
    deployment: &str,
    model: &str,
    counted_unit: &str,
    seconds: u64,
) -> SimulatedResponse {
    match &route.dialect {
        ApiDialect::Classic { api_version } => {
            let operation = classic_operation_name(route);
            let message = format!(
                "Requests to the {operation} Operation under Azure OpenAI API version {api_version} have exceeded {counted_unit} rate \
                 limit of your current OpenAI S0 pricing tier. Please retry after {seconds} seconds. {QUOTA_INCREASE_HINT}"
            );
            error_with_code(429, "429", &message)
        }
        ApiDialect::V1 => {
            let message = format!(
                "Your requests to {deployment} for {model} in {region} have exceeded the {counted_unit} rate limit for your current \
                 AIServices S0 pricing tier. This request was for {deployment} under Azure OpenAI. Please retry after \
                 {seconds} seconds. {QUOTA_INCREASE_HINT}"
            );
            error_with_code(429, "RateLimitReached", &message)
        }
    }
}

/// The name of an operation in the error messages of the classic dialect.
fn classic_operation_name(route: &RequestRoute) -> &'static str {
    match route.operation_path_segments().as_slice() {
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
