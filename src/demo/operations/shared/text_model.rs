//! Stands in for a language model: counts tokens roughly, and generates a sentence that echoes the prompt.
//!
//! The same prompt gets the same text on every resource.

use serde_json::{Value, json};

use super::schema_document::document_for_schema;
use crate::demo::util::json::text_member;

/// What reasoning costs if a request asks for it.
pub(in crate::demo) const REASONING_TOKENS: u64 = 64;

/// Words are counted exactly up to this many bytes and extrapolated beyond: a prompt may be 100 MiB long.
const MAX_EXACTLY_COUNTED_BYTES: usize = 1024 * 1024;
/// Words of the prompt that the text repeats.
const MAX_ECHOED_WORDS: usize = 40;

/// The tokens of a text, taken as four for every three words.
pub(in crate::demo) fn count_tokens(text: &str) -> u64 {
    let counted = if text.len() > MAX_EXACTLY_COUNTED_BYTES {
        text.get(..floor_char_boundary(text, MAX_EXACTLY_COUNTED_BYTES)).unwrap_or(text)
    } else {
        text
    };
    let words = counted.split_ascii_whitespace().count() as u64;
    let words = if counted.len() == text.len() {
        words
    } else {
        words.saturating_mul(text.len() as u64) / MAX_EXACTLY_COUNTED_BYTES as u64
    };
    (words * 4).div_ceil(3)
}

/// The tokens of a text, or the limit if that is lower.
pub(in crate::demo) fn count_tokens_up_to(text: &str, max_tokens: Option<u64>) -> u64 {
    max_tokens.map_or(count_tokens(text), |limit| count_tokens(text).min(limit))
}

/// The text that is generated for a prompt.
pub(in crate::demo) fn echo_text(prompt: &str) -> String {
    let mut words = prompt.split_whitespace();
    let echoed: Vec<&str> = words.by_ref().take(MAX_ECHOED_WORDS).collect();
    let ellipsis = if words.next().is_some() { " …" } else { "" };
    if echoed.is_empty() {
        "You said nothing, and this is a simulated answer to it.".to_owned()
    } else {
        format!("You said: {}{ellipsis} - and this is a simulated answer to it.", echoed.join(" "))
    }
}

/// The text cut to a token limit, and whether anything was cut off.
pub(in crate::demo) fn truncate_to_tokens(text: &str, max_tokens: Option<u64>) -> (String, bool) {
    let Some(max_tokens) = max_tokens else { return (text.to_owned(), false) };
    if count_tokens(text) <= max_tokens {
        return (text.to_owned(), false);
    }
    let word_count = usize::try_from(max_tokens * 3 / 4).unwrap_or(usize::MAX).max(1);
    let words: Vec<&str> = text.split_ascii_whitespace().take(word_count).collect();
    (words.join(" "), true)
}

/// The pieces in which a stream delivers a text: one word each, with its leading space.
pub(in crate::demo) fn split_into_deltas(text: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = text.match_indices(' ').map(|(index, _)| index).collect();
    starts.insert(0, 0);
    starts.push(text.len());
    starts
        .windows(2)
        .filter_map(|pair| text.get(pair.first().copied()?..pair.get(1).copied()?))
        .filter(|delta| !delta.is_empty())
        .collect()
}

/// A text with the proof that the model knows the earlier turns, if there are any: which turn this is, and how
/// the conversation began.
pub(in crate::demo) fn continued_text(text: String, user_texts: &[String]) -> String {
    match user_texts {
        [first, _, ..] => {
            let words: Vec<&str> = first.split_whitespace().take(MAX_ECHOED_WORDS).collect();
            format!("{text} (Turn {}; you began with: {})", user_texts.len(), words.join(" "))
        }
        _ => text,
    }
}

/// The function that the model calls: the one that `tool_choice` demands, or the first if the prompt says
/// "use the tool". The result has a `name`.
pub(in crate::demo) fn tool_to_call<'b>(body: &'b Value, prompt: &str) -> Option<&'b Value> {
    // Chat completions nest a function under `function`; the Responses API does not.
    let functions: Vec<&Value> = body
        .get("tools")?
        .as_array()?
        .iter()
        .map(|tool| tool.get("function").unwrap_or(tool))
        .filter(|function| text_member(function, "name").is_some())
        .collect();
    let named = |choice: &Value| {
        let name = text_member(choice.get("function").unwrap_or(choice), "name")?;
        functions.iter().copied().find(|function| text_member(function, "name") == Some(name))
    };
    match body.get("tool_choice") {
        Some(Value::String(choice)) if choice == "none" => None,
        Some(Value::String(choice)) if choice == "required" => functions.first().copied(),
        // It may also demand a hosted tool.
        Some(choice @ Value::Object(_)) => match text_member(choice, "type") {
            None | Some("function") => named(choice).or_else(|| functions.first().copied()),
            Some(_) => None,
        },
        _ => {
            prompt.to_ascii_lowercase().contains("use the tool").then(|| functions.first().copied()).flatten()
        }
    }
}

/// The arguments for a function: as its schema demands, or else `{"input": …}`.
pub(in crate::demo) fn function_arguments(function: &Value, prompt: &str) -> String {
    let schema = function.get("parameters");
    let has_properties = |schema: &&Value| schema.pointer("/properties").is_some_and(Value::is_object);
    let document = schema.filter(has_properties).and_then(|schema| document_for_schema(schema, prompt));
    document.unwrap_or_else(|| json!({"input": prompt})).to_string()
}

/// Whether a model thinks before it answers.
pub(in crate::demo) fn is_reasoning_model(model: &str) -> bool {
    let is_of_family = |family: &str| model.starts_with(family);
    ["o1", "o3", "o4", "gpt-5", "gpt-6", "codex"].into_iter().any(is_of_family) && !model.contains("chat")
}

/// The dated name that a model has in responses.
pub(in crate::demo) fn dated_model_name(model: &str) -> String {
    let date = match model {
        "gpt-4o" => "2024-11-20",
        "gpt-4o-mini" => "2024-07-18",
        "gpt-4.1" | "gpt-4.1-mini" | "gpt-4.1-nano" => "2025-04-14",
        "gpt-5" | "gpt-5-mini" | "gpt-5-nano" => "2025-08-07",
        _ => return model.to_owned(),
    };
    format!("{model}-{date}")
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    (0..=index).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_text_fits_the_token_limit() {
        let text = echo_text("hello there");
        for limit in [2, 5, 8] {
            let (truncated, is_truncated) = truncate_to_tokens(&text, Some(limit));
            assert!(is_truncated && count_tokens(&truncated) <= limit, "{limit}: {truncated}");
        }
        assert_eq!(truncate_to_tokens(&text, Some(1000)), (text.clone(), false));
    }

    #[test]
    fn the_deltas_of_a_text_add_up_to_the_text() {
        for text in ["", "one", "one two  three", " lead"] {
            assert_eq!(split_into_deltas(text).concat(), text);
        }
    }

    #[test]
    fn the_tokens_of_large_texts_are_estimated() {
        let text = "word ".repeat(1_000_000);
        let (estimate, exact) = (count_tokens(&text), 1_333_334);
        assert!(estimate.abs_diff(exact) < 2_000, "{estimate}");
    }
}
