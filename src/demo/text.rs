//! What a model would do, without a model: counts tokens roughly, and answers with a sentence made of
//! the question, so that the same question has the same answer on every resource.

use serde_json::Value;

/// Words are counted exactly up to here and extrapolated beyond: a prompt may be 100 MiB.
const COUNTED: usize = 1024 * 1024;
/// Words of the question that the answer repeats.
const REPEATED: usize = 40;

/// Tokens of a text, taken as four per three words.
pub(super) fn tokens(text: &str) -> u64 {
    let counted =
        if text.len() > COUNTED { text.get(..floor_boundary(text, COUNTED)).unwrap_or(text) } else { text };
    let words = counted.split_ascii_whitespace().count() as u64;
    let words = if counted.len() == text.len() {
        words
    } else {
        words.saturating_mul(text.len() as u64) / COUNTED as u64
    };
    (words * 4).div_ceil(3)
}

/// The answer to a question.
pub(super) fn echo(question: &str) -> String {
    let mut words = question.split_whitespace();
    let repeated: Vec<&str> = words.by_ref().take(REPEATED).collect();
    let more = if words.next().is_some() { " …" } else { "" };
    if repeated.is_empty() {
        "You said nothing, and this is a simulated answer to it.".to_owned()
    } else {
        format!("You said: {}{more} - and this is a simulated answer to it.", repeated.join(" "))
    }
}

/// The text cut to a token limit, and whether anything was cut off.
pub(super) fn clip(text: &str, limit: Option<u64>) -> (String, bool) {
    let Some(limit) = limit else { return (text.to_owned(), false) };
    if tokens(text) <= limit {
        return (text.to_owned(), false);
    }
    let words = usize::try_from(limit * 3 / 4).unwrap_or(usize::MAX).max(1);
    let kept: Vec<&str> = text.split_ascii_whitespace().take(words).collect();
    (kept.join(" "), true)
}

/// The text as a stream would deliver it: word by word, spaces leading.
pub(super) fn deltas(text: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = text.match_indices(' ').map(|(at, _)| at).collect();
    starts.insert(0, 0);
    starts.push(text.len());
    starts
        .windows(2)
        .filter_map(|pair| text.get(pair.first().copied()?..pair.get(1).copied()?))
        .filter(|delta| !delta.is_empty())
        .collect()
}

/// The text of a message's `content`: a string, or a list of parts.
pub(super) fn content(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> =
                parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect();
            texts.join(" ")
        }
        _ => String::new(),
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clipped_answer_fits_its_limit() {
        let text = echo("hello there");
        for limit in [2, 5, 8] {
            let (kept, cut) = clip(&text, Some(limit));
            assert!(cut && tokens(&kept) <= limit, "{limit}: {kept}");
        }
        assert_eq!(clip(&text, Some(1000)), (text.clone(), false));
    }

    #[test]
    fn deltas_put_together_are_the_text() {
        for text in ["", "one", "one two  three", " lead"] {
            assert_eq!(deltas(text).concat(), text);
        }
    }

    #[test]
    fn large_texts_are_estimated() {
        let text = "word ".repeat(1_000_000);
        let (estimate, exact) = (tokens(&text), 1_333_334);
        assert!(estimate.abs_diff(exact) < 2_000, "{estimate}");
    }
}
