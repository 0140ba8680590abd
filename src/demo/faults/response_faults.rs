//! Moods that change a request or the content of a response: refusals, errors inside streams, missing or oversized events, late
//! annotations.

use serde_json::{Value, json};

use crate::demo::api::content_filter::passed_filter_results;
use crate::demo::api::error_response::to_response;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{EventRole, ResponseBody, SimulatedResponse, StreamEvent, StreamFormat};
use crate::demo::api::sse;
use crate::demo::api::throttling::{
    flex_throttled_response, high_demand_response, throttled_by_mood_response,
};
use crate::demo::moods::mood::{ErrorEventOrder, Mood};
use crate::demo::operations::shared::service_tier::ServiceTier;
use crate::demo::resource::rate_limiter::LimitOverride;

/// `retry-after` of the 429 that [`Mood::ErrorFirst`] gives to requests without a stream.
const ERROR_FIRST_RETRY_AFTER_SECONDS: &str = "4";

/// The request as the mood lets the operation see it.
pub(in crate::demo) fn apply_mood_to_request<'a>(
    request: &SimulatedRequest<'a>,
    mood: &Mood,
) -> SimulatedRequest<'a> {
    SimulatedRequest {
        limit_override: match mood {
            Mood::CountersMinusOne => LimitOverride::MinusOneCounters,
            Mood::ReducedLimits { limit_percent } => LimitOverride::PercentOfLimits(*limit_percent),
            _ => LimitOverride::None,
        },
        keeps_responses: !matches!(mood, Mood::ErrorFirst { .. } | Mood::MidStreamError { .. }),
        read_lag: match mood {
            Mood::ReadLag(read_lag) => *read_lag,
            _ => request.read_lag,
        },
        ..*request
    }
}

/// The response of a mood that refuses every request.
pub(in crate::demo) fn refusal_by_mood(request: &SimulatedRequest, mood: &Mood) -> Option<SimulatedResponse> {
    match mood {
        Mood::Throttled { retry_after_ms, retry_after } => Some(throttled_by_mood_response(
            request.resource,
            request.route,
            *retry_after_ms,
            retry_after.as_deref(),
        )),
        Mood::FlexThrottled { retry_after_ms } if asks_for_flex(request) => {
            Some(flex_throttled_response(*retry_after_ms))
        }
        Mood::HighDemand => Some(high_demand_response()),
        Mood::Refuses(error) | Mood::EarlyAnswer { error, .. } => Some(to_response(*error)),
        _ => None,
    }
}

fn asks_for_flex(request: &SimulatedRequest) -> bool {
    let tier = request.json_body().and_then(|body| ServiceTier::from_body(&body));
    tier.is_ok_and(|tier| tier == ServiceTier::Flex)
}

/// Changes the events of a stream as the mood demands. Of other responses, only [`Mood::ErrorFirst`] changes
/// any.
pub(in crate::demo) fn apply_mood_to_response(
    request: &SimulatedRequest,
    mood: &Mood,
    mut response: SimulatedResponse,
) -> SimulatedResponse {
    let status = response.status;
    let ResponseBody::Stream(format, events) = &mut response.body else {
        let is_throttled =
            status == 200 && matches!(mood, Mood::ErrorFirst { .. }) && request.head.method == "POST";
        return if is_throttled {
            throttled_by_mood_response(
                request.resource,
                request.route,
                None,
                Some(ERROR_FIRST_RETRY_AFTER_SECONDS),
            )
        } else {
            response
        };
    };
    let format = *format;
    match mood {
        Mood::ErrorFirst { event_order, retry_after } if format != StreamFormat::Binary => {
            let created = events.first().cloned();
            let region = &request.resource.definition.region;
            *events = rate_limit_error_events(region, format, *event_order, created.as_ref());
            return match retry_after {
                Some(seconds) => response.with_header("retry-after", seconds.clone()),
                None => response,
            };
        }
        Mood::MidStreamError { after_events } if format != StreamFormat::Binary => {
            end_in_error(events, format, *after_events);
        }
        Mood::CleanEndWithoutTerminal => events.retain(|event| event.role != EventRole::Terminal),
        Mood::LateEncryptedContent if format == StreamFormat::Responses => {
            for event in events.iter_mut().filter(|event| event.role != EventRole::Terminal) {
                remove_encrypted_content(event);
            }
        }
        Mood::BigCreated { padding_bytes } => {
            // A chat begins with the results of the prompt filter; its first chunk is the second event.
            for event in events.iter_mut().take(2).filter(|event| event.role == EventRole::Preamble) {
                pad_event(format, event, *padding_bytes);
            }
        }
        Mood::AsyncFilter { blocks_content } if format == StreamFormat::Chat => {
            add_content_filter_annotations(events, *blocks_content);
        }
        _ => {}
    }
    response
}

/// Cuts a stream after some output, and ends it with an error.
fn end_in_error(events: &mut Vec<StreamEvent>, format: StreamFormat, after_events: usize) {
    let created = events.first().cloned();
    let mut remaining = after_events;
    events.retain(|event| match event.role {
        EventRole::Preamble => remaining > 0 || after_events == 0,
        EventRole::Content if remaining > 0 => {
            remaining -= 1;
            true
        }
        EventRole::Content | EventRole::Terminal => false,
    });
    let message = "The server had an error while processing your request. Sorry about that!";
    let error = json!({"type": "server_error", "code": "server_error", "message": message, "param": null});
    let sequence_number = events.len();
    events.push(error_event(format, &error, sequence_number));
    if format == StreamFormat::Responses {
        events.push(failed_event(created.as_ref(), &error, sequence_number + 1));
    }
}

/// The events of a stream that is refused although its status is 200. `created` is its first event.
fn rate_limit_error_events(
    region: &str,
    format: StreamFormat,
    order: ErrorEventOrder,
    created: Option<&StreamEvent>,
) -> Vec<StreamEvent> {
    let message = format!("Your requests to the deployment in {region} have exceeded rate limit.");
    let error = json!({
        "type": "too_many_requests", "code": "rate_limit_exceeded", "headers": {"x-ms-fe-error": "true"},
        "message": message, "param": null,
    });
    let mut events: Vec<StreamEvent> =
        created.into_iter().filter(|_| order != ErrorEventOrder::ErrorAlone).cloned().collect();
    let sequence_number = events.len();
    match (format, order) {
        (StreamFormat::Responses, ErrorEventOrder::CreatedErrorFailed) => {
            events.push(error_event(format, &error, sequence_number));
            events.push(failed_event(created, &error, sequence_number + 1));
        }
        (StreamFormat::Responses, ErrorEventOrder::FailedThenError) => {
            events.push(failed_event(created, &Value::Null, sequence_number));
            events.push(error_event(format, &error, sequence_number + 1));
        }
        _ => events.push(error_event(format, &error, sequence_number)),
    }
    events
}

fn error_event(format: StreamFormat, error: &Value, sequence_number: usize) -> StreamEvent {
    match format {
        StreamFormat::Responses => {
            let event = json!({"type": "error", "error": error, "sequence_number": sequence_number});
            sse::named_event(EventRole::Content, &event)
        }
        _ => sse::data_event(EventRole::Content, &json!({ "error": error })),
    }
}

/// `response.failed`, with the response object of the first event.
fn failed_event(created: Option<&StreamEvent>, error: &Value, sequence_number: usize) -> StreamEvent {
    let created_json = created.and_then(|event| sse::event_json(&event.bytes)).unwrap_or_default();
    let mut response = created_json.get("response").cloned().unwrap_or_else(|| json!({}));
    if let Some(map) = response.as_object_mut() {
        map.insert("status".to_owned(), json!("failed"));
        let short_error = json!({"code": error.get("code"), "message": error.get("message")});
        map.insert("error".to_owned(), if error.is_null() { Value::Null } else { short_error });
    }
    let event = json!({"type": "response.failed", "response": response, "sequence_number": sequence_number});
    sse::named_event(EventRole::Content, &event)
}

/// Removes the encrypted content of the item that an event carries.
fn remove_encrypted_content(event: &mut StreamEvent) {
    let Some(mut value) = sse::event_json(&event.bytes) else { return };
    let item = value.get_mut("item").and_then(Value::as_object_mut);
    if item.is_some_and(|item| item.remove("encrypted_content").is_some()) {
        *event = sse::named_event(event.role, &value);
    }
}

/// Makes an early event as large as one that repeats a long request.
fn pad_event(format: StreamFormat, event: &mut StreamEvent, padding_bytes: usize) {
    let Some(mut value) = sse::event_json(&event.bytes) else { return };
    let (object, field) = match format {
        StreamFormat::Responses => (value.get_mut("response"), "instructions"),
        _ => (Some(&mut value), "obfuscation"),
    };
    let Some(map) = object.and_then(Value::as_object_mut) else { return };
    map.insert(field.to_owned(), json!("x".repeat(padding_bytes)));
    *event = if format == StreamFormat::Responses {
        sse::named_event(event.role, &value)
    } else {
        sse::data_event(event.role, &value)
    };
}

/// Adds the annotations of the asynchronous content filter. Azure sends them after the text that they are
/// about, even after the chunk with `finish_reason`.
fn add_content_filter_annotations(events: &mut Vec<StreamEvent>, blocks_content: bool) {
    let chunk = |finish_reason: Option<&str>, offset: u64| {
        let offsets = json!({"check_offset": offset, "start_offset": 0, "end_offset": offset});
        let choice = json!({
            "content_filter_offsets": offsets, "content_filter_results": passed_filter_results(false), "delta": {},
            "finish_reason": finish_reason, "index": 0, "logprobs": null,
        });
        sse::data_event(
            EventRole::Content,
            &json!({"choices": [choice], "created": 0, "id": "", "model": "", "object": ""}),
        )
    };
    let stop = b"\"finish_reason\":\"stop\",";
    let has_stop = |event: &StreamEvent| event.bytes.windows(stop.len()).any(|window| window == stop);
    let end_of_text = events.iter().rposition(has_stop).map_or(events.len(), |index| index + 1);
    let later_events: Vec<StreamEvent> = events.drain(end_of_text..).collect();
    events.push(chunk(None, 40));
    events.push(chunk(blocks_content.then_some("content_filter"), 80));
    events.extend(later_events);
}
