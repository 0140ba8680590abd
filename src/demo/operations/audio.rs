//! Audio: transcription and translation of uploads, and speech as bytes that only look like audio.

use bytes::Bytes;
use serde_json::{Value, json};

use super::shared::text_model::{count_tokens, split_into_deltas};
use crate::demo::api::error_response::{invalid_parameter, invalid_request_error};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{EventRole, OperationResult, SimulatedResponse, StreamEvent, StreamFormat};
use crate::demo::api::sse::{self, EVENT_STREAM_CONTENT_TYPE};
use crate::demo::http::multipart::MultipartForm;
use crate::demo::resource::rate_limiter::RequestCost;
use crate::demo::util::hash::{fnv1a_hash, splitmix64};

/// Bytes of audio that count as one token.
const AUDIO_BYTES_PER_TOKEN: usize = 1600;
/// Bytes of one second of audio (16 kHz, 16 bit).
const AUDIO_BYTES_PER_SECOND: f64 = 32_000.0;
const BYTES_PER_SPEECH_PIECE: usize = 1024;

/// `POST /audio/transcriptions`
pub(super) fn transcribe_audio(request: &SimulatedRequest) -> OperationResult {
    let form = request.multipart_body()?;
    speech_to_text(request, &form, "transcription")
}

/// `POST /audio/translations`
pub(super) fn translate_audio(request: &SimulatedRequest) -> OperationResult {
    let form = request.multipart_body()?;
    speech_to_text(request, &form, "translation")
}

/// Responds with a sentence about the upload; the audio itself is not looked at.
fn speech_to_text(request: &SimulatedRequest, form: &MultipartForm, task: &str) -> OperationResult {
    let deployment = request.requested_deployment(form.text("model").as_deref())?;
    let Some(file) = form.part("file") else {
        return Err(invalid_parameter("file", "Missing required parameter: 'file'."));
    };
    let audio_tokens = file.content.len().div_ceil(AUDIO_BYTES_PER_TOKEN) as u64;
    // The rate limiter takes four characters for one token.
    let cost =
        RequestCost { prompt_characters: audio_tokens * 4, cached_prompt_tokens: 0, max_output_tokens: 0 };
    let admission = request.admit_to_deployment(deployment, cost)?;
    let filename = file.filename.as_deref().unwrap_or("audio");
    let text = format!("A simulated {task} of {filename}, {} bytes long.", file.content.len());
    let seconds = file.content.len() as f64 / AUDIO_BYTES_PER_SECOND;
    let output_tokens = count_tokens(&text);
    // Whisper is billed by duration and reports no tokens.
    let usage = if deployment.model.starts_with("whisper") {
        json!({"type": "duration", "seconds": seconds.ceil()})
    } else {
        json!({
            "type": "tokens", "input_tokens": audio_tokens, "output_tokens": output_tokens,
            "total_tokens": audio_tokens + output_tokens,
            "input_token_details": {"audio_tokens": audio_tokens, "text_tokens": 0},
        })
    };
    let response = match form.text("response_format").as_deref().unwrap_or("json") {
        _ if form.text("stream").as_deref() == Some("true") => SimulatedResponse::from_events(
            StreamFormat::Responses,
            EVENT_STREAM_CONTENT_TYPE,
            transcript_events(&text, &usage),
        ),
        "text" => SimulatedResponse::from_body(200, "text/plain; charset=utf-8", format!("{text}\n")),
        "srt" => SimulatedResponse::from_body(
            200,
            "text/plain; charset=utf-8",
            format!("1\n00:00:00,000 --> 00:00:01,000\n{text}\n\n"),
        ),
        "vtt" => SimulatedResponse::from_body(
            200,
            "text/plain; charset=utf-8",
            format!("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n{text}\n\n"),
        ),
        "verbose_json" => SimulatedResponse::from_json(
            200,
            &json!({
                "task": task, "language": "english", "duration": seconds, "text": text, "usage": usage,
                "segments": [{
                    "id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": text, "tokens": [], "temperature": 0.0,
                    "avg_logprob": -0.2, "compression_ratio": 1.0, "no_speech_prob": 0.0,
                }],
            }),
        ),
        "json" => SimulatedResponse::from_json(200, &json!({"text": text, "usage": usage})),
        other => {
            return Err(invalid_parameter(
                "response_format",
                &format!("'{other}' is not one of the response formats."),
            ));
        }
    };
    Ok(admission.add_headers_and_charge(response, audio_tokens, output_tokens))
}

/// The events of a streamed transcription or translation.
fn transcript_events(text: &str, usage: &Value) -> Vec<StreamEvent> {
    let delta = |delta: &str| {
        sse::data_event(EventRole::Content, &json!({"type": "transcript.text.delta", "delta": delta}))
    };
    let mut events: Vec<StreamEvent> = split_into_deltas(text).into_iter().map(delta).collect();
    events.push(sse::data_event(
        EventRole::Terminal,
        &json!({"type": "transcript.text.done", "text": text, "usage": usage}),
    ));
    events
}

/// `POST /audio/speech`
pub(super) fn synthesize_speech(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let deployment = request.requested_deployment(body.get("model").and_then(Value::as_str))?;
    let input = body.get("input").and_then(Value::as_str).filter(|input| !input.is_empty());
    let Some(input) = input else {
        return Err(Box::new(invalid_request_error(
            400,
            "Missing required parameter: 'input'.",
            Some("input"),
            None,
        )));
    };
    let prompt_characters = input.len() as u64;
    let cost = RequestCost { prompt_characters, cached_prompt_tokens: 0, max_output_tokens: 0 };
    let admission = request.admit_to_deployment(deployment, cost)?;
    let content_type = match body.get("response_format").and_then(Value::as_str).unwrap_or("mp3") {
        "mp3" => "audio/mpeg",
        "opus" => "audio/ogg",
        "aac" => "audio/aac",
        "flac" => "audio/flac",
        "wav" => "audio/wav",
        "pcm" => "audio/pcm",
        other => {
            return Err(invalid_parameter("response_format", &format!("'{other}' is not an audio format.")));
        }
    };
    // The audio is noise from a hash of the input, in pieces of one KiB.
    let mut seed = fnv1a_hash(0, input.as_bytes());
    let mut next_event = |_| {
        let mut bytes = Vec::with_capacity(BYTES_PER_SPEECH_PIECE);
        while bytes.len() < BYTES_PER_SPEECH_PIECE {
            seed = splitmix64(seed.wrapping_add(1));
            bytes.extend_from_slice(&seed.to_be_bytes());
        }
        StreamEvent { role: EventRole::Content, bytes: Bytes::from(bytes) }
    };
    let events = (0..4 + input.len() / 64).map(&mut next_event).collect();
    Ok(admission.add_headers_and_charge(
        SimulatedResponse::from_events(StreamFormat::Binary, content_type, events),
        count_tokens(input),
        0,
    ))
}
