//! The responses and transcripts of a realtime session, each of which gets a record.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

use super::session_facts::SessionFacts;
use crate::azure::Operation;
use crate::azure::response::capture::{RealtimeResponseEnd, ResponseCapture};
use crate::azure::response::realtime_events::{RealtimeEvent, RealtimeEventKind, Transcription};
use crate::proxy::client::client_request::new_request_id;
use crate::record::exchange::{
    CapturePolicy, CapturedResponse, ExchangeOutcome, ExtractedPrompt, FinishedExchange,
};

/// The most responses, or audio items, that are remembered at a time. Azure runs one response of a conversation at a
/// time, and few beside it.
const MAX_REMEMBERED: usize = 32;

/// The turns of a session.
pub(super) struct Turns {
    session: SessionFacts,
    model: Option<String>,
    transcription_model: Option<String>,
    open_responses: VecDeque<OpenResponse>,
    /// Ids of the responses and transcripts that ended last, so that none gets two records.
    ended: VecDeque<Box<str>>,
    /// When the client's audio became an item, by the item's id.
    audio_items: VecDeque<(Box<str>, Instant)>,
    prompt: Prompt,
    /// Bytes of all messages so far.
    message_bytes: u64,
}

struct OpenResponse {
    /// Its id as JSON; empty if the event told none.
    id: Box<str>,
    created_at: Instant,
    first_content_at: Option<Instant>,
    /// Bytes of messages before it.
    bytes_before: u64,
}

/// What the client brought since the last response: a JSON array of its items and transcripts.
#[derive(Default)]
struct Prompt {
    text: String,
    is_truncated: bool,
}

impl Turns {
    pub(super) fn new(session: SessionFacts) -> Self {
        Self {
            session,
            model: None,
            transcription_model: None,
            open_responses: VecDeque::new(),
            ended: VecDeque::new(),
            audio_items: VecDeque::new(),
            prompt: Prompt::default(),
            message_bytes: 0,
        }
    }

    /// Counts bytes of a message.
    pub(super) fn count_bytes(&mut self, bytes: usize) {
        self.message_bytes += bytes as u64;
    }

    /// Takes the next event of the server.
    pub(super) fn on_event(&mut self, event: &RealtimeEvent<'_>, now: Instant) {
        match event.kind {
            RealtimeEventKind::Session => {
                let [model, transcription_model] = event.session_models();
                self.model = model.or(self.model.take());
                self.transcription_model = transcription_model.or(self.transcription_model.take());
            }
            RealtimeEventKind::AudioCommitted => {
                if let Some(id) = event.item_id() {
                    push_bounded(&mut self.audio_items, (id.into(), now));
                }
            }
            RealtimeEventKind::Item => match event.client_item() {
                Some(item) => self.prompt.push(&item, self.session.policy.max_buffered_text_bytes),
                None => self.prompt.is_truncated |= event.is_outline,
            },
            RealtimeEventKind::Transcription => self.on_transcription(event.transcription(), now),
            RealtimeEventKind::ResponseCreated => {
                let id = event.response_id().unwrap_or_default().into();
                let bytes_before = self.message_bytes;
                let response = OpenResponse { id, created_at: now, first_content_at: None, bytes_before };
                push_bounded(&mut self.open_responses, response);
            }
            RealtimeEventKind::ResponseContent => self.on_content(event, now),
            RealtimeEventKind::ResponseDone => self.on_response_done(event, now),
        }
    }

    fn on_content(&mut self, event: &RealtimeEvent<'_>, now: Instant) {
        if self.open_responses.iter().all(|response| response.first_content_at.is_some()) {
            return;
        }
        let response = match event.response_id() {
            Some(id) => self.open_responses.iter_mut().find(|response| *response.id == *id),
            None => self.open_responses.iter_mut().find(|response| response.first_content_at.is_none()),
        };
        if let Some(response) = response {
            response.first_content_at.get_or_insert(now);
        }
    }

    fn on_response_done(&mut self, event: &RealtimeEvent<'_>, now: Instant) {
        let id = event.response_id();
        if id.is_some_and(|id| !self.note_end(id.into())) {
            return;
        }
        // An outline has no ids.
        let position = match id {
            Some(id) => self.open_responses.iter().position(|response| *response.id == *id),
            None => (!self.open_responses.is_empty()).then_some(0),
        };
        let opened = position.and_then(|position| self.open_responses.remove(position));
        let policy = self.session.policy;
        let mut capture = ResponseCapture::new(Operation::Realtime, completion_limit(policy));
        let end = capture.capture_realtime_response(event);
        capture.model = capture.model.or_else(|| self.model.clone());
        let created_at = opened.as_ref().map_or(now, |opened| opened.created_at);
        let mut exchange = self.new_exchange(created_at, now);
        exchange.outcome = match end {
            RealtimeResponseEnd::Ended => ExchangeOutcome::Answered,
            RealtimeResponseEnd::Failed => ExchangeOutcome::Failed,
        };
        exchange.time_to_first_body_byte = opened
            .as_ref()
            .and_then(|opened| opened.first_content_at)
            .map(|at| at.saturating_duration_since(created_at));
        exchange.response_bytes =
            self.message_bytes - opened.map_or(self.message_bytes, |opened| opened.bytes_before);
        exchange.extracted_prompt = std::mem::take(&mut self.prompt).finish();
        self.submit(exchange, capture);
    }

    fn on_transcription(&mut self, transcription: Transcription<'_>, now: Instant) {
        let Transcription { item_id, content_index, transcript, has_usage, usage } = transcription;
        let id = item_id.map(|id| format!("{id} {}", content_index.unwrap_or_default()));
        if id.is_some_and(|id| !self.note_end(id.into())) {
            return;
        }
        let position = item_id.and_then(|id| self.audio_items.iter().position(|(item, _)| **item == *id));
        let committed = position.and_then(|position| self.audio_items.remove(position));
        if self.session.policy.captures_prompt && !transcript.is_empty() {
            let item = serde_json::json!({ "type": "input_audio_transcription", "transcript": transcript });
            self.prompt.push(&item.to_string(), self.session.policy.max_buffered_text_bytes);
        }
        // Without usage it is part of what the response is billed.
        if !has_usage {
            return;
        }
        let mut capture = ResponseCapture::new(Operation::Realtime, completion_limit(self.session.policy));
        capture.capture_text_body(&transcript);
        capture.usage = usage;
        capture.model.clone_from(&self.transcription_model);
        let exchange = self.new_exchange(committed.map_or(now, |(_, at)| at), now);
        self.submit(exchange, capture);
    }

    /// Notes what has ended; returns whether it is the first time.
    fn note_end(&mut self, id: Box<str>) -> bool {
        let is_first = !self.ended.contains(&id);
        if is_first {
            push_bounded(&mut self.ended, id);
        }
        is_first
    }

    /// An exchange between these moments, which was answered.
    fn new_exchange(&self, begun: Instant, now: Instant) -> FinishedExchange {
        let duration = now.saturating_duration_since(begun);
        let received_at = SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH);
        FinishedExchange { received_at, duration, ..self.session.new_exchange(new_request_id(received_at)) }
    }

    fn submit(&self, mut exchange: FinishedExchange, capture: ResponseCapture) {
        exchange.captured_response = CapturedResponse::Parsed(Box::new(capture));
        let gateway = &self.session.gateway;
        drop(gateway.count_and_record(Box::new(exchange), self.session.policy));
        gateway.wake_record_writer();
    }
}

impl Prompt {
    /// Adds an item as JSON.
    fn push(&mut self, item: &str, limit: usize) {
        if self.is_truncated {
            return;
        }
        self.text.push(if self.text.is_empty() { '[' } else { ',' });
        let fitting = item.floor_char_boundary(limit.saturating_sub(self.text.len()));
        self.text.push_str(item.get(..fitting).unwrap_or_default());
        self.is_truncated = fitting < item.len();
    }

    fn finish(mut self) -> Option<ExtractedPrompt> {
        if self.text.is_empty() && !self.is_truncated {
            return None;
        }
        if !self.is_truncated {
            self.text.push(']');
        }
        Some(ExtractedPrompt { text: self.text, is_truncated: self.is_truncated, is_redacted: false })
    }
}

/// The most bytes of text that are captured of a response.
fn completion_limit(policy: CapturePolicy) -> usize {
    if policy.captures_completion { policy.max_buffered_text_bytes } else { 0 }
}

/// Adds the newest, and forgets the oldest if there are too many.
fn push_bounded<T>(items: &mut VecDeque<T>, item: T) {
    if items.len() >= MAX_REMEMBERED {
        items.pop_front();
    }
    items.push_back(item);
}
