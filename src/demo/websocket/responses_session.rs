//! The Responses API over a WebSocket. The turns of a lane run one after the other, those of different lanes at the
//! same time.
//!
//! Documented are `response.create`, lanes, `generate: false`, the state of a lane and `response.steer` (OpenAI's guide
//! to WebSocket mode), and `response.inject` (the types of openai-python). How Azure words a refusal is assumed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error_event::{invalid_message_event, limit_reached_event};
use super::steering;
use super::turn::{AfterStep, Turn, TurnMessage, TurnOutcome};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::faults::delivery::CutoffMethod;
use crate::demo::http::connection::HttpConnection;
use crate::demo::http::error::ConnectionError;
use crate::demo::http::resettable_stream::ResettableStream;
use crate::demo::http::websocket::{
    CLOSE_GOING_AWAY, CLOSE_UNSUPPORTED_DATA, MessageReader, WebSocketInput, close_frame, pong_frame,
    text_frame,
};
use crate::demo::resource::request_log::LoggedRequest;
use crate::demo::resource::response_store::ResponseStore;
use crate::demo::util::json::text_member;
use crate::demo::util::locking::lock_ignoring_poison;

/// Responses under way on one WebSocket; more wait in their lanes.
const MAX_TURNS_UNDER_WAY: usize = 16;
/// Lanes with a name on one WebSocket.
const MAX_NAMED_LANES: usize = 32;
const MAX_STREAM_ID_LENGTH: usize = 256;
/// A sleep that nothing waits for the end of.
const FAR_AWAY: Duration = Duration::from_secs(365 * 24 * 3600);

/// A WebSocket on which the client creates responses.
pub(super) struct ResponsesSession<'a> {
    upgrade_request: SimulatedRequest<'a>,
    handshake: LoggedRequest,
    /// The latest response of each lane, also if it is not stored.
    store: ResponseStore,
    lanes: Vec<Lane<'a>>,
    expires_at: Option<Instant>,
}

/// The turns with the same `stream_id`, or those without one.
#[derive(Default)]
struct Lane<'a> {
    stream_id: Option<String>,
    waiting: VecDeque<TurnMessage>,
    turn: Option<Turn<'a>>,
    latest_response_id: Option<String>,
}

/// What is to be done next: the event of a lane, or the end of the session.
enum NextDue {
    Turn(usize),
    Expiry,
}

impl<'a> ResponsesSession<'a> {
    pub(super) fn new(request: &SimulatedRequest<'a>, handshake: &LoggedRequest) -> Self {
        let lifetime = request.resource.definition.max_websocket_lifetime;
        Self {
            upgrade_request: *request,
            handshake: handshake.clone(),
            store: ResponseStore::of_websocket(),
            lanes: vec![Lane::default()],
            expires_at: Instant::now().checked_add(lifetime),
        }
    }

    /// Serves the WebSocket to its end. Returns how the connection is to end.
    pub(super) async fn run<S: ResettableStream>(
        &mut self,
        connection: &mut HttpConnection<S>,
    ) -> Result<CutoffMethod, ConnectionError> {
        let mut reader = MessageReader::default();
        loop {
            self.start_waiting_turns(Instant::now());
            let due = self.next_due();
            let due_at = due.as_ref().map_or_else(|| Instant::now() + FAR_AWAY, |(due_at, _)| *due_at);
            // Reading can be cancelled without a loss, writing cannot: it is done outside of `select`.
            let input = tokio::select! {
                input = reader.next_input(connection) => Some(input?),
                () = tokio::time::sleep_until(due_at.into()) => None,
            };
            let end = match (input, due) {
                (Some(input), _) => self.handle_input(input, connection).await?,
                (None, Some((_, NextDue::Turn(lane)))) => self.step_turn(lane, connection).await?,
                (None, Some((_, NextDue::Expiry))) => {
                    let mut last = text_frame(&limit_reached_event().to_string());
                    last.extend(close_frame(Some(CLOSE_GOING_AWAY), "session expired"));
                    connection.write_all(&last).await?;
                    Some(CutoffMethod::Close)
                }
                (None, None) => None,
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    fn start_waiting_turns(&mut self, now: Instant) {
        if self.expires_at.is_some_and(|expires_at| expires_at <= now) {
            return;
        }
        let mut under_way = self.lanes.iter().filter(|lane| lane.turn.is_some()).count();
        for lane in self.lanes.iter_mut().filter(|lane| lane.turn.is_none()) {
            if under_way == MAX_TURNS_UNDER_WAY {
                return;
            }
            let Some(message) = lane.waiting.pop_front() else { continue };
            let stream_id = lane.stream_id.as_deref();
            lane.turn = Some(Turn::begin(
                &self.upgrade_request,
                &self.handshake,
                &mut self.store,
                stream_id,
                message,
            ));
            under_way += 1;
        }
    }

    /// The session expires between two turns.
    fn next_due(&self) -> Option<(Instant, NextDue)> {
        let turns = self.lanes.iter().enumerate();
        let turn = turns
            .filter_map(|(index, lane)| Some((lane.turn.as_ref()?.due_at?, NextDue::Turn(index))))
            .min_by_key(|(due_at, _)| *due_at);
        let is_idle = self.lanes.iter().all(|lane| lane.turn.is_none());
        turn.or_else(|| self.expires_at.filter(|_| is_idle).map(|expires_at| (expires_at, NextDue::Expiry)))
    }

    /// Sends the event of a turn that is due.
    async fn step_turn<S: ResettableStream>(
        &mut self,
        lane_index: usize,
        connection: &mut HttpConnection<S>,
    ) -> Result<Option<CutoffMethod>, ConnectionError> {
        let Some(lane) = self.lanes.get_mut(lane_index) else { return Ok(None) };
        let Some(turn) = &mut lane.turn else { return Ok(None) };
        let step = turn.step(Instant::now());
        turn.plan.write_body(connection, &step.bytes).await?;
        match step.next {
            AfterStep::NextEvent => Ok(None),
            AfterStep::CutOff(method) => Ok(Some(method)),
            AfterStep::EndTurn => {
                self.end_turn(lane_index);
                Ok(None)
            }
        }
    }

    /// A lane keeps its latest response. A turn that has failed makes it forget the one that it refers to.
    fn end_turn(&mut self, lane_index: usize) {
        let Some(lane) = self.lanes.get_mut(lane_index) else { return };
        let Some(turn) = lane.turn.take() else { return };
        let forgotten = match turn.outcome {
            TurnOutcome::Completed => {
                std::mem::replace(&mut lane.latest_response_id, turn.response_id.clone())
            }
            TurnOutcome::Failed => turn.previous_response_id().map(str::to_owned),
            TurnOutcome::Cancelled => None,
        };
        if let Some(id) = forgotten {
            self.store.remove(&id);
        }
        if let Some(successor) = steering::successor(&turn) {
            lane.waiting.push_front(successor);
        }
    }

    async fn handle_input<S: ResettableStream>(
        &mut self,
        input: WebSocketInput,
        connection: &mut HttpConnection<S>,
    ) -> Result<Option<CutoffMethod>, ConnectionError> {
        let (answer, end) = match input {
            WebSocketInput::Text(text) => {
                let answer = self.handle_message(text).map(|event| text_frame(&event.to_string()));
                (answer.unwrap_or_default(), None)
            }
            WebSocketInput::Ping(payload) => (pong_frame(&payload), None),
            WebSocketInput::Binary => {
                let code = Some(CLOSE_UNSUPPORTED_DATA);
                (close_frame(code, "messages are text"), Some(CutoffMethod::Close))
            }
            WebSocketInput::Violation(code, reason) => {
                (close_frame(Some(code), reason), Some(CutoffMethod::Close))
            }
            WebSocketInput::Close(payload) => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                (close_frame(code, ""), Some(CutoffMethod::Close))
            }
        };
        connection.write_all(&answer).await?;
        Ok(end)
    }

    /// The event that answers a message at once.
    fn handle_message(&mut self, text: String) -> Option<Value> {
        let Some(message) = serde_json::from_str(&text).ok().filter(Value::is_object) else {
            return Some(invalid_message_event("invalid_json", "The message is not a JSON object.", None));
        };
        match text_member(&message, "type") {
            Some("response.create") => self.add_create(TurnMessage { text, create: message }),
            Some("response.cancel") => self.cancel(&message),
            Some("response.inject") => Some(self.inject(&message)),
            Some("response.steer") => Some(self.steer(&message)),
            // Codex sends it when it is done with a response.
            Some("response.processed") => None,
            other => {
                let text = format!("Invalid value: '{}'.", other.unwrap_or("(none)"));
                Some(invalid_message_event("invalid_value", &text, Some("type")))
            }
        }
    }

    /// Puts a turn into its lane. Where lanes are not accepted, there is one, and the turn is refused there.
    fn add_create(&mut self, message: TurnMessage) -> Option<Value> {
        let accepts_stream_ids = self.upgrade_request.resource.definition.accepts_stream_ids;
        let stream_id = message.create.get("stream_id").filter(|id| accepts_stream_ids && !id.is_null());
        let stream_id = match stream_id.map(|id| id.as_str().filter(|id| is_stream_id(id))) {
            None => None,
            Some(Some(id)) => Some(id.to_owned()),
            Some(None) => {
                let text = "Invalid 'stream_id': expected 1 to 256 letters, digits, '_', '.' or '-'.";
                return Some(invalid_message_event("invalid_value", text, Some("stream_id")));
            }
        };
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream_id == stream_id) {
            lane.waiting.push_back(message);
            return None;
        }
        // The lane without a name is not counted.
        if self.lanes.len() > MAX_NAMED_LANES {
            let text = "This WebSocket has as many streams as it may have.";
            return Some(invalid_message_event("websocket_stream_limit_reached", text, Some("stream_id")));
        }
        let waiting = VecDeque::from([message]);
        self.lanes.push(Lane { stream_id, waiting, ..Lane::default() });
        None
    }

    /// Cancels the turn of a response, or any that is under way.
    fn cancel(&mut self, message: &Value) -> Option<Value> {
        let id = text_member(message, "response_id");
        let mut turns = self.lanes.iter_mut().filter_map(|lane| lane.turn.as_mut());
        let turn = turns.find(|turn| id.is_none() || turn.response_id.as_deref() == id);
        if turn.is_some_and(|turn| turn.cancel(&mut self.store, Instant::now())) {
            return None;
        }
        let text = "Cancellation failed: no active response found.";
        Some(invalid_message_event("response_cancel_not_active", text, None))
    }

    fn inject(&mut self, message: &Value) -> Value {
        let id = text_member(message, "response_id").unwrap_or_default();
        if let Some(turn) = self.turn_of_response(id) {
            return turn.number_event(json!({"type": "response.inject.created", "response_id": id}));
        }
        let (code, text) = if self.is_known_response(id) {
            ("response_already_completed", "The response has already completed.")
        } else {
            ("response_not_found", "No such response is active on this WebSocket.")
        };
        json!({
            "type": "response.inject.failed", "response_id": id, "input": message.get("input"),
            "error": {"code": code, "message": text}, "sequence_number": 0,
        })
    }

    fn steer(&mut self, message: &Value) -> Value {
        let id = text_member(message, "previous_response_id").unwrap_or_default();
        if !self.upgrade_request.resource.definition.accepts_stream_ids {
            return steering::failed_event(message, "steering_not_supported");
        }
        let ids = &self.upgrade_request.resource.id_generator;
        if let Some(turn) = self.turn_of_response(id) {
            return steering::queue_input(turn, message, ids);
        }
        let is_known = self.is_known_response(id);
        steering::failed_event(
            message,
            if is_known { "response_already_completed" } else { "response_not_found" },
        )
    }

    fn turn_of_response(&mut self, id: &str) -> Option<&mut Turn<'a>> {
        let mut turns = self.lanes.iter_mut().filter_map(|lane| lane.turn.as_mut());
        turns.find(|turn| turn.response_id.as_deref() == Some(id))
    }

    fn is_known_response(&self, id: &str) -> bool {
        let resource = self.upgrade_request.resource;
        let now = Instant::now();
        self.store.get(id, now).is_some() || lock_ignoring_poison(&resource.responses).get(id, now).is_some()
    }
}

fn is_stream_id(id: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=MAX_STREAM_ID_LENGTH).contains(&id.len()) && id.bytes().all(is_allowed)
}
