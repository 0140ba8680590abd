//! Embeddings: vectors from a hash of the input, so that a text has the same vector on every resource.

use serde_json::{Value, json};

use super::shared::parameters::{positive_integer, unsupported_operation_response};
use super::shared::text_model::count_tokens;
use crate::demo::api::error_response::invalid_parameter;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::resource::rate_limiter::RequestCost;
use crate::demo::util::encoding::base64_encode;
use crate::demo::util::hash::{fnv1a_hash, splitmix64};

const MAX_INPUTS: usize = 2048;
const MAX_DIMENSIONS: usize = 8192;
/// Dimensions of `text-embedding-3-large` if the request does not say.
const DEFAULT_LARGE_DIMENSIONS: usize = 3072;
/// Dimensions of all other models if the request does not say.
const DEFAULT_DIMENSIONS: usize = 1536;

/// `POST /embeddings`
pub(super) fn create_embeddings(request: &SimulatedRequest) -> OperationResult {
    let body = request.json_body()?;
    let deployment = request.requested_deployment(body.get("model").and_then(Value::as_str))?;
    if !deployment.model.contains("embedding") {
        return Err(Box::new(unsupported_operation_response("embeddings", &deployment.model)));
    }
    let inputs = parse_inputs(&body)?;
    let default =
        if deployment.model.contains("3-large") { DEFAULT_LARGE_DIMENSIONS } else { DEFAULT_DIMENSIONS };
    let dimensions = positive_integer(&body, "dimensions")?
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(default);
    if dimensions > MAX_DIMENSIONS {
        return Err(invalid_parameter("dimensions", "Invalid 'dimensions': too large for this model."));
    }
    let prompt_characters = inputs.iter().map(|input| input.text.len() as u64).sum();
    let cost = RequestCost { prompt_characters, cached_prompt_tokens: 0, max_output_tokens: 0 };
    let admission = request.admit_to_deployment(deployment, cost)?;
    let is_base64 = body.get("encoding_format").and_then(Value::as_str) == Some("base64");
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = unit_vector_from_text(&input.text, dimensions);
            let embedding = if is_base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(base64_encode(&bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let total_tokens: u64 = inputs.iter().map(|input| input.token_count).sum();
    let usage = json!({"prompt_tokens": total_tokens, "total_tokens": total_tokens});
    let object = json!({"object": "list", "data": data, "model": deployment.model, "usage": usage});
    Ok(admission.add_headers_and_charge(SimulatedResponse::from_json(200, &object), total_tokens, 0))
}

struct EmbeddingInput {
    text: String,
    token_count: u64,
}

/// `input` is a text, a list of texts, a list of token numbers, or a list of such lists.
fn parse_inputs(body: &Value) -> Result<Vec<EmbeddingInput>, ErrorResponse> {
    let parse_one = |value: &Value| match value {
        Value::String(text) => Some(EmbeddingInput { text: text.clone(), token_count: count_tokens(text) }),
        Value::Array(numbers) if !numbers.is_empty() && numbers.iter().all(Value::is_u64) => {
            Some(EmbeddingInput { text: value.to_string(), token_count: numbers.len() as u64 })
        }
        _ => None,
    };
    let input = body.get("input").unwrap_or(&Value::Null);
    let inputs = match (parse_one(input), input.as_array()) {
        (Some(single), _) => Some(vec![single]),
        (None, Some(list)) => list.iter().map(parse_one).collect(),
        (None, None) => None,
    };
    inputs
        .filter(|inputs| {
            (1..=MAX_INPUTS).contains(&inputs.len()) && inputs.iter().all(|input| !input.text.is_empty())
        })
        .ok_or_else(|| invalid_parameter("input", "'$.input' is invalid. Please check the API reference."))
}

/// A vector of length one.
fn unit_vector_from_text(text: &str, dimensions: usize) -> Vec<f32> {
    let mut seed = fnv1a_hash(0, text.as_bytes());
    let numbers: Vec<f32> = (0..dimensions)
        .map(|_| {
            seed = splitmix64(seed.wrapping_add(1));
            // The upper 16 bits as a number from -1 to 1, which a float represents exactly.
            f32::from(u16::try_from(seed >> 48).unwrap_or(0)) / 32768.0 - 1.0
        })
        .collect();
    let norm = numbers.iter().map(|number| number * number).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    numbers.into_iter().map(|number| number / norm).collect()
}
