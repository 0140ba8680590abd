//! `response.steer`: input that is queued for a successor of the response under way, as the types of openai-python
//! describe it.

use serde_json::{Value, json};

use super::turn::{Turn, TurnMessage, TurnOutcome};
use crate::demo::util::ids::IdGenerator;
use crate::demo::util::json::{set_member, text_member};

/// Queues the input of a `response.steer`. Returns the event that answers it.
pub(super) fn queue_input(turn: &mut Turn, message: &Value, ids: &IdGenerator) -> Value {
    if turn.create.get("conversation").is_some_and(|conversation| !conversation.is_null()) {
        return failed_event(message, "steering_not_supported");
    }
    let id = ids.new_alphanumeric_id("steer_", 21);
    turn.steering_inputs.push(message.get("input").cloned().unwrap_or_default());
    let steer = json!({"id": id, "previous_response_id": message.get("previous_response_id")});
    turn.number_event(json!({"type": "response.steer.accepted", "steer": steer}))
}

/// The event that gives the input back.
pub(super) fn failed_event(message: &Value, code: &str) -> Value {
    let steer = json!({
        "previous_response_id": message.get("previous_response_id"), "input": message.get("input"),
    });
    let error = json!({"code": code, "message": "The input was not applied."});
    json!({"type": "response.steer.failed", "error": error, "steer": steer, "sequence_number": 0})
}

/// The turn that follows a steered one: it inherits everything but the input. It is assumed that a turn which does
/// not complete has no successor.
pub(super) fn successor(turn: &Turn) -> Option<TurnMessage> {
    if turn.steering_inputs.is_empty() || turn.outcome != TurnOutcome::Completed {
        return None;
    }
    let mut input = Vec::new();
    for queued in &turn.steering_inputs {
        match queued {
            Value::Array(items) => input.extend(items.iter().cloned()),
            text => input.push(json!({"type": "message", "role": "user", "content": text})),
        }
    }
    let mut create = turn.create.clone();
    set_member(&mut create, "input", Value::Array(input));
    set_member(&mut create, "previous_response_id", json!(turn.response_id));
    text_member(&create, "previous_response_id")?;
    Some(TurnMessage { text: create.to_string(), create })
}
