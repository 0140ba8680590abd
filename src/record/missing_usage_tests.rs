use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::azure::parse_target;
use crate::azure::response::collected_body::CollectedBody;
use crate::azure::response::sse::SseEvent;
use crate::record::exchange::CapturedRequest;
use crate::record::testing::answered_exchange;
use ExchangeOutcome::{Answered, ClientGone, Failed, Refused};
use UsageMissing::{Audio, BrokenOff, EncodingUnknown, Image, NotTold};

const POLICY: CapturePolicy = CapturePolicy {
    captures_prompt: false,
    captures_completion: false,
    max_text_bytes: 1024,
    max_buffered_text_bytes: 1024,
    estimates_tokens: true,
};
const CHAT: &str = "/openai/deployments/gpt-4o/chat/completions";
const HELLO: &str = r#"{"messages":[{"role":"user","content":"say hello"}]}"#;
/// The tokens of [`HELLO`].
const HELLO_TOKENS: u64 = 2 + 4 + 3;
const REPLY: &str = r#"{"choices":[{"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"model":"gpt-4o"}"#;

fn exchange(path: &str, body: &str) -> FinishedExchange {
    FinishedExchange {
        target: Some(Arc::new(parse_target(path.as_bytes(), false).unwrap())),
        requested_deployment: Some(DeploymentName::parse("gpt-4o").unwrap()),
        captured_request: Some(CapturedRequest {
            body: Bytes::copy_from_slice(body.as_bytes()),
            content_type: "application/json".to_owned(),
            prompt_parts: None,
        }),
        ..answered_exchange()
    }
}

fn reply(json: &str) -> CapturedResponse {
    let mut body = CollectedBody::new(1024 * 1024);
    body.append(json.as_bytes());
    CapturedResponse::Buffered { has_usage: body.has_usage(), body, is_json: true }
}

fn stream(operation: Operation, events: &[&str]) -> CapturedResponse {
    let mut capture = Box::new(ResponseCapture::new(operation, 64 * 1024));
    for event in events {
        capture.capture_event(&SseEvent::from_message(event.as_bytes()));
    }
    CapturedResponse::Parsed(capture)
}

/// The tokens of an exchange, or why there are none, after all steps to its record.
fn tokens_of(mut exchange: FinishedExchange) -> (Option<(u64, u64)>, Option<UsageMissing>) {
    exchange.shorten_content(POLICY, |_| None);
    if exchange.needs_token_estimate(POLICY) {
        exchange.prepare_content(POLICY, &Default::default(), &mut TokenEstimator::default(), 64 * 1024);
        assert!(!exchange.needs_token_estimate(POLICY), "it is tried once");
    }
    let usage = match &exchange.captured_response {
        CapturedResponse::Parsed(capture) => capture.usage,
        _ => None,
    };
    let missing = exchange.why_usage_is_missing(usage.as_ref());
    (usage.map(|usage| (usage.input.unwrap_or_default(), usage.output.unwrap_or_default())), missing)
}

#[test]
fn tokens_without_reported_usage_are_counted_or_the_record_says_why_not() {
    let delta = |text: &str| {
        format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}],"model":"gpt-4o"}}"#)
    };
    let stop = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"model":"gpt-4o"}"#;
    let chat = |events: &[&str]| stream(Operation::Chat, events);
    let counted = |output| (Some((HELLO_TOKENS, output)), None);
    let call_name = r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_abcdefgh","function":{"name":"get_weather","arguments":""}}]}}],"model":"gpt-4o"}"#;
    let call_arguments = r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":\"Paris\"}"}}]}}],"model":"gpt-4o"}"#;
    for (name, outcome, response, expected) in [
        ("a stream", Answered, chat(&[&delta("hel"), &delta("lo"), stop, "[DONE]"]), counted(1)),
        // A grinning face, which is one token.
        ("halves", Answered, chat(&[&delta("\\ud83d"), &delta("\\ude00"), stop, "[DONE]"]), counted(1)),
        ("tool calls", Answered, chat(&[call_name, call_arguments, stop, "[DONE]"]), counted(2 + 5)),
        ("no text", Answered, chat(&[stop, "[DONE]"]), counted(0)),
        ("no choice", Answered, chat(&["[DONE]"]), (None, Some(NotTold))),
        ("broken off", Failed, chat(&[&delta("hello")]), counted(1)),
        (
            "broken off at once",
            Failed,
            chat(&[r#"{"choices":[{"index":0,"delta":{"role":"assistant"}}]}"#]),
            (None, Some(BrokenOff)),
        ),
        ("left", ClientGone, chat(&[]), (None, Some(BrokenOff))),
        ("a reply", Answered, reply(REPLY), counted(1)),
        (
            "usage without counts",
            Answered,
            reply(&REPLY.replace("\"model\"", "\"usage\":{},\"model\"")),
            (None, Some(NotTold)),
        ),
        ("usage null", Answered, reply(&REPLY.replace("\"model\"", "\"usage\":null,\"model\"")), counted(1)),
        ("half a reply", Failed, reply(&REPLY[..60]), (None, Some(BrokenOff))),
        ("another object", Answered, reply("{}"), (None, Some(NotTold))),
        ("another model", Answered, reply(&REPLY.replace("gpt-4o", "phi-4")), (None, Some(EncodingUnknown))),
        ("nothing", Answered, CapturedResponse::NotCaptured, (None, Some(NotTold))),
        ("a refusal", Refused, CapturedResponse::NotCaptured, (None, None)),
    ] {
        let exchange = FinishedExchange { outcome, captured_response: response, ..exchange(CHAT, HELLO) };
        assert_eq!(tokens_of(exchange), expected, "{name}");
    }
}

#[test]
fn the_tokens_of_each_api_are_counted() {
    let created =
        r#"{"type":"response.created","response":{"id":"resp_1","status":"in_progress","model":"gpt-4o"}}"#;
    let delta = r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"hello"}"#;
    let call = r#"{"type":"response.output_item.done","output_index":1,"item":{"type":"function_call","call_id":"call_1","name":"get_weather","arguments":"{\"city\":\"Paris\"}"}}"#;
    let completed =
        r#"{"type":"response.completed","response":{"id":"resp_1","status":"completed","model":"gpt-4o"}}"#;
    let embedding = r#"{"object":"list","data":[{"embedding":[0.1]}],"model":"text-embedding-3-small"}"#;
    let picture =
        r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}"#;
    let low = picture.replace("https://x\"", "https://x\",\"detail\":\"low\"");
    let sound =
        r#"{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"AA"}}]}]}"#;
    let responses = "/openai/v1/responses";
    let input = r#"{"model":"gpt-4o","input":"say hello"}"#;
    for (path, body, response, expected) in [
        (
            responses,
            input,
            stream(Operation::Responses, &[created, delta, call, completed]),
            (Some((9, 1 + 2 + 5)), None),
        ),
        (
            responses,
            input,
            reply(
                r#"{"id":"resp_1","status":"completed","model":"gpt-4o","output":[{"type":"message","content":[{"type":"output_text","text":"hello"}]}]}"#,
            ),
            (Some((9, 1)), None),
        ),
        // Its usage is reported when it has ended.
        (
            responses,
            input,
            reply(r#"{"id":"resp_1","status":"queued","output":[],"usage":null}"#),
            (None, Some(NotTold)),
        ),
        (
            "/openai/deployments/gpt-4o/completions",
            r#"{"prompt":"say hello"}"#,
            reply(
                r#"{"choices":[{"text":" and hello","finish_reason":"stop"}],"model":"gpt-35-turbo-instruct"}"#,
            ),
            (Some((2, 2)), None),
        ),
        (
            "/openai/deployments/e/embeddings",
            r#"{"input":["say hello","x"]}"#,
            reply(embedding),
            (Some((3, 0)), None),
        ),
        (CHAT, picture, reply(REPLY), (None, Some(Image))),
        (CHAT, &low, reply(REPLY), (Some((4 + 3 + 85, 1)), None)),
        (CHAT, sound, reply(REPLY), (None, Some(Audio))),
        ("/openai/v1/images/generations", "{}", reply(r#"{"data":[]}"#), (None, Some(Image))),
        (
            "/openai/v1/audio/speech",
            "{}",
            CapturedResponse::Binary { byte_count: 1, sha256: [0; 32] },
            (None, Some(Audio)),
        ),
        ("/openai/v1/files", "{}", reply("{}"), (None, None)),
    ] {
        let exchange = FinishedExchange { captured_response: response, ..exchange(path, body) };
        assert_eq!(tokens_of(exchange), expected, "{path} {body}");
    }
    let read = FinishedExchange { method: "GET".to_owned(), ..exchange("/openai/v1/responses/resp_1", "") };
    assert_eq!(tokens_of(FinishedExchange { captured_response: reply("{}"), ..read }), (None, None));
}

#[test]
fn the_encoding_is_that_of_the_model_and_else_that_of_a_deployments_name() {
    let name = |text: &str| DeploymentName::parse(text).unwrap();
    for (model, upstream, requested, expected) in [
        (Some("gpt-4o-2024-11-20"), "chat", "gpt-35-turbo", "gpt-4o-2024-11-20"),
        // Another model behind a deployment of this name.
        (Some("phi-4"), "gpt-4o", "gpt-4o", "phi-4"),
        // Responses repeat the deployment's name.
        (Some("Chat"), "chat", "GPT-4o", "gpt-4o"),
        (None, "gpt-35-turbo", "gpt-4o", "gpt-35-turbo"),
        (None, "chat", "gpt-4o", "gpt-4o"),
        (Some("chat"), "chat", "chat", "chat"),
        (None, "chat", "chat", ""),
    ] {
        let mut capture = ResponseCapture::new(Operation::Chat, 0);
        capture.model = model.map(str::to_owned);
        let exchange = FinishedExchange {
            upstream_deployment: Some(name(upstream)),
            requested_deployment: Some(name(requested)),
            ..answered_exchange()
        };
        assert_eq!(exchange.model_name(&capture), expected, "{model:?} {upstream} {requested}");
    }
}

#[test]
fn known_usage_says_whether_it_is_estimated() {
    let reported = r#""usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10},"model""#;
    for (json, is_estimated) in [(REPLY.to_owned(), true), (REPLY.replace("\"model\"", reported), false)] {
        let mut exchange = FinishedExchange { captured_response: reply(&json), ..exchange(CHAT, HELLO) };
        assert_eq!(exchange.known_usage(), None);
        exchange.prepare_content(POLICY, &Default::default(), &mut TokenEstimator::default(), 1024);
        let (usage, estimated) = exchange.known_usage().unwrap();
        assert_eq!((usage.total, estimated), (Some(10), is_estimated), "{json}");
    }
}

#[test]
fn dropped_content_leaves_enough_for_a_rough_count() {
    let body = HELLO.replace("say hello", &"say hello and more ".repeat(2_000));
    let mut exchange = FinishedExchange { captured_response: reply(REPLY), ..exchange(CHAT, &body) };
    let CapturedResponse::Buffered { body: response, .. } = &exchange.captured_response else { panic!() };
    let mut capture = Box::new(ResponseCapture::new(Operation::Chat, 64 * 1024));
    response.capture_into(true, &mut capture);
    exchange.captured_response = CapturedResponse::Parsed(capture);
    exchange.drop_content(POLICY);
    assert!(exchange.captured_request.is_none() && exchange.memory_bytes() < 8 * 1024);
    let (tokens, missing) = tokens_of(exchange);
    assert_eq!(missing, None);
    let (input, output) = tokens.unwrap();
    assert!((7_500..8_500).contains(&input) && output == 1, "{input} {output}");
    // A long body is not sampled at that moment.
    let long = HELLO.replace("say hello", &"say hello ".repeat(50_000));
    let mut exchange = self::exchange(CHAT, &long);
    exchange.captured_response = stream(
        Operation::Chat,
        &[r#"{"choices":[{"index":0,"delta":{"content":"hello"}}],"model":"gpt-4o"}"#],
    );
    exchange.drop_content(POLICY);
    assert_eq!(tokens_of(exchange), (None, Some(NotTold)));
}
