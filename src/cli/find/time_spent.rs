//! Where the time of a request went, from what its record has of it.

use serde_json::Value;

/// A part of the time of a request, in milliseconds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TimePart {
    pub(super) ms: u64,
    pub(super) text: String,
}

/// The parts of the time of a request, in the order in which they came.
pub(super) fn time_parts(record: &Value) -> Vec<TimePart> {
    let Some(total) = record["duration_ms"].as_u64() else { return Vec::new() };
    let attempts: Vec<&Value> = record["attempts"].as_array().into_iter().flatten().collect();
    let mut parts = Vec::new();
    let mut push = |ms: u64, text: &str| {
        if ms > 0 {
            parts.push(TimePart { ms, text: text.to_owned() });
        }
    };
    push(record["queued_ms"].as_u64().unwrap_or(0), "in the queue");
    push(record["waited_ms"].as_u64().unwrap_or(0), "waits before attempts");
    // The last attempt is the one whose response was sent, if one was.
    let answering = attempts.last().filter(|attempt| {
        !attempt["backend"].is_null()
            && attempt["backend"] == record["backend"]
            && attempt["first_byte_ms"].is_u64()
    });
    let others = attempts.len() - usize::from(answering.is_some());
    let others_ms = attempts.iter().take(others).filter_map(|attempt| attempt["ms"].as_u64()).sum();
    push(others_ms, if others == 1 { "the attempt without an answer" } else { "attempts without an answer" });
    if let Some(attempt) = answering {
        let head = attempt["first_byte_ms"].as_u64().unwrap_or(0);
        push(head, "until the answering backend began to respond (connect, send, first byte)");
        let began = attempt["start_ms"].as_u64().unwrap_or(0) + head;
        match record["first_byte_ms"].as_u64() {
            Some(first_byte) => {
                push(
                    first_byte.saturating_sub(began),
                    "until the first byte of the body was sent to the client",
                );
                push(total.saturating_sub(first_byte), "until the end of the body");
            }
            None => push(total.saturating_sub(began), "until the end"),
        }
    }
    let known: u64 = parts.iter().map(|part| part.ms).sum();
    if total > known {
        let text = "elsewhere: the request's body, and the balancer".to_owned();
        parts.push(TimePart { ms: total - known, text });
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parts(record: &Value) -> Vec<(u64, String)> {
        time_parts(record)
            .into_iter()
            .map(|part| (part.ms, part.text.split(['(', ':']).next().unwrap().trim().to_owned()))
            .collect()
    }

    #[test]
    fn the_parts_are_in_order_and_make_up_the_whole() {
        let began = "until the answering backend began to respond";
        let first_byte = "until the first byte of the body was sent to the client";
        let end = "until the end of the body";
        let attempt = |backend: &str, start: u64, first_byte: Option<u64>, ms: u64| json!({ "backend": backend, "start_ms": start, "first_byte_ms": first_byte, "ms": ms });
        for (record, expected) in [
            (json!({}), vec![]),
            (json!({ "duration_ms": 0, "attempts": [] }), vec![]),
            (json!({ "duration_ms": 7, "attempts": null }), vec![(7, "elsewhere")]),
            (
                json!({ "duration_ms": 1000, "queued_ms": 200, "waited_ms": 50, "first_byte_ms": 420, "backend": "b",
                    "attempts": [attempt("a", 255, Some(20), 30), attempt("b", 290, Some(110), 700)] }),
                vec![
                    (200, "in the queue"),
                    (50, "waits before attempts"),
                    (30, "the attempt without an answer"),
                    (110, began),
                    (20, first_byte),
                    (580, end),
                    (10, "elsewhere"),
                ],
            ),
            // No backend answered.
            (
                json!({ "duration_ms": 100, "queued_ms": 0, "waited_ms": 0, "first_byte_ms": null, "backend": null,
                    "attempts": [attempt("a", 0, None, 40), attempt("b", 40, None, 60)] }),
                vec![(100, "attempts without an answer")],
            ),
            // No body was sent; parts that were cut to whole milliseconds.
            (
                json!({ "duration_ms": 100, "first_byte_ms": null, "backend": "a", "attempts": [attempt("a", 1, Some(99), 99)] }),
                vec![(99, began), (1, "elsewhere")],
            ),
        ] {
            let expected: Vec<(u64, String)> =
                expected.into_iter().map(|(ms, text)| (ms, text.to_owned())).collect();
            assert_eq!(parts(&record), expected, "{record}");
        }
    }
}
