//! Images: every picture is one transparent pixel.

use serde_json::{Value, json};

use super::answer::{Answer, Flavour, Reply, Role};
use super::azure::Call;
use super::limits::Ask;
use super::live::unix_now;
use super::refusal::bad_parameter;
use super::sse::{self, EVENT_STREAM};
use super::text::tokens;

/// A PNG of one pixel.
const PIXEL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
/// Output tokens of one picture.
const PER_IMAGE: u64 = 1056;

/// `POST /images/generations`
pub(super) fn generate(call: &Call) -> Reply {
    let body = call.json()?;
    let number = |name: &str| body.get(name).and_then(Value::as_u64);
    paint(
        call,
        &Wish {
            model: body.get("model").and_then(Value::as_str).map(str::to_owned),
            prompt: body.get("prompt").and_then(Value::as_str).map(str::to_owned),
            count: number("n").unwrap_or(1),
            partial: number("partial_images").unwrap_or(0),
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            image_tokens: 0,
            event: "image_generation",
        },
    )
}

/// `POST /images/edits`
pub(super) fn edit(call: &Call) -> Reply {
    let form = call.form()?;
    let number = |name: &str| form.text(name).and_then(|text| text.parse().ok());
    let Some(image) = form.part("image") else {
        return Err(bad_parameter("image", "Missing required parameter: 'image'."));
    };
    paint(
        call,
        &Wish {
            model: form.text("model"),
            prompt: form.text("prompt"),
            count: number("n").unwrap_or(1),
            partial: number("partial_images").unwrap_or(0),
            stream: form.text("stream").as_deref() == Some("true"),
            image_tokens: 40 + image.content.len() as u64 / 4096,
            event: "image_edit",
        },
    )
}

struct Wish {
    model: Option<String>,
    prompt: Option<String>,
    count: u64,
    partial: u64,
    stream: bool,
    image_tokens: u64,
    event: &'static str,
}

fn paint(call: &Call, wish: &Wish) -> Reply {
    let own = call.deployment(wish.model.as_deref())?;
    let Some(prompt) = wish.prompt.as_deref().filter(|prompt| !prompt.is_empty()) else {
        return Err(bad_parameter("prompt", "Missing required parameter: 'prompt'."));
    };
    if !(1..=10).contains(&wish.count) {
        return Err(bad_parameter("n", "Invalid 'n': expected a number between 1 and 10."));
    }
    let pass = call.admit(own, Ask { characters: prompt.len() as u64, cached: 0, output: 0 })?;
    let (text, output) = (tokens(prompt), wish.count * PER_IMAGE);
    let input = text + wish.image_tokens;
    let usage = json!({
        "input_tokens": input, "output_tokens": output, "total_tokens": input + output,
        "input_tokens_details": {"image_tokens": wish.image_tokens, "text_tokens": text},
    });
    let created = unix_now();
    let looks =
        json!({"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"});
    let answer = if wish.stream {
        let mut events = Vec::new();
        for index in 0..wish.partial.min(3) {
            let kind = format!("{}.partial_image", wish.event);
            let event =
                json!({"type": kind, "partial_image_index": index, "b64_json": PIXEL, "created_at": created});
            events.push(sse::event(Role::Content, &joined(event, &looks)));
        }
        let kind = format!("{}.completed", wish.event);
        let event = json!({"type": kind, "b64_json": PIXEL, "created_at": created, "usage": usage});
        events.push(sse::event(Role::Terminal, &joined(event, &looks)));
        Answer::stream(Flavour::Responses, EVENT_STREAM, events)
    } else {
        let data: Vec<Value> = (0..wish.count).map(|_| json!({"b64_json": PIXEL})).collect();
        let answer = json!({"created": created, "data": data, "usage": usage});
        Answer::json(200, &joined(answer, &looks))
    };
    Ok(pass.onto(answer, input, output))
}

fn joined(mut value: Value, more: &Value) -> Value {
    if let (Some(map), Some(more)) = (value.as_object_mut(), more.as_object()) {
        map.extend(more.clone());
    }
    value
}
