//! Images: every image is one transparent pixel.

use serde_json::{Value, json};

use super::shared::text_model::count_tokens;
use crate::demo::api::error_response::invalid_parameter;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{EventRole, OperationResult, SimulatedResponse, StreamFormat};
use crate::demo::api::sse::{self, EVENT_STREAM_CONTENT_TYPE};
use crate::demo::resource::rate_limiter::RequestCost;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::merge_objects;

/// A PNG of one transparent pixel, in Base64.
const ONE_PIXEL_PNG_BASE64: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const OUTPUT_TOKENS_PER_IMAGE: u64 = 1056;
const BASE_TOKENS_PER_INPUT_IMAGE: u64 = 40;
const BYTES_PER_INPUT_IMAGE_TOKEN: u64 = 4096;
const MAX_IMAGES: u64 = 10;
const MAX_PARTIAL_IMAGES: u64 = 3;

/// `POST /images/generations`
pub(super) fn generate_images(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let number = |name: &str| body.get(name).and_then(Value::as_u64);
    create_images(
        request,
        &ImageRequest {
            model: body.get("model").and_then(Value::as_str).map(str::to_owned),
            prompt: body.get("prompt").and_then(Value::as_str).map(str::to_owned),
            image_count: number("n").unwrap_or(1),
            partial_image_count: number("partial_images").unwrap_or(0),
            is_streaming: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            input_image_tokens: 0,
            event_type_prefix: "image_generation",
        },
    )
}

/// `POST /images/edits`
pub(super) fn edit_images(request: &SimulatedRequest) -> OperationResult {
    let form = request.multipart_body()?;
    let number = |name: &str| form.text(name).and_then(|text| text.parse().ok());
    let Some(image) = form.part("image") else {
        return Err(invalid_parameter("image", "Missing required parameter: 'image'."));
    };
    create_images(
        request,
        &ImageRequest {
            model: form.text("model"),
            prompt: form.text("prompt"),
            image_count: number("n").unwrap_or(1),
            partial_image_count: number("partial_images").unwrap_or(0),
            is_streaming: form.text("stream").as_deref() == Some("true"),
            input_image_tokens: BASE_TOKENS_PER_INPUT_IMAGE
                + image.content.len() as u64 / BYTES_PER_INPUT_IMAGE_TOKEN,
            event_type_prefix: "image_edit",
        },
    )
}

/// A request for images, from JSON or from a form.
struct ImageRequest {
    model: Option<String>,
    prompt: Option<String>,
    image_count: u64,
    partial_image_count: u64,
    is_streaming: bool,
    input_image_tokens: u64,
    /// `image_generation` or `image_edit`.
    event_type_prefix: &'static str,
}

/// Creates the images, complete or streamed. A stream carries one image and its partial ones.
fn create_images(request: &SimulatedRequest, image_request: &ImageRequest) -> OperationResult {
    let deployment = request.requested_deployment(image_request.model.as_deref())?;
    let Some(prompt) = image_request.prompt.as_deref().filter(|prompt| !prompt.is_empty()) else {
        return Err(invalid_parameter("prompt", "Missing required parameter: 'prompt'."));
    };
    if !(1..=MAX_IMAGES).contains(&image_request.image_count) {
        return Err(invalid_parameter("n", "Invalid 'n': expected a number between 1 and 10."));
    }
    let prompt_characters = prompt.len() as u64;
    let cost = RequestCost { prompt_characters, cached_prompt_tokens: 0, max_output_tokens: 0 };
    let admission = request.admit_to_deployment(deployment, cost)?;
    let text_tokens = count_tokens(prompt);
    let output_tokens = image_request.image_count * OUTPUT_TOKENS_PER_IMAGE;
    let input_tokens = text_tokens + image_request.input_image_tokens;
    let usage = json!({
        "input_tokens": input_tokens, "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "input_tokens_details": {"image_tokens": image_request.input_image_tokens, "text_tokens": text_tokens},
    });
    let created_at = unix_seconds_now();
    let image_properties =
        json!({"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"});
    let response = if image_request.is_streaming {
        let mut events = Vec::new();
        for index in 0..image_request.partial_image_count.min(MAX_PARTIAL_IMAGES) {
            let event_type = format!("{}.partial_image", image_request.event_type_prefix);
            let event = json!({"type": event_type, "partial_image_index": index, "b64_json": ONE_PIXEL_PNG_BASE64, "created_at": created_at});
            events.push(sse::named_event(EventRole::Content, &merge_objects(event, &image_properties)));
        }
        let event_type = format!("{}.completed", image_request.event_type_prefix);
        let event = json!({"type": event_type, "b64_json": ONE_PIXEL_PNG_BASE64, "created_at": created_at, "usage": usage});
        events.push(sse::named_event(EventRole::Terminal, &merge_objects(event, &image_properties)));
        SimulatedResponse::from_events(StreamFormat::Responses, EVENT_STREAM_CONTENT_TYPE, events)
    } else {
        let data: Vec<Value> =
            (0..image_request.image_count).map(|_| json!({"b64_json": ONE_PIXEL_PNG_BASE64})).collect();
        let response = json!({"created": created_at, "data": data, "usage": usage});
        SimulatedResponse::from_json(200, &merge_objects(response, &image_properties))
    };
    Ok(admission.add_headers_and_charge(response, input_tokens, output_tokens))
}
