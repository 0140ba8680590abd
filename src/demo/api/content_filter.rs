//! The annotations of the content filter.

use serde_json::{Value, json};

/// The results of a content filter that found nothing.
pub(in crate::demo) fn passed_filter_results(is_prompt: bool) -> Value {
    let safe = json!({"filtered": false, "severity": "safe"});
    let mut results = json!({"hate": safe, "self_harm": safe, "sexual": safe, "violence": safe});
    if let Some(map) = results.as_object_mut().filter(|_| is_prompt) {
        map.insert("jailbreak".to_owned(), json!({"detected": false, "filtered": false}));
    }
    results
}
