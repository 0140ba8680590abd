//! Responses as Azure sends them, and what is captured from them.

use super::*;
use crate::azure::response::sse::EventScanner;
use proptest::prelude::*;

fn capture_stream_with(operation: Operation, limit: usize, events: &[&str], step: usize) -> ResponseCapture {
    let mut capture = ResponseCapture::new(operation, limit);
    let mut scanner = EventScanner::new(10_000);
    let text: String = events.iter().map(|data| format!("data: {data}\n\n")).collect();
    for chunk in text.as_bytes().chunks(step) {
        scanner.feed(chunk, &mut |event| capture.capture_event(&event));
    }
    scanner.finish(&mut |event| capture.capture_event(&event));
    capture
}

fn capture_stream(operation: Operation, events: &[&str]) -> ResponseCapture {
    capture_stream_with(operation, 1_000, events, 10_000)
}

fn capture_body(operation: Operation, body: &str) -> ResponseCapture {
    let mut capture = ResponseCapture::new(operation, 1_000);
    capture.capture_json_body(body.as_bytes());
    capture
}

const CHAT_EVENTS: &[&str] = &[
    r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[]}"#,
    r#"{"choices":[{"delta":{"content":"","refusal":null,"role":"assistant"},"finish_reason":null,"index":0}],"model":"gpt-5"}"#,
    r#"{"choices":[{"delta":{"content":"Hé"},"finish_reason":null,"index":0}],"model":"gpt-5","usage":null}"#,
    r#"{"choices":[{"delta":{"content":"y\n"},"finish_reason":null,"index":0}],"model":"gpt-5"}"#,
    r#"{"choices":[{"delta":{},"finish_reason":"stop","index":0}],"model":"gpt-5"}"#,
    r#"{"choices":[],"model":"gpt-5","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#,
    "[DONE]",
];

#[test]
fn a_chat_stream_is_captured() {
    let capture = capture_stream(Operation::Chat, CHAT_EVENTS);
    assert_eq!(capture.completion_text().as_deref(), Some("Héy\n"));
    assert_eq!((capture.model.as_deref(), capture.finish_reason.as_deref()), (Some("gpt-5"), Some("stop")));
    assert_eq!(capture.usage.and_then(|usage| usage.total), Some(3));
    assert_eq!(
        (capture.is_response_complete, capture.error_code.as_deref(), capture.is_text_truncated()),
        (true, None, false)
    );
    let unfinished = capture_stream(Operation::Chat, &CHAT_EVENTS[..4]);
    assert_eq!((unfinished.is_response_complete, unfinished.finish_reason), (false, None));
}

#[test]
fn text_is_truncated_at_a_character_boundary() {
    let capture = capture_stream_with(Operation::Chat, 2, CHAT_EVENTS, 1);
    assert_eq!((capture.completion_text().as_deref(), capture.is_text_truncated()), (Some("H"), true));
    let silent = capture_stream_with(Operation::Chat, 0, CHAT_EVENTS, 1);
    assert_eq!((silent.completion_text(), silent.is_text_truncated()), (None, false));
    assert_eq!(silent.finish_reason.as_deref(), Some("stop"));
}

#[test]
fn tool_calls_refusals_and_several_choices_become_json() {
    let tools = capture_stream(
        Operation::Chat,
        &[
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}},{"index":1,"id":"call_2","function":{"name":"g","arguments":"{}"}}]}}]}"#,
        ],
    );
    let expected = r#"[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"call_2","type":"function","function":{"name":"g","arguments":"{}"}}]"#;
    assert_eq!(tools.completion_text().as_deref(), Some(expected));
    let two = capture_body(
        Operation::Chat,
        r#"{"model":"m","choices":[{"index":1,"message":{"content":"b"},"finish_reason":"stop"},{"index":0,"message":{"content":null,"refusal":"no"},"finish_reason":"length"}]}"#,
    );
    assert_eq!(two.completion_text().as_deref(), Some(r#"["no","b"]"#));
    let both = capture_body(
        Operation::Chat,
        r#"{"choices":[{"message":{"content":"c","tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]}}]}"#,
    );
    assert_eq!(
        both.completion_text().as_deref(),
        Some(
            r#"{"content":"c","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}"#
        )
    );
    assert_eq!(
        capture_body(Operation::Completions, r#"{"choices":[{"text":"abc","index":0}]}"#)
            .completion_text()
            .as_deref(),
        Some("abc")
    );
}

#[test]
fn responses_api_output_is_captured_streamed_or_not() {
    let events = [
        r#"{"type":"response.created","response":{"model":"dep","status":"in_progress","usage":null}}"#,
        r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"Hel"}"#,
        r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"lo"}"#,
        r#"{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"Bye"}"#,
        r#"{"type":"response.output_item.added","output_index":2,"item":{"type":"function_call","call_id":"call_1","name":"f","arguments":""}}"#,
        r#"{"type":"response.function_call_arguments.delta","output_index":2,"delta":"{}"}"#,
        r#"{"type":"response.output_item.done","output_index":2,"item":{"type":"function_call","call_id":"call_1","name":"f","arguments":"{}"}}"#,
    ];
    let object = r#"{"model":"dep","status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"Hello"}]},{"type":"message","content":[{"type":"output_text","text":"Bye"}]},{"type":"function_call","call_id":"call_1","name":"f","arguments":"{}"}],"usage":{"input_tokens":11,"output_tokens":12,"total_tokens":23}}"#;
    let end = format!(r#"{{"type":"response.completed","response":{object}}}"#);
    let all: Vec<&str> = events.iter().copied().chain([end.as_str()]).collect();
    let expected = r#"{"content":"Hello\nBye","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}}]}"#;
    for capture in [
        capture_stream(Operation::Responses, &all),
        capture_stream(Operation::Responses, &[&end]),
        capture_body(Operation::Responses, object),
    ] {
        assert_eq!(capture.completion_text().as_deref(), Some(expected));
        assert_eq!(
            (capture.model.as_deref(), capture.finish_reason.as_deref()),
            (Some("dep"), Some("completed"))
        );
        assert_eq!(
            (capture.is_response_complete, capture.usage.and_then(|usage| usage.input)),
            (true, Some(11))
        );
    }
    let unfinished = capture_stream(Operation::Responses, &events);
    assert_eq!((unfinished.is_response_complete, unfinished.has_text()), (false, true));
    let short = capture_stream(
        Operation::Responses,
        &[
            r#"{"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}"#,
        ],
    );
    assert_eq!(
        (short.is_response_complete, short.finish_reason.as_deref()),
        (true, Some("max_output_tokens"))
    );
}

#[test]
fn the_service_tier_is_that_which_served_the_request() {
    let created = r#"{"type":"response.created","response":{"model":"m","service_tier":"auto"}}"#;
    let asked = r#"{"type":"response.in_progress","response":{"model":"m","service_tier":"priority"}}"#;
    let completed =
        r#"{"type":"response.completed","response":{"status":"completed","service_tier":"default"}}"#;
    let long = format!(
        r#"{{"type":"response.completed","response":{{"instructions":"{}","service_tier":"flex"}}}}"#,
        "A".repeat(20_000)
    );
    let first = r#"{"choices":[],"model":""}"#;
    let chunk = r#"{"choices":[{"delta":{"content":"a"},"index":0}],"service_tier":"flex"}"#;
    let unknown = r#"{"choices":[],"service_tier":null}"#;
    let rows: [(Operation, &[&str], Option<&str>); 8] = [
        (Operation::Responses, &[created, asked, completed], Some("default")),
        (Operation::Responses, &[created, asked], None),
        (Operation::Responses, &[&long], Some("flex")),
        (Operation::Chat, &[first, chunk, unknown], Some("flex")),
        (Operation::Chat, &[first, unknown], None),
        (Operation::Chat, &[r#"{"choices":[],"service_tier":"auto"}"#], None),
        (Operation::Chat, &[r#"{"choices":[],"service_tier":["flex"]}"#], None),
        (Operation::Chat, &[chunk, r#"{"choices":[],"service_tier":"default"}"#], Some("default")),
    ];
    for (operation, events, expected) in rows {
        let capture = capture_stream(operation, events);
        assert_eq!(capture.service_tier.as_deref(), expected, "{events:.100?}");
    }
    for (operation, body, expected) in [
        (Operation::Chat, r#"{"choices":[{"message":{}}],"service_tier":"priority"}"#, Some("priority")),
        (
            Operation::Responses,
            r#"{"object":"response","status":"completed","service_tier":"flex"}"#,
            Some("flex"),
        ),
        (Operation::Responses, r#"{"object":"response","status":"queued","service_tier":"auto"}"#, None),
    ] {
        assert_eq!(capture_body(operation, body).service_tier.as_deref(), expected, "{body}");
    }
}

#[test]
fn failures_are_recorded_with_their_code() {
    let rows = [
        (
            Operation::Responses,
            r#"{"type":"error","error":{"type":"too_many_requests","code":"rate_limit_exceeded"}}"#,
            "rate_limit_exceeded",
            true,
        ),
        (
            Operation::Responses,
            r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error"}}}"#,
            "server_error",
            true,
        ),
        (
            Operation::Responses,
            r#"{"type":"response.failed","response":{"status":"failed","error":null}}"#,
            "error",
            true,
        ),
        (
            Operation::Chat,
            r#"{"error":{"message":"x","type":"server_error","code":null}}"#,
            "server_error",
            false,
        ),
    ];
    for (operation, event, code, terminal) in rows {
        let capture = capture_stream(operation, &[event]);
        assert_eq!(
            (capture.error_code.as_deref(), capture.is_response_complete),
            (Some(code), terminal),
            "{event}"
        );
    }
}

#[test]
fn transcriptions_are_captured_as_text() {
    let usage = r#"{"text":"hello","usage":{"type":"tokens","input_tokens":14,"output_tokens":45,"total_tokens":59}}"#;
    assert_eq!(capture_body(Operation::Audio, usage).completion_text().as_deref(), Some("hello"));
    let streamed = capture_stream(
        Operation::Audio,
        &[
            r#"{"type":"transcript.text.delta","delta":"hel"}"#,
            r#"{"type":"transcript.text.delta","delta":"lo"}"#,
            r#"{"type":"transcript.text.done","text":"hello","usage":{"input_tokens":14}}"#,
        ],
    );
    assert_eq!((streamed.completion_text().as_deref(), streamed.is_response_complete), (Some("hello"), true));
    assert_eq!(streamed.usage.and_then(|usage| usage.input), Some(14));
    let mut plain = ResponseCapture::new(Operation::Audio, 3);
    plain.capture_text_body("1\n00:00");
    assert_eq!((plain.completion_text().as_deref(), plain.is_text_truncated()), (Some("1\n0"), true));
}

#[test]
fn oversized_events_are_captured_without_their_text() {
    let picture = "A".repeat(20_000);
    let image = format!(
        r#"{{"type":"image_generation.completed","b64_json":"{picture}","usage":{{"input_tokens":50,"output_tokens":4160}}}}"#
    );
    let images = capture_stream(Operation::Images, &[&image]);
    let tokens = images.usage.map(|usage| (usage.input, usage.output));
    assert_eq!(tokens, Some((Some(50), Some(4160))));
    assert_eq!((images.is_response_complete, images.is_text_truncated()), (true, false));

    let event = |event_type: &str, rest: &str| {
        format!(
            r#"{{"type":"{event_type}","response":{{"instructions":"{picture}","model":"dep",{rest},"tools":[{{"model":"x"}}]}}}}"#
        )
    };
    let created = event("response.created", r#""status":"in_progress""#);
    let completed = event("response.completed", r#""status":"completed","usage":{"input_tokens":7}"#);
    let failed = event("response.failed", r#""error":{"code":"server_error"}"#);
    let delta = r#"{"type":"response.output_text.delta","delta":"hi"}"#;
    for (events, is_truncated, is_complete, input, code) in [
        (&[&created[..]][..], false, false, None, None),
        (&[&created, delta, &completed], false, true, Some(7), None),
        (&[&completed], true, true, Some(7), None),
        (&[&created, &failed], true, true, None, Some("server_error")),
        (
            &[&format!(r#"{{"type":"response.output_text.delta","delta":"{picture}"}}"#)],
            true,
            false,
            None,
            None,
        ),
    ] {
        let capture = capture_stream(Operation::Responses, events);
        let usage = capture.usage.and_then(|usage| usage.input);
        assert_eq!((capture.is_text_truncated(), capture.is_response_complete), (is_truncated, is_complete));
        assert_eq!((usage, capture.error_code.as_deref()), (input, code));
        assert!(capture.model.is_none_or(|model| model == "dep"));
    }
}

#[test]
fn a_character_split_over_deltas_is_joined() {
    let chat = |index: u64, content: &str| {
        format!(r#"{{"choices":[{{"index":{index},"delta":{{"content":"{content}"}}}}]}}"#)
    };
    let part = |content_index: u64, delta: &str| {
        format!(
            r#"{{"type":"response.output_text.delta","output_index":0,"content_index":{content_index},"delta":"{delta}"}}"#
        )
    };
    let tool = |arguments: &str| {
        format!(
            r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"index":0,"function":{{"arguments":"{arguments}"}}}}]}}}}]}}"#
        )
    };
    let rows: &[(Operation, &[String], &str)] = &[
        (Operation::Chat, &[chat(0, r"a \ud83d"), chat(0, r"\ude00 b")], "a 😀 b"),
        (Operation::Chat, &[chat(0, r"a \ud83d"), chat(0, " b")], "a \u{fffd} b"),
        (Operation::Chat, &[chat(0, r"a \ud83d")], "a \u{fffd}"),
        (Operation::Chat, &[chat(0, r"\ud83d")], "\u{fffd}"),
        (Operation::Chat, &[chat(0, r"\ude00 b")], "\u{fffd} b"),
        // Each text keeps its own half.
        (
            Operation::Chat,
            &[chat(0, r"a\ud83d"), chat(1, r"b\ud83d"), chat(0, r"\ude00"), chat(1, r"\ude01")],
            r#"["a😀","b😁"]"#,
        ),
        (
            Operation::Chat,
            &[tool(r#"{\"a\":\"\ud83d"#), tool(r#"\ude00\"}"#)],
            r#"[{"type":"function","function":{"name":"","arguments":"{\"a\":\"😀\"}"}}]"#,
        ),
        (Operation::Responses, &[part(0, r"a\ud83d"), part(0, r"\ude00")], "a😀"),
        (Operation::Responses, &[part(0, r"a\ud83d"), part(1, r"\ude00")], "a\u{fffd}\n\u{fffd}"),
    ];
    for (operation, events, expected) in rows {
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        assert_eq!(capture_stream(*operation, &events).completion_text().as_deref(), Some(*expected));
    }
}

#[test]
fn bytes_that_are_not_utf8_cost_no_other_text() {
    let chunk = b"{\"choices\":[{\"delta\":{\"content\":\"a\xffb\"}}],\"usage\":{\"prompt_tokens\":1}}";
    for (operation, data, expected) in [
        (Operation::Chat, &chunk[..], "a\u{fffd}b"),
        (
            Operation::Responses,
            b"{\"type\":\"response.output_text.delta\",\"delta\":\"\xe2\x82\"}",
            "\u{fffd}",
        ),
    ] {
        let mut capture = ResponseCapture::new(operation, 100);
        let event = SseEvent {
            start_offset: 0,
            end_offset: 0,
            name: b"",
            data,
            is_oversized: false,
            oversized_ids: None,
        };
        capture.capture_event(&event);
        assert_eq!(capture.completion_text().as_deref(), Some(expected));
    }
    let mut body = ResponseCapture::new(Operation::Chat, 100);
    body.capture_json_body(chunk);
    assert_eq!(body.completion_text().as_deref(), Some("a\u{fffd}b"));
    assert_eq!(body.usage.and_then(|usage| usage.input), Some(1));
}

#[test]
fn the_places_are_known_where_text_was_cut() {
    let chat = |index: u64, content: &str| {
        format!(r#"{{"choices":[{{"index":{index},"delta":{{"content":"{content}"}}}}]}}"#)
    };
    let cuts = |limit, events: &[String]| {
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let capture = capture_stream_with(Operation::Chat, limit, &events, 100);
        capture.completion_text_with_cuts().map(|completion| (completion.text, completion.cut_ends)).unwrap()
    };
    assert_eq!(cuts(4, &[chat(0, "abc")]), ("abc".into(), vec![]));
    assert_eq!(cuts(4, &[chat(0, "abcde")]), ("abcd".into(), vec![4]));
    assert_eq!(cuts(3, &[chat(0, "abc"), chat(0, "d")]), ("abc".into(), vec![3]));
    let several = [chat(0, r"a\n"), chat(1, "bb"), chat(1, &"c".repeat(20)), chat(0, "d")];
    assert_eq!(cuts(24, &several), (r#"["a\n","bbcccccccccccccc"#.into(), vec![5]));
}

proptest! {
    #[test]
    fn chunk_boundaries_change_nothing(step in 1_usize..200, limit in 0_usize..10) {
        let whole = capture_stream_with(Operation::Chat, limit, CHAT_EVENTS, 10_000);
        let pieces = capture_stream_with(Operation::Chat, limit, CHAT_EVENTS, step);
        prop_assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    }

    #[test]
    fn arbitrary_events_never_panic_or_exceed_the_limit(
        data in "[\\[\\]{}\":,é0-9]{0,40}|\\{\"choices\":\\[\\{\"index\":[0-9]{1,3},\"delta\":\\{\"content\":\"[a-zé]{0,30}\",\"tool_calls\":\\[\\{\"id\":\"é{0,9}\"\\}\\]\\}\\}\\]\\}",
        limit in 0_usize..40,
        responses: bool,
    ) {
        let operation = if responses { Operation::Responses } else { Operation::Chat };
        let mut capture = capture_stream_with(operation, limit, &[&data, &data], 7);
        capture.capture_json_body(data.as_bytes());
        prop_assert!(capture.completion_text().is_none_or(|text| text.len() <= limit));
    }
}
