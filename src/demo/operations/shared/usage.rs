//! The `usage` of completions.

use serde_json::{Map, Value, json};

use crate::demo::resource::prompt_cache::CachedPrompt;

/// `usage` as chat completions and legacy completions report it.
pub(in crate::demo) fn completion_usage(
    input_tokens: u64,
    cached_prompt: CachedPrompt,
    output_tokens: u64,
    reasoning_tokens: u64,
) -> Value {
    let mut prompt_details = input_details(cached_prompt);
    prompt_details.insert("audio_tokens".to_owned(), json!(0));
    json!({
        "prompt_tokens": input_tokens, "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": {
            "reasoning_tokens": reasoning_tokens, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    })
}

/// The details of the input that are about the prompt cache.
pub(in crate::demo) fn input_details(cached_prompt: CachedPrompt) -> Map<String, Value> {
    let mut details = Map::new();
    details.insert("cached_tokens".to_owned(), json!(cached_prompt.cached_tokens));
    if let Some(tokens) = cached_prompt.billed_write_tokens {
        details.insert("cache_write_tokens".to_owned(), json!(tokens));
    }
    details
}
