//! Embeddings: vectors made from a hash of the input, so that equal texts are equal everywhere.

use serde_json::{Value, json};

use super::answer::{Answer, Reply};
use super::azure::Call;
use super::chat::{positive, unsupported};
use super::codec::{base64, fingerprint, scramble};
use super::limits::Ask;
use super::refusal::bad_parameter;
use super::text::tokens;

const MOST_INPUTS: usize = 2048;
const MOST_DIMENSIONS: usize = 8192;

/// `POST /embeddings`
pub(super) fn create(call: &Call) -> Reply {
    let body = call.json()?;
    let own = call.deployment(body.get("model").and_then(Value::as_str))?;
    if !own.model.contains("embedding") {
        return Err(Box::new(unsupported("embeddings", &own.model)));
    }
    let inputs = inputs(&body)?;
    let default = if own.model.contains("3-large") { 3072 } else { 1536 };
    let dimensions =
        positive(&body, "dimensions")?.and_then(|count| usize::try_from(count).ok()).unwrap_or(default);
    if dimensions > MOST_DIMENSIONS {
        return Err(bad_parameter("dimensions", "Invalid 'dimensions': too large for this model."));
    }
    let characters = inputs.iter().map(|input| input.text.len() as u64).sum();
    let pass = call.admit(own, Ask { characters, cached: 0, output: 0 })?;
    let packed = body.get("encoding_format").and_then(Value::as_str) == Some("base64");
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = vector(&input.text, dimensions);
            let embedding = if packed {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(base64(&bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let total: u64 = inputs.iter().map(|input| input.tokens).sum();
    let usage = json!({"prompt_tokens": total, "total_tokens": total});
    let answer = json!({"object": "list", "data": data, "model": own.model, "usage": usage});
    Ok(pass.onto(Answer::json(200, &answer), total, 0))
}

struct Input {
    text: String,
    tokens: u64,
}

/// A text, texts, token numbers, or lists of token numbers.
fn inputs(body: &Value) -> Result<Vec<Input>, Box<Answer>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(Input { text: text.clone(), tokens: tokens(text) }),
        Value::Array(numbers) if !numbers.is_empty() && numbers.iter().all(Value::is_u64) => {
            Some(Input { text: value.to_string(), tokens: numbers.len() as u64 })
        }
        _ => None,
    };
    let input = body.get("input").unwrap_or(&Value::Null);
    let inputs = match (one(input), input.as_array()) {
        (Some(single), _) => Some(vec![single]),
        (None, Some(many)) => many.iter().map(one).collect(),
        (None, None) => None,
    };
    inputs
        .filter(|inputs| {
            (1..=MOST_INPUTS).contains(&inputs.len()) && inputs.iter().all(|input| !input.text.is_empty())
        })
        .ok_or_else(|| bad_parameter("input", "'$.input' is invalid. Please check the API reference."))
}

/// A vector of length one.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut seed = fingerprint(0, text.as_bytes());
    let numbers: Vec<f32> = (0..dimensions)
        .map(|_| {
            seed = scramble(seed.wrapping_add(1));
            // The upper 16 bits, between -1 and 1: exact in a float.
            f32::from(u16::try_from(seed >> 48).unwrap_or(0)) / 32768.0 - 1.0
        })
        .collect();
    let norm = numbers.iter().map(|number| number * number).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    numbers.into_iter().map(|number| number / norm).collect()
}
