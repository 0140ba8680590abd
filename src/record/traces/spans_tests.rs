//! Tests of spans: names, times, status and attributes.

use std::sync::Arc;

use super::*;
use crate::azure::parse_target;
use crate::azure::response::verdict::Verdict;
use crate::record::exchange::ExchangeOutcome;
use crate::record::trace_context::TraceContext;
use crate::record::traces::testing::{attempt, traced_request};

/// A POST, or what else, to this path.
fn request_to(method: &str, path: &str, attempts: Vec<AttemptRecord>) -> TracedRequest {
    let mut request = traced_request(0);
    let target = parse_target(path.as_bytes(), false).unwrap();
    request.exchange.requested_deployment = target.deployment.clone();
    request.exchange.target = Some(Arc::new(target));
    request.exchange.method = method.to_owned();
    request.exchange.answering_backend = attempts.last().map(|attempt| attempt.backend.clone());
    request.exchange.attempts = attempts;
    request
}

fn chat(attempts: Vec<AttemptRecord>) -> TracedRequest {
    request_to("POST", "/openai/deployments/gpt-4o/chat/completions", attempts)
}

fn spans_of(request: &TracedRequest) -> Vec<Span> {
    request.to_spans(&BackendPlaces::default())
}

fn value_of<'s>(span: &'s Span, key: &str) -> Option<&'s Value> {
    let mut found = span.attributes.iter().filter(|attribute| attribute.key == key);
    let value = found.next()?.value.as_ref()?.value.as_ref();
    assert!(found.next().is_none(), "{key} is there twice");
    value
}

fn text_of<'s>(span: &'s Span, key: &str) -> Option<&'s str> {
    match value_of(span, key)? {
        Value::Text(text) => Some(text),
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn names_have_few_different_values() {
    for (method, path, server, client) in [
        (
            "POST",
            "/openai/deployments/gpt-4o/chat/completions",
            "POST /openai/deployments/{deployment}/chat/completions",
            "chat gpt-4o",
        ),
        ("POST", "/openai/v1/responses", "POST /openai/v1/responses", "chat"),
        (WEBSOCKET_METHOD, "/v1/responses", "WEBSOCKET /openai/v1/responses", "chat"),
        ("GET", "/openai/v1/responses/resp_1", "GET /openai/v1/responses/{id}", "fetch_response"),
        ("DELETE", "/openai/v1/responses/resp_1", "DELETE /openai/v1/responses/{id}", "responses"),
        ("POST", "/openai/v1/completions", "POST /openai/v1/completions", "text_completion"),
        ("POST", "/openai/v1/embeddings", "POST /openai/v1/embeddings", "embeddings"),
        ("GET", "/openai/files/file-1", "GET /openai/files/{id}", "files"),
        ("GET", "/what/ever", "GET", "other"),
        ("BREW", "/openai/v1/responses", "HTTP /openai/v1/responses", "responses"),
    ] {
        let spans = spans_of(&request_to(method, path, vec![attempt("east", Some(200), None)]));
        assert_eq!((spans[0].name.as_str(), spans[1].name.as_str()), (server, client), "{method} {path}");
        assert_eq!((spans[0].kind, spans[1].kind), (KIND_SERVER, KIND_CLIENT));
        let expected = match method {
            "BREW" => Some("_OTHER"),
            WEBSOCKET_METHOD => None,
            method => Some(method),
        };
        assert_eq!(text_of(&spans[0], "http.request.method"), expected, "{method}");
    }
}

#[test]
fn ids_and_parents_make_a_tree() {
    let mut request = chat(vec![attempt("east", Some(503), None), attempt("west", Some(200), None)]);
    let forwarded = SpanId::random();
    request.exchange.attempts[1].span_id = Some(forwarded);
    let spans = spans_of(&request);
    assert!(spans[0].parent_span_id.is_empty() && spans.iter().all(|span| span.trace_id.len() == 16));
    assert!(spans[1..].iter().all(|span| span.parent_span_id == spans[0].span_id && span.span_id.len() == 8));
    assert_eq!(spans[2].span_id, forwarded.to_bytes());
    assert!(spans[1].span_id != spans[2].span_id && spans[1].span_id != spans[0].span_id);
    assert_eq!(spans.iter().map(|span| span.flags).collect::<Vec<_>>(), [0x101; 3]);
    let parent = TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03").unwrap();
    request.exchange.client_headers.trace_context = Some(parent);
    let spans = spans_of(&request);
    assert_eq!(spans[0].parent_span_id, parent.span_id.to_bytes());
    assert_eq!(spans.iter().map(|span| span.flags).collect::<Vec<_>>(), [0x303, 0x103, 0x103]);
}

#[test]
fn times_are_those_of_the_record_and_attempts_end_within_the_request() {
    let mut request = chat(vec![attempt("east", None, Some("reset")), attempt("west", Some(200), None)]);
    let exchange = &mut request.exchange;
    exchange.received_at = UNIX_EPOCH + Duration::from_secs(1_000);
    exchange.duration = Duration::from_micros(120_500);
    (exchange.attempts[0].start, exchange.attempts[0].duration_ms) = (Duration::from_micros(250), 20);
    (exchange.attempts[1].start, exchange.attempts[1].duration_ms) = (Duration::from_micros(20_750), 100);
    let at = |micros: u64| (1_000_000_000 + micros) * 1_000;
    let times: Vec<_> =
        spans_of(&request).iter().map(|span| (span.start_time_unix_nano, span.end_time_unix_nano)).collect();
    assert_eq!(times, [(at(0), at(120_500)), (at(250), at(20_250)), (at(20_750), at(120_500))]);
}

#[test]
fn errors_are_those_of_the_attempt_and_a_failed_request_has_one() {
    let attempts = vec![
        attempt("east", None, Some("connect_refused")),
        attempt("east", Some(429), None),
        attempt("east", Some(200), Some("client_gone")),
        attempt("east", Some(200), Some("idle_timeout")),
        attempt("east", Some(200), None),
    ];
    let spans = spans_of(&chat(attempts.clone()));
    let errors: Vec<_> = spans.iter().map(|span| text_of(span, "error.type")).collect();
    assert_eq!(errors, [None, Some("connect_refused"), Some("429"), None, Some("idle_timeout"), None]);
    for span in &spans {
        assert_eq!(span.status.is_some(), text_of(span, "error.type").is_some());
    }
    for (outcome, status, refusal, attempt_count, expected) in [
        (ExchangeOutcome::Answered, Some(404), None, 5, None),
        (ExchangeOutcome::Refused, Some(429), Some("rate_limit_exceeded"), 0, None),
        (ExchangeOutcome::Answered, Some(503), None, 5, Some("503")),
        (ExchangeOutcome::Failed, Some(502), Some("all_backends_failed"), 1, Some("all_backends_failed")),
        (ExchangeOutcome::Failed, Some(200), None, 4, Some("idle_timeout")),
        (ExchangeOutcome::Failed, None, None, 0, Some("_OTHER")),
        (ExchangeOutcome::ClientGone, None, None, 1, None),
    ] {
        let mut request = chat(attempts[..attempt_count].to_vec());
        (request.exchange.outcome, request.exchange.client_status) = (outcome, status);
        request.exchange.refusal_code = refusal;
        let server = &spans_of(&request)[0];
        assert_eq!(text_of(server, "error.type"), expected, "{outcome:?} {status:?}");
        assert_eq!(server.status.as_ref().map(|status| status.code), expected.map(|_| STATUS_ERROR));
    }
}

#[test]
fn tokens_are_on_the_answering_attempt_only_and_never_on_a_fetch() {
    let usage = TokenUsage {
        input: Some(7),
        output: Some(0),
        cached: Some(3),
        cache_write: Some(2),
        ..TokenUsage::default()
    };
    let answer = || AnswerFacts {
        model: Some("gpt-4o-2024".to_owned()),
        service_tier: Some("flex".to_owned()),
        usage,
        usage_source: "reported",
        finish_reason: Some("stop".to_owned()),
    };
    let attempts = || vec![attempt("east", Some(429), None), attempt("west", Some(200), None)];
    let mut request = chat(attempts());
    request.answer = answer();
    let spans = spans_of(&request);
    assert_eq!(value_of(&spans[2], "gen_ai.usage.input_tokens"), Some(&Value::Int(7)));
    assert_eq!(value_of(&spans[2], "gen_ai.usage.output_tokens"), Some(&Value::Int(0)));
    assert_eq!(value_of(&spans[2], "gen_ai.usage.cache_read.input_tokens"), Some(&Value::Int(3)));
    assert_eq!(value_of(&spans[2], "gen_ai.usage.cache_write.input_tokens"), Some(&Value::Int(2)));
    assert_eq!(text_of(&spans[2], "openai.response.service_tier"), Some("flex"));
    assert_eq!(value_of(&spans[2], "gen_ai.usage.reasoning.output_tokens"), None);
    assert_eq!(text_of(&spans[2], "gen_ai.response.model"), Some("gpt-4o-2024"));
    let tells_answer = |span: &Span| {
        span.attributes.iter().any(|attribute| {
            attribute.key.starts_with("gen_ai.usage.") || attribute.key.starts_with("gen_ai.response.")
        })
    };
    assert!(!spans[..2].iter().any(tells_answer));
    // An earlier response is what the client got, or none.
    for (statuses, backend) in [([Some(200), Some(500)], Some("east")), ([Some(500), None], None)] {
        let mut request = chat(statuses.map(|status| attempt("east", status, None)).to_vec());
        request.exchange.answering_backend = backend.map(BackendName::new);
        request.answer = answer();
        assert!(!spans_of(&request).iter().any(tells_answer), "{statuses:?}");
    }
    for (method, path) in [("GET", "/v1/responses/resp_1"), ("POST", "/v1/responses/resp_1/cancel")] {
        let mut request = request_to(method, path, attempts());
        request.answer = answer();
        let spans = spans_of(&request);
        assert!(text_of(&spans[2], "gen_ai.response.model").is_some());
        assert_eq!(value_of(&spans[2], "gen_ai.usage.input_tokens"), None, "{method} {path}");
    }
}

#[test]
fn attempts_say_where_they_went_and_what_the_response_meant() {
    let yaml = "listeners: [ { address: '127.0.0.1:1' } ]\nclients: open\nbackends:\n\
                - { name: east, endpoint: 'https://east.example', tier: 2, credential: { api_key: k } }\n";
    let config =
        crate::config::parse_and_check_yaml(yaml, std::path::Path::new("."), &|_| None).unwrap().config;
    let mut throttled = attempt("east", Some(429), None);
    (throttled.verdict, throttled.retry_after_ms) = (Some(Verdict::Throttled), Some(1500));
    let request = chat(vec![throttled, attempt("gone", None, Some("reset"))]);
    let spans = request.to_spans(&BackendPlaces::of(&[&config]));
    assert_eq!(text_of(&spans[1], "server.address"), Some("east.example"));
    assert_eq!(value_of(&spans[1], "server.port"), Some(&Value::Int(443)));
    assert_eq!(value_of(&spans[1], "aoai_lb.tier"), Some(&Value::Int(2)));
    assert_eq!(value_of(&spans[1], "aoai_lb.attempt"), Some(&Value::Int(1)));
    assert_eq!(text_of(&spans[1], "aoai_lb.verdict"), Some("throttled"));
    assert_eq!(value_of(&spans[1], "aoai_lb.retry_after_ms"), Some(&Value::Int(1500)));
    assert_eq!(value_of(&spans[1], "http.request.resend_count"), None);
    assert_eq!(text_of(&spans[2], "aoai_lb.backend"), Some("gone"));
    assert_eq!(value_of(&spans[2], "http.request.resend_count"), Some(&Value::Int(1)));
    for key in ["server.address", "aoai_lb.tier", "aoai_lb.verdict", "http.response.status_code"] {
        assert_eq!(value_of(&spans[2], key), None, "{key}");
    }
}

#[test]
fn a_long_path_is_cut() {
    let path = format!("/openai/v1/files/{}", "x".repeat(5_000));
    let spans = spans_of(&request_to("GET", &path, Vec::new()));
    assert_eq!(text_of(&spans[0], "url.path"), Some(&path[..MAX_PATH_BYTES]));
}
