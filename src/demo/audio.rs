//! Audio: transcription and translation of uploads, and speech as bytes that only look like MP3.

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Flavour, Piece, Reply, Role};
use super::azure::Call;
use super::codec::{fingerprint, scramble};
use super::limits::Ask;
use super::multipart::Form;
use super::refusal::{bad_parameter, invalid};
use super::sse::{self, EVENT_STREAM};
use super::text::{deltas, tokens};

/// Bytes of audio that count as one token.
const BYTES_PER_TOKEN: usize = 1600;
/// Bytes of audio in one second (16 kHz, 16 bit).
const BYTES_PER_SECOND: f64 = 32_000.0;

/// `POST /audio/transcriptions`
pub(super) fn transcribe(call: &Call) -> Reply {
    let form = call.form()?;
    listen(call, &form, "transcription")
}

/// `POST /audio/translations`
pub(super) fn translate(call: &Call) -> Reply {
    let form = call.form()?;
    listen(call, &form, "translation")
}

fn listen(call: &Call, form: &Form, what: &str) -> Reply {
    let own = call.deployment(form.text("model").as_deref())?;
    let Some(file) = form.part("file") else {
        return Err(bad_parameter("file", "Missing required parameter: 'file'."));
    };
    let audio_tokens = file.content.len().div_ceil(BYTES_PER_TOKEN) as u64;
    let pass = call.admit(own, Ask { characters: audio_tokens * 4, cached: 0, output: 0 })?;
    let filename = file.filename.as_deref().unwrap_or("audio");
    let text = format!("A simulated {what} of {filename}, {} bytes long.", file.content.len());
    let seconds = file.content.len() as f64 / BYTES_PER_SECOND;
    let output = tokens(&text);
    // Older models are billed by duration and report no tokens.
    let usage = if own.model.starts_with("whisper") {
        json!({"type": "duration", "seconds": seconds.ceil()})
    } else {
        json!({
            "type": "tokens", "input_tokens": audio_tokens, "output_tokens": output, "total_tokens": audio_tokens + output,
            "input_token_details": {"audio_tokens": audio_tokens, "text_tokens": 0},
        })
    };
    let answer = match form.text("response_format").as_deref().unwrap_or("json") {
        _ if form.text("stream").as_deref() == Some("true") => {
            Answer::stream(Flavour::Responses, EVENT_STREAM, spoken_events(&text, &usage))
        }
        "text" => Answer::whole(200, "text/plain; charset=utf-8", format!("{text}\n")),
        "srt" => Answer::whole(
            200,
            "text/plain; charset=utf-8",
            format!("1\n00:00:00,000 --> 00:00:01,000\n{text}\n\n"),
        ),
        "vtt" => Answer::whole(
            200,
            "text/plain; charset=utf-8",
            format!("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n{text}\n\n"),
        ),
        "verbose_json" => Answer::json(
            200,
            &json!({
                "task": what, "language": "english", "duration": seconds, "text": text, "usage": usage,
                "segments": [{
                    "id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": text, "tokens": [], "temperature": 0.0,
                    "avg_logprob": -0.2, "compression_ratio": 1.0, "no_speech_prob": 0.0,
                }],
            }),
        ),
        "json" => Answer::json(200, &json!({"text": text, "usage": usage})),
        other => {
            return Err(bad_parameter(
                "response_format",
                &format!("'{other}' is not one of the response formats."),
            ));
        }
    };
    Ok(pass.onto(answer, audio_tokens, output))
}

fn spoken_events(text: &str, usage: &Value) -> Vec<Piece> {
    let delta =
        |delta: &str| sse::data(Role::Content, &json!({"type": "transcript.text.delta", "delta": delta}));
    let mut events: Vec<Piece> = deltas(text).into_iter().map(delta).collect();
    events.push(sse::data(
        Role::Terminal,
        &json!({"type": "transcript.text.done", "text": text, "usage": usage}),
    ));
    events
}

/// `POST /audio/speech`
pub(super) fn speak(call: &Call) -> Reply {
    let body = call.json()?;
    let own = call.deployment(body.get("model").and_then(Value::as_str))?;
    let input = body.get("input").and_then(Value::as_str).filter(|input| !input.is_empty());
    let Some(input) = input else {
        return Err(Box::new(invalid(400, "Missing required parameter: 'input'.", Some("input"), None)));
    };
    let pass = call.admit(own, Ask { characters: input.len() as u64, cached: 0, output: 0 })?;
    let content_type = match body.get("response_format").and_then(Value::as_str).unwrap_or("mp3") {
        "mp3" => "audio/mpeg",
        "opus" => "audio/ogg",
        "aac" => "audio/aac",
        "flac" => "audio/flac",
        "wav" => "audio/wav",
        "pcm" => "audio/pcm",
        other => return Err(bad_parameter("response_format", &format!("'{other}' is not an audio format."))),
    };
    let mut seed = fingerprint(0, input.as_bytes());
    let mut piece = |_| {
        let mut bytes = Vec::with_capacity(1024);
        while bytes.len() < 1024 {
            seed = scramble(seed.wrapping_add(1));
            bytes.extend_from_slice(&seed.to_be_bytes());
        }
        Piece { role: Role::Content, bytes: Bytes::from(bytes) }
    };
    let pieces = (0..4 + input.len() / 64).map(&mut piece).collect();
    Ok(pass.onto(Answer::stream(Flavour::Binary, content_type, pieces), tokens(input), 0))
}
