//! Embeddings: vectors from a hash of the input, so that a text has the same vector on every resource.

use serde_json::{Value, json};

use super::shared::parameters::{positive_integer, unsupported_operation_response};
use super::shared::text_model::count_tokens;
use crate::demo::api::error_response::invalid_parameter;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::resource::definition::SimulatedDeployment;
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
    let embeddings = EmbeddingsRequest::from_body(deployment, &body)?;
    let prompt_characters = embeddings.inputs.iter().map(|input| input.text.len() as u64).sum();
    let cost = RequestCost { prompt_characters, cached_prompt_tokens: 0, max_output_tokens: 0 };
    let admission = request.admit_to_deployment(deployment, cost)?;
    let response = SimulatedResponse::from_json(200, &embeddings.to_json(deployment));
    Ok(admission.add_headers_and_charge(response, embeddings.total_tokens(), 0))
}

/// The response body for one line of a batch.
pub(super) fn embeddings_for_batch_line(
    deployment: &SimulatedDeployment,
    body: &Value,
) -> Result<Value, ErrorResponse> {
    Ok(EmbeddingsRequest::from_body(deployment, body)?.to_json(deployment))
}

/// A checked request for embeddings.
struct EmbeddingsRequest {
    inputs: Vec<EmbeddingInput>,
    dimensions: usize,
    is_base64: bool,
}

impl EmbeddingsRequest {
    fn from_body(deployment: &SimulatedDeployment, body: &Value) -> Result<Self, ErrorResponse> {
        if !deployment.model.contains("embedding") {
            return Err(Box::new(unsupported_operation_response("embeddings", &deployment.model)));
        }
        let inputs = parse_inputs(body)?;
        let is_large = deployment.model.contains("3-large");
        let default = if is_large { DEFAULT_LARGE_DIMENSIONS } else { DEFAULT_DIMENSIONS };
        let dimensions = positive_integer(body, "dimensions")?
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or(default);
        if dimensions > MAX_DIMENSIONS {
            return Err(invalid_parameter("dimensions", "Invalid 'dimensions': too large for this model."));
        }
        let is_base64 = body.get("encoding_format").and_then(Value::as_str) == Some("base64");
        Ok(Self { inputs, dimensions, is_base64 })
    }

    fn total_tokens(&self) -> u64 {
        self.inputs.iter().map(|input| input.token_count).sum()
    }

    fn to_json(&self, deployment: &SimulatedDeployment) -> Value {
        let embedding = |(index, input): (usize, &EmbeddingInput)| {
            let vector = unit_vector_from_text(&input.text, self.dimensions);
            let embedding = if self.is_base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(base64_encode(&bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        };
        let data: Vec<Value> = self.inputs.iter().enumerate().map(embedding).collect();
        let usage = json!({"prompt_tokens": self.total_tokens(), "total_tokens": self.total_tokens()});
        json!({"object": "list", "data": data, "model": deployment.model, "usage": usage})
    }
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
