//! One response of a Realtime session: its events and its usage.
//!
//! Audio is silence in pcm16 at 24 kHz. Azure counts about 10 tokens per second that it hears, and 20 per second that
//! it says.

use serde_json::{Value, json};

use crate::demo::operations::shared::text_model::{count_tokens, echo_text, split_into_deltas};
use crate::demo::util::encoding::base64_encode;
use crate::demo::util::ids::IdGenerator;

/// Bytes of audio per millisecond.
const AUDIO_BYTES_PER_MS: u64 = 48;
const HEARD_MS_PER_TOKEN: u64 = 100;
const SPOKEN_MS_PER_TOKEN: u64 = 50;
/// For how long a word is spoken.
const MS_PER_WORD: u64 = 200;

/// Tokens by what they stand for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RealtimeTokens {
    pub(super) text: u64,
    pub(super) audio: u64,
}

impl RealtimeTokens {
    /// The tokens of audio that was heard, from the length of its base64.
    pub(super) fn of_heard_audio(duration_ms: u64) -> Self {
        Self { text: 0, audio: duration_ms.div_ceil(HEARD_MS_PER_TOKEN) }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.text += other.text;
        self.audio += other.audio;
    }

    pub(super) fn total(self) -> u64 {
        self.text + self.audio
    }
}

/// The duration of audio in base64.
pub(super) fn audio_duration_ms(base64: &str) -> u64 {
    (base64.trim_end_matches('=').len() as u64 * 3 / 4) / AUDIO_BYTES_PER_MS
}

/// A response that is about to be sent.
pub(super) struct RealtimeResponse {
    pub(super) id: String,
    pub(super) events: Vec<Value>,
    pub(super) output_tokens: RealtimeTokens,
}

impl RealtimeResponse {
    /// The response to a text. `input` is the whole conversation, `cached` the part of it that an earlier response has
    /// read.
    pub(super) fn new(
        ids: &IdGenerator,
        heard_text: &str,
        speaks: bool,
        input: RealtimeTokens,
        cached: RealtimeTokens,
    ) -> Self {
        let (id, item_id) = (ids.new_alphanumeric_id("resp_", 21), ids.new_alphanumeric_id("item_", 21));
        let text = echo_text(heard_text);
        let words = split_into_deltas(&text);
        let spoken_ms = if speaks { words.len() as u64 * MS_PER_WORD } else { 0 };
        let output_tokens =
            RealtimeTokens { text: count_tokens(&text), audio: spoken_ms / SPOKEN_MS_PER_TOKEN };
        let item = |status: &str, content: Value| {
            json!({
                "id": item_id, "object": "realtime.item", "type": "message", "status": status,
                "role": "assistant", "content": content,
            })
        };
        let part = if speaks {
            json!({"type": "output_audio", "transcript": text})
        } else {
            json!({"type": "text", "text": text})
        };
        let done_item = item("completed", json!([part]));
        let mut events = vec![
            json!({"type": "response.created", "response": response_object(&id, "in_progress", &json!([]), &Value::Null)}),
            json!({"type": "rate_limits.updated", "rate_limits": [
                {"name": "requests", "limit": 1000, "remaining": 999, "reset_seconds": 0.06},
                {"name": "tokens", "limit": 100_000, "remaining": 99_000, "reset_seconds": 0.6},
            ]}),
            json!({
                "type": "response.output_item.added", "response_id": id, "output_index": 0,
                "item": item("in_progress", json!([])),
            }),
        ];
        let content_event = |event_type: &str, field: &str, value: &str| {
            json!({
                "type": event_type, "response_id": id, "item_id": item_id, "output_index": 0, "content_index": 0, (field): value,
            })
        };
        let word_bytes = usize::try_from(MS_PER_WORD * AUDIO_BYTES_PER_MS).unwrap_or_default();
        let audio = base64_encode(&vec![0; word_bytes]);
        for word in words {
            if speaks {
                events.push(content_event("response.output_audio_transcript.delta", "delta", word));
                events.push(content_event("response.output_audio.delta", "delta", &audio));
            } else {
                events.push(content_event("response.text.delta", "delta", word));
            }
        }
        if speaks {
            events.push(content_event("response.output_audio_transcript.done", "transcript", &text));
            let done_type = "response.output_audio.done";
            events.push(json!({
                "type": done_type, "response_id": id, "item_id": item_id, "output_index": 0, "content_index": 0,
            }));
        } else {
            events.push(content_event("response.text.done", "text", &text));
        }
        events.push(json!({
            "type": "response.output_item.done", "response_id": id, "output_index": 0, "item": done_item,
        }));
        let usage = usage_object(input, cached, output_tokens);
        let done = response_object(&id, "completed", &json!([done_item]), &usage);
        events.push(json!({"type": "response.done", "response": done}));
        Self { id, events, output_tokens }
    }

    /// The last event of a response that the client has cancelled. It is assumed that only the input is counted.
    pub(super) fn cancelled_event(id: &str, input: RealtimeTokens, cached: RealtimeTokens) -> Value {
        let usage = usage_object(input, cached, RealtimeTokens::default());
        let mut response = response_object(id, "cancelled", &json!([]), &usage);
        if let Some(map) = response.as_object_mut() {
            let details = json!({"type": "cancelled", "reason": "client_cancelled"});
            map.insert("status_details".to_owned(), details);
        }
        json!({"type": "response.done", "response": response})
    }
}

/// The usage of a transcription: its duration for `whisper-1`, and tokens for the models that count them.
pub(super) fn transcription_usage(model: &str, duration_ms: u64, transcript: &str) -> Value {
    if model.starts_with("whisper") {
        // Seconds are whole in the durations that Azure bills.
        return json!({"type": "duration", "seconds": duration_ms.div_ceil(1000)});
    }
    let input_tokens = RealtimeTokens::of_heard_audio(duration_ms).audio;
    let output_tokens = count_tokens(transcript);
    json!({
        "type": "tokens", "input_tokens": input_tokens, "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "input_token_details": {"text_tokens": 0, "audio_tokens": input_tokens},
    })
}

fn response_object(id: &str, status: &str, output: &Value, usage: &Value) -> Value {
    json!({"id": id, "object": "realtime.response", "status": status, "output": output, "usage": usage})
}

fn usage_object(input: RealtimeTokens, cached: RealtimeTokens, output: RealtimeTokens) -> Value {
    json!({
        "input_tokens": input.total(), "output_tokens": output.total(),
        "total_tokens": input.total() + output.total(),
        "input_token_details": {
            "text_tokens": input.text, "audio_tokens": input.audio, "cached_tokens": cached.total(),
            "cached_tokens_details": {"text_tokens": cached.text, "audio_tokens": cached.audio},
        },
        "output_token_details": {"text_tokens": output.text, "audio_tokens": output.audio},
    })
}
