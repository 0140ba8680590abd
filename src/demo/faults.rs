//! What a mood does to a good answer: changes its events here, and plans its delivery, which
//! [`super::delivery`] carries out.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Pace;
use super::answer::{Answer, Body, Flavour, Piece, Role};
use super::azure::{Call, harmless};
use super::delivery::{Delivery, Framing, Stop};
use super::script::{ErrorOrder, Mood};
use super::{sse, throttle};

/// Changes what is said.
pub(super) fn spoiled(call: &Call, mood: &Mood, mut answer: Answer) -> Answer {
    let status = answer.status;
    let Body::Stream(flavour, pieces) = &mut answer.body else {
        let is_refused =
            status == 200 && matches!(mood, Mood::ErrorFirst { .. }) && call.head.method == "POST";
        return if is_refused { throttle::in_bad_mood(call, None, Some("4")) } else { answer };
    };
    let flavour = *flavour;
    match mood {
        Mood::ErrorFirst { order, retry_after } if flavour != Flavour::Binary => {
            let created = pieces.first().cloned();
            *pieces = refusal(call, flavour, *order, created.as_ref());
            return match retry_after {
                Some(seconds) => answer.with("retry-after", seconds.clone()),
                None => answer,
            };
        }
        Mood::MidStreamError { after } if flavour != Flavour::Binary => {
            let created = pieces.first().cloned();
            let mut left = *after;
            pieces.retain(|piece| match piece.role {
                Role::Preamble => left > 0 || *after == 0,
                Role::Content if left > 0 => {
                    left -= 1;
                    true
                }
                Role::Content | Role::Terminal => false,
            });
            let message = "The server had an error while processing your request. Sorry about that!";
            let error =
                json!({"type": "server_error", "code": "server_error", "message": message, "param": null});
            let number = pieces.len();
            pieces.push(error_event(flavour, &error, number));
            if flavour == Flavour::Responses {
                pieces.push(failed_event(created.as_ref(), &error, number + 1));
            }
        }
        Mood::CleanEndWithoutTerminal => pieces.retain(|piece| piece.role != Role::Terminal),
        Mood::BigCreated { bytes } => {
            for piece in pieces.iter_mut().take(2).filter(|piece| piece.role == Role::Preamble) {
                pad(flavour, piece, *bytes);
            }
        }
        Mood::AsyncFilter { blocks } if flavour == Flavour::Chat => annotate(pieces, *blocks),
        _ => {}
    }
    answer
}

/// Plans how it is said.
pub(super) fn delivery(mood: &Mood, pace: Pace) -> Delivery {
    let mut plan = Delivery { first: pace.first_byte, between: pace.between_events, ..Delivery::default() };
    match mood {
        Mood::SlowFirstByte(delay) => plan.first = *delay,
        Mood::Drip(delay) => plan.between = *delay,
        Mood::ResetMidBody { after } => plan.stop = Some((*after, Stop::Reset)),
        Mood::CloseMidStream { after } => plan.stop = Some((*after, Stop::Close)),
        Mood::TruncatedLength { missing } => plan.framing = Framing::Short(*missing),
        Mood::Silence { after, lasting } => plan.silence = Some((*after, *lasting)),
        Mood::TinyWrites => plan.tiny = true,
        Mood::InfoFlood(count) => plan.infos = *count,
        Mood::Http10Close => plan.framing = Framing::UntilClose,
        Mood::EarlyAnswer { .. } => plan.first = Duration::ZERO,
        _ => {}
    }
    plan
}

/// The events of a refusal that began as a 200.
fn refusal(call: &Call, flavour: Flavour, order: ErrorOrder, created: Option<&Piece>) -> Vec<Piece> {
    let region = &call.live.resource.region;
    let message = format!("Your requests to the deployment in {region} have exceeded rate limit.");
    let error = json!({
        "type": "too_many_requests", "code": "rate_limit_exceeded", "headers": {"x-ms-fe-error": "true"},
        "message": message, "param": null,
    });
    let mut pieces: Vec<Piece> =
        created.into_iter().filter(|_| order != ErrorOrder::ErrorAlone).cloned().collect();
    let number = pieces.len();
    match (flavour, order) {
        (Flavour::Responses, ErrorOrder::CreatedErrorFailed) => {
            pieces.push(error_event(flavour, &error, number));
            pieces.push(failed_event(created, &error, number + 1));
        }
        (Flavour::Responses, ErrorOrder::FailedThenError) => {
            pieces.push(failed_event(created, &Value::Null, number));
            pieces.push(error_event(flavour, &error, number + 1));
        }
        _ => pieces.push(error_event(flavour, &error, number)),
    }
    pieces
}

fn error_event(flavour: Flavour, error: &Value, number: usize) -> Piece {
    match flavour {
        Flavour::Responses => {
            sse::event(Role::Content, &json!({"type": "error", "error": error, "sequence_number": number}))
        }
        _ => sse::data(Role::Content, &json!({ "error": error })),
    }
}

fn failed_event(created: Option<&Piece>, error: &Value, number: usize) -> Piece {
    let payload = created.and_then(|piece| sse::payload(&piece.bytes)).unwrap_or_default();
    let mut response = payload.get("response").cloned().unwrap_or_else(|| json!({}));
    if let Some(map) = response.as_object_mut() {
        map.insert("status".to_owned(), json!("failed"));
        let short = json!({"code": error.get("code"), "message": error.get("message")});
        map.insert("error".to_owned(), if error.is_null() { Value::Null } else { short });
    }
    let event = json!({"type": "response.failed", "response": response, "sequence_number": number});
    sse::event(Role::Content, &event)
}

/// Makes an early event as large as one that repeats a long request.
fn pad(flavour: Flavour, piece: &mut Piece, bytes: usize) {
    let Some(mut value) = sse::payload(&piece.bytes) else { return };
    let (holder, field) = match flavour {
        Flavour::Responses => (value.get_mut("response"), "instructions"),
        _ => (Some(&mut value), "obfuscation"),
    };
    let Some(map) = holder.and_then(Value::as_object_mut) else { return };
    map.insert(field.to_owned(), json!("x".repeat(bytes)));
    *piece = if flavour == Flavour::Responses {
        sse::event(piece.role, &value)
    } else {
        sse::data(piece.role, &value)
    };
}

/// Adds what the asynchronous content filter says after the text it looked at.
fn annotate(pieces: &mut Vec<Piece>, blocks: bool) {
    let chunk = |finish: Option<&str>, offset: u64| {
        let offsets = json!({"check_offset": offset, "start_offset": 0, "end_offset": offset});
        let choice = json!({
            "content_filter_offsets": offsets, "content_filter_results": harmless(false), "delta": {},
            "finish_reason": finish, "index": 0, "logprobs": null,
        });
        sse::data(
            Role::Content,
            &json!({"choices": [choice], "created": 0, "id": "", "model": "", "object": ""}),
        )
    };
    let says_stop =
        |piece: &Piece| piece.bytes.windows(23).any(|window| window == b"\"finish_reason\":\"stop\",");
    let at = pieces.iter().rposition(says_stop).map_or(pieces.len(), |at| at + 1);
    let tail: Vec<Piece> = pieces.drain(at..).collect();
    pieces.push(chunk(None, 40));
    pieces.push(chunk(blocks.then_some("content_filter"), 80));
    pieces.extend(tail);
}

/// A body in eighths, for moods that need something to stop after.
pub(super) fn eighths(body: &Bytes) -> Vec<Bytes> {
    let size = body.len().div_ceil(8).max(1);
    (0..body.len()).step_by(size).map(|at| body.slice(at..(at + size).min(body.len()))).collect()
}
