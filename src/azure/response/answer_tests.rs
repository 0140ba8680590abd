//! Answers as Azure gives them, and what is gathered from them.

use super::*;
use crate::azure::response::sse::Scanner;
use proptest::prelude::*;

fn stream_with(operation: Operation, limit: usize, events: &[&str], step: usize) -> Answer {
    let mut answer = Answer::new(operation, limit);
    let mut scanner = Scanner::new(10_000);
    let text: String = events.iter().map(|data| format!("data: {data}\n\n")).collect();
    for chunk in text.as_bytes().chunks(step) {
        scanner.feed(chunk, &mut |event| answer.event(&event));
    }
    scanner.finish(&mut |event| answer.event(&event));
    answer
}

fn stream(operation: Operation, events: &[&str]) -> Answer {
    stream_with(operation, 1_000, events, 10_000)
}

fn reply(operation: Operation, body: &str) -> Answer {
    let mut answer = Answer::new(operation, 1_000);
    answer.reply(body.as_bytes());
    answer
}

const CHAT: &[&str] = &[
    r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[]}"#,
    r#"{"choices":[{"delta":{"content":"","refusal":null,"role":"assistant"},"finish_reason":null,"index":0}],"model":"gpt-5"}"#,
    r#"{"choices":[{"delta":{"content":"Hé"},"finish_reason":null,"index":0}],"model":"gpt-5","usage":null}"#,
    r#"{"choices":[{"delta":{"content":"y\n"},"finish_reason":null,"index":0}],"model":"gpt-5"}"#,
    r#"{"choices":[{"delta":{},"finish_reason":"stop","index":0}],"model":"gpt-5"}"#,
    r#"{"choices":[],"model":"gpt-5","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#,
    "[DONE]",
];

#[test]
fn a_chat_stream_is_gathered() {
    let answer = stream(Operation::Chat, CHAT);
    assert_eq!(answer.completion().as_deref(), Some("Héy\n"));
    assert_eq!((answer.model.as_deref(), answer.finish_reason.as_deref()), (Some("gpt-5"), Some("stop")));
    assert_eq!(answer.usage.and_then(|usage| usage.total), Some(3));
    assert_eq!((answer.terminal, answer.failed.as_deref(), answer.is_cut()), (true, None, false));
    let unended = stream(Operation::Chat, &CHAT[..4]);
    assert_eq!((unended.terminal, unended.finish_reason), (false, None));
}

#[test]
fn text_is_cut_at_a_character() {
    let answer = stream_with(Operation::Chat, 2, CHAT, 1);
    assert_eq!((answer.completion().as_deref(), answer.is_cut()), (Some("H"), true));
    let silent = stream_with(Operation::Chat, 0, CHAT, 1);
    assert_eq!((silent.completion(), silent.is_cut()), (None, false));
    assert_eq!(silent.finish_reason.as_deref(), Some("stop"));
}

#[test]
fn tools_refusals_and_several_choices_are_json() {
    let tools = stream(
        Operation::Chat,
        &[
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}},{"index":1,"id":"call_2","function":{"name":"g","arguments":"{}"}}]}}]}"#,
        ],
    );
    let expected = r#"[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"call_2","type":"function","function":{"name":"g","arguments":"{}"}}]"#;
    assert_eq!(tools.completion().as_deref(), Some(expected));
    let two = reply(
        Operation::Chat,
        r#"{"model":"m","choices":[{"index":1,"message":{"content":"b"},"finish_reason":"stop"},{"index":0,"message":{"content":null,"refusal":"no"},"finish_reason":"length"}]}"#,
    );
    assert_eq!(two.completion().as_deref(), Some(r#"["no","b"]"#));
    let both = reply(
        Operation::Chat,
        r#"{"choices":[{"message":{"content":"c","tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]}}]}"#,
    );
    assert_eq!(
        both.completion().as_deref(),
        Some(
            r#"{"content":"c","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}"#
        )
    );
    assert_eq!(
        reply(Operation::Completions, r#"{"choices":[{"text":"abc","index":0}]}"#).completion().as_deref(),
        Some("abc")
    );
}

#[test]
fn a_response_is_gathered_streamed_or_not() {
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
    for answer in [
        stream(Operation::Responses, &all),
        stream(Operation::Responses, &[&end]),
        reply(Operation::Responses, object),
    ] {
        assert_eq!(answer.completion().as_deref(), Some(expected));
        assert_eq!(
            (answer.model.as_deref(), answer.finish_reason.as_deref()),
            (Some("dep"), Some("completed"))
        );
        assert_eq!((answer.terminal, answer.usage.and_then(|usage| usage.input)), (true, Some(11)));
    }
    let unended = stream(Operation::Responses, &events);
    assert_eq!((unended.terminal, unended.has_text()), (false, true));
    let short = stream(
        Operation::Responses,
        &[
            r#"{"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}"#,
        ],
    );
    assert_eq!((short.terminal, short.finish_reason.as_deref()), (true, Some("max_output_tokens")));
}

#[test]
fn failures_have_their_code() {
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
        let answer = stream(operation, &[event]);
        assert_eq!((answer.failed.as_deref(), answer.terminal), (Some(code), terminal), "{event}");
    }
}

#[test]
fn transcriptions_are_text() {
    let usage = r#"{"text":"hello","usage":{"type":"tokens","input_tokens":14,"output_tokens":45,"total_tokens":59}}"#;
    assert_eq!(reply(Operation::Audio, usage).completion().as_deref(), Some("hello"));
    let streamed = stream(
        Operation::Audio,
        &[
            r#"{"type":"transcript.text.delta","delta":"hel"}"#,
            r#"{"type":"transcript.text.delta","delta":"lo"}"#,
            r#"{"type":"transcript.text.done","text":"hello","usage":{"input_tokens":14}}"#,
        ],
    );
    assert_eq!((streamed.completion().as_deref(), streamed.terminal), (Some("hello"), true));
    assert_eq!(streamed.usage.and_then(|usage| usage.input), Some(14));
    let mut plain = Answer::new(Operation::Audio, 3);
    plain.plain_reply("1\n00:00");
    assert_eq!((plain.completion().as_deref(), plain.is_cut()), (Some("1\n0"), true));
}

#[test]
fn oversized_events_are_noted() {
    let mut answer = Answer::new(Operation::Responses, 10);
    let mut event = |name: &'static str| {
        answer.event(&Event { start: 0, end: 1, name: name.as_bytes(), data: b"{", oversized: true });
        (answer.is_cut(), answer.terminal)
    };
    assert_eq!(event("response.created"), (false, false));
    assert_eq!(event("response.completed"), (true, true));
    assert_eq!(event("response.created"), (true, true));
}

proptest! {
    #[test]
    fn splitting_changes_nothing(step in 1_usize..200, limit in 0_usize..10) {
        let whole = stream_with(Operation::Chat, limit, CHAT, 10_000);
        let pieces = stream_with(Operation::Chat, limit, CHAT, step);
        prop_assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    }

    #[test]
    fn nothing_panics_and_the_limit_holds(
        data in "[\\[\\]{}\":,é0-9]{0,40}|\\{\"choices\":\\[\\{\"index\":[0-9]{1,3},\"delta\":\\{\"content\":\"[a-zé]{0,30}\",\"tool_calls\":\\[\\{\"id\":\"é{0,9}\"\\}\\]\\}\\}\\]\\}",
        limit in 0_usize..40,
        responses: bool,
    ) {
        let operation = if responses { Operation::Responses } else { Operation::Chat };
        let mut answer = stream_with(operation, limit, &[&data, &data], 7);
        answer.reply(data.as_bytes());
        prop_assert!(answer.completion().is_none_or(|text| text.len() <= limit));
    }
}
