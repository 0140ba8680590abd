//! One turn of a Responses WebSocket: how a `response.create` is answered, and which event is due when.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error_event::error_event;
use crate::demo::api::error_response::invalid_request_error;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{OperationResult, ResponseBody, SimulatedResponse};
use crate::demo::api::sse::event_json;
use crate::demo::config::mood_parser::parse_mood;
use crate::demo::faults::delivery::{CutoffMethod, DeliveryPlan};
use crate::demo::faults::response_faults::{apply_mood_to_request, apply_mood_to_response, refusal_by_mood};
use crate::demo::http::websocket::{ping_frame, text_frame};
use crate::demo::moods::mood::{BodyPosition, Mood};
use crate::demo::operations::responses::create_on_websocket;
use crate::demo::resource::rate_limiter::ChargeSettlement;
use crate::demo::resource::request_log::LoggedRequest;
use crate::demo::resource::response_store::ResponseStore;
use crate::demo::resource::state::ResourceState;
use crate::demo::resource::stream_end::StreamEnd;
use crate::demo::util::json::{set_member, text_member};
use crate::demo::util::locking::lock_ignoring_poison;

/// A turn whose events are being sent.
pub(super) struct Turn<'a> {
    pub(super) plan: DeliveryPlan,
    /// When the next event is due. `None` if there never will be one.
    pub(super) due_at: Option<Instant>,
    /// The response that the turn creates; `None` if it was refused.
    pub(super) response_id: Option<String>,
    pub(super) outcome: TurnOutcome,
    /// The message that the turn is about.
    pub(super) create: Value,
    /// Inputs that were queued for a successor of the response.
    pub(super) steering_inputs: Vec<Value>,
    lane: Option<String>,
    resource: &'a ResourceState,
    log_entry_number: usize,
    unsent_events: VecDeque<Value>,
    sent_events: usize,
    sent_bytes: usize,
    /// The number of the next event of the stream.
    sequence_number: u64,
    stream_end: Option<StreamEnd<'a>>,
    charge_to_settle: Option<Box<ChargeSettlement>>,
    is_finished: bool,
}

/// A `response.create`, as received and as JSON.
pub(super) struct TurnMessage {
    pub(super) text: String,
    pub(super) create: Value,
}

/// How a turn ends if nothing comes between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnOutcome {
    Completed,
    Failed,
    Cancelled,
}

/// What is sent for an event, and what comes then.
pub(super) struct TurnStep {
    pub(super) bytes: Vec<u8>,
    pub(super) next: AfterStep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterStep {
    NextEvent,
    EndTurn,
    CutOff(CutoffMethod),
}

impl<'a> Turn<'a> {
    /// Answers a `response.create` as a POST of the same content would be answered.
    pub(super) fn begin(
        upgrade_request: &SimulatedRequest<'a>,
        handshake: &LoggedRequest,
        store: &mut ResponseStore,
        lane: Option<&str>,
        message: TurnMessage,
    ) -> Self {
        let (resource, now) = (upgrade_request.resource, Instant::now());
        let records_body = resource.definition.records_request_bodies;
        let TurnMessage { text, create } = message;
        let log_entry_number = resource.request_log.record_turn(handshake, &text, records_body, now);
        let (mood, delay) = choose_mood(upgrade_request, text_member(&create, "model"));
        let request =
            SimulatedRequest { read_lag: resource.read_lag(), received_at: now, ..*upgrade_request };
        let request = apply_mood_to_request(&request, &mood);
        let response = respond(&request, &create, &mood, store).unwrap_or_else(|error| *error);
        let mut plan = DeliveryPlan::from_mood(&mood, resource.definition.timing);
        match mood {
            Mood::ResetBeforeHead => plan.cutoff = Some((BodyPosition::Events(0), CutoffMethod::Reset)),
            Mood::CloseBeforeHead => plan.cutoff = Some((BodyPosition::Events(0), CutoffMethod::Close)),
            _ => {}
        }
        let unsent_events = events_of(&response);
        let is_failed = response.status >= 400
            || unsent_events.iter().any(|event| matches!(type_of(event), "error" | "response.failed"));
        let streamed = response.streamed_response.map(|streamed| *streamed);
        let first_delay = delay + plan.first_byte_delay + plan.delay_before_piece(0);
        resource
            .request_log
            .update_request(log_entry_number, |logged| logged.response_status = Some(response.status));
        Self {
            plan,
            due_at: now.checked_add(first_delay).filter(|_| mood != Mood::Mute),
            response_id: streamed.as_ref().map(|streamed| streamed.id.clone()),
            outcome: if is_failed { TurnOutcome::Failed } else { TurnOutcome::Completed },
            create,
            steering_inputs: Vec::new(),
            lane: lane.map(str::to_owned),
            resource,
            log_entry_number,
            unsent_events,
            sent_events: 0,
            sent_bytes: 0,
            sequence_number: 0,
            stream_end: streamed.map(|streamed| streamed.begin(resource)),
            charge_to_settle: response.charge_to_settle,
            is_finished: false,
        }
    }

    /// The response that an earlier turn has created and that this one continues.
    pub(super) fn previous_response_id(&self) -> Option<&str> {
        text_member(&self.create, "previous_response_id")
    }

    /// Takes the event that is due.
    pub(super) fn step(&mut self, now: Instant) -> TurnStep {
        let mut bytes = Vec::new();
        if self.sent_events == 0 {
            for number in 0..self.plan.interim_response_count {
                bytes.extend(ping_frame(number.to_string().as_bytes()));
            }
        }
        if let Some((BodyPosition::Events(count), method)) = self.plan.cutoff
            && self.sent_events >= count
        {
            return self.cut_off(bytes, method);
        }
        if let Some(event) = self.unsent_events.pop_front() {
            let mut frame = text_frame(&self.number_event(event).to_string());
            if let Some((BodyPosition::Bytes(count), method)) = self.plan.cutoff
                && self.sent_bytes + frame.len() > count
            {
                frame.truncate(count.saturating_sub(self.sent_bytes));
                bytes.extend(frame);
                return self.cut_off(bytes, method);
            }
            self.sent_bytes += frame.len();
            self.sent_events += 1;
            bytes.extend(frame);
        }
        if !self.unsent_events.is_empty() {
            self.due_at = now.checked_add(self.plan.delay_before_piece(self.sent_events));
            return TurnStep { bytes, next: AfterStep::NextEvent };
        }
        if let Some((_, method)) = self.plan.cutoff {
            return self.cut_off(bytes, method);
        }
        if self.plan.announces_too_much() {
            // The frame ends before the length that it announces.
            bytes.pop();
            return self.cut_off(bytes, CutoffMethod::Close);
        }
        if let Some(stream_end) = &mut self.stream_end {
            stream_end.set_complete();
        }
        self.is_finished = true;
        self.resource
            .request_log
            .update_request(self.log_entry_number, |logged| logged.is_response_complete = true);
        TurnStep { bytes, next: AfterStep::EndTurn }
    }

    /// Ends the turn with `response.incomplete`. Neither `response.cancel` nor its effect is documented for
    /// Azure: this is assumed.
    ///
    /// Returns `false` if the turn has no response.
    pub(super) fn cancel(&mut self, store: &mut ResponseStore, now: Instant) -> bool {
        let response = self.unsent_events.back().and_then(|event| event.get("response")).cloned();
        let (Some(id), Some(mut response)) = (&self.response_id, response) else {
            return false;
        };
        store.remove(id);
        lock_ignoring_poison(&self.resource.responses).remove(id);
        for (name, value) in [("status", json!("cancelled")), ("output", json!([])), ("usage", Value::Null)] {
            set_member(&mut response, name, value);
        }
        let is_begun = self.sent_events > 0;
        self.unsent_events.truncate(usize::from(!is_begun));
        self.unsent_events.push_back(json!({"type": "response.incomplete", "response": response}));
        self.plan = DeliveryPlan::default();
        self.due_at = Some(now);
        self.outcome = TurnOutcome::Cancelled;
        true
    }

    /// The event, as one of this turn's lane and with the next number of its stream.
    pub(super) fn number_event(&mut self, mut event: Value) -> Value {
        if event.get("status").is_none() {
            set_member(&mut event, "sequence_number", json!(self.sequence_number));
            self.sequence_number += 1;
        }
        if let Some(lane) = &self.lane {
            set_member(&mut event, "stream_id", json!(lane));
        }
        event
    }

    fn cut_off(&mut self, bytes: Vec<u8>, method: CutoffMethod) -> TurnStep {
        self.is_finished = true;
        TurnStep { bytes, next: AfterStep::CutOff(method) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // What was generated is charged even if the client has disconnected.
        if let Some(charge) = &self.charge_to_settle {
            self.resource.settle_charge(charge);
        }
        if !self.is_finished {
            self.resource
                .request_log
                .update_request(self.log_entry_number, |logged| logged.client_disconnected = true);
        }
    }
}

/// The mood of a turn, and for how long it waits before.
fn choose_mood(upgrade_request: &SimulatedRequest, model: Option<&str>) -> (Mood, Duration) {
    let resource = upgrade_request.resource;
    let by_header = upgrade_request
        .head
        .header("x-simulate")
        .filter(|_| resource.definition.allows_mood_header)
        .and_then(|text| parse_mood(text).ok());
    let mut mood =
        by_header.unwrap_or_else(|| lock_ignoring_poison(&resource.mood_selector).next_mood(model));
    let mut delay = Duration::ZERO;
    while let Mood::After(duration, next_mood) = mood {
        delay += duration;
        mood = *next_mood;
    }
    (mood, delay)
}

fn respond(
    request: &SimulatedRequest,
    create: &Value,
    mood: &Mood,
    store: &mut ResponseStore,
) -> OperationResult {
    if let Some(refusal) = refusal_by_mood(request, mood) {
        return Err(Box::new(refusal));
    }
    if create.get("stream_id").is_some() && !request.resource.definition.accepts_stream_ids {
        let message = "Unknown parameter: 'stream_id'.";
        let code = Some("unknown_parameter");
        return Err(Box::new(invalid_request_error(400, message, Some("stream_id"), code)));
    }
    let response = create_on_websocket(request, create, store)?;
    Ok(apply_mood_to_response(request, mood, response))
}

/// The events of a stream, or the event in place of an error response.
fn events_of(response: &SimulatedResponse) -> VecDeque<Value> {
    let ResponseBody::Stream(_, events) = &response.body else {
        return VecDeque::from([error_event(response)]);
    };
    let mut events: VecDeque<Value> = events.iter().filter_map(|event| event_json(&event.bytes)).collect();
    // A stream that is refused tells when to try again in its head, which a turn does not have.
    let retry_after = response.headers.iter().find(|(name, _)| *name == "retry-after");
    let error = events.iter_mut().find_map(|event| event.get_mut("error"));
    if let (Some((name, value)), Some(headers)) =
        (retry_after, error.and_then(|error| error.get_mut("headers")))
    {
        set_member(headers, name, json!(value));
    }
    events
}

fn type_of(event: &Value) -> &str {
    text_member(event, "type").unwrap_or_default()
}
