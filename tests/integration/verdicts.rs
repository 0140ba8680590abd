//! Verdicts: what a response means for its request and for the health of the backend.

use crate::support;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use aoai_lb::demo::{BodyPosition, ErrorEventOrder, Mood, SimulatedError, Simulator};
use futures::future::join_all;
use serde_json::Value;
use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, LISTED_DEPLOYMENTS, STREAM_BODY, answering_backend,
    backend_yaml, free_port, listed_backends_yaml, simulated_backend_yaml, start_simulator,
};
use tokio::net::TcpListener;

const TIMEOUTS: &str =
    "timeouts: { connect: 300ms, first_byte: 300ms, first_byte_stream: 300ms, idle: 300ms }";
const COMPLETION_BODY: &str = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
const JSON_TYPE: &str = "Content-Type: application/json";
const OTHER_DEPLOYMENT_TARGET: &str = "/openai/deployments/other/chat/completions?api-version=2024-10-21";

fn backend_state(status: &Value, backend: usize) -> &str {
    status["backends"][backend]["state"].as_str().unwrap()
}

/// The unavailable parts of the first backend: deployment or operation, reason, milliseconds left.
fn unavailable_parts(status: &Value) -> Vec<(String, String, u64)> {
    let parts = status["backends"][0]["resting"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rest = |rest: &Value| {
        let what = text(&rest["deployment"]) + &text(&rest["operation"]);
        (what, text(&rest["reason"]), rest["until_ms"].as_u64().unwrap())
    };
    parts.map(rest).collect()
}

/// The same without the times.
fn without_times(parts: &[(String, String, u64)]) -> Vec<(&str, &str)> {
    parts.iter().map(|(what, reason, _)| (what.as_str(), reason.as_str())).collect()
}

/// A breaker that three failures open.
const SENSITIVE_BREAKER: &str = "breaker: { failures: 3, ratio: 1%, window: 30s, open: 60s }";

/// Sends six chats to two backends, the first of which fails. Expects `b` to answer all of them, unless
/// responses of the first break midway, and returns the status after that.
async fn status_after_six_chats(first: &str, second: &Simulator, body: &str, breaks_midway: bool) -> Value {
    let backends = first.to_owned() + &simulated_backend_yaml(second, "b", LISTED_DEPLOYMENTS);
    let balancer = Balancer::start(&backends, &format!("{TIMEOUTS}\n{SENSITIVE_BREAKER}")).await;
    for _ in 0..6 {
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        if breaks_midway {
            assert_eq!(response.status, 200, "{}", response.text());
            assert_eq!(response.is_complete, answering_backend(&response) == "b", "{}", response.text());
        } else {
            assert_eq!(
                (response.status, answering_backend(&response)),
                (200, "b".to_owned()),
                "{}",
                response.text()
            );
        }
    }
    let status = balancer.status().await;
    assert_eq!(backend_state(&status, 1), "healthy");
    status
}

/// The same with a simulated first backend in this mood; also returns the simulated resources.
async fn status_after_six_chats_in(mood: &Mood, body: &str, breaks_midway: bool) -> (Value, Simulator) {
    let azure = start_simulator(&["a", "b"]).await;
    azure.set_mood("a", mood.clone());
    let first = simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS);
    (status_after_six_chats(&first, &azure, body, breaks_midway).await, azure)
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_fail_over_and_open_the_breaker() {
    let slow_first_byte = Mood::SlowFirstByte(Duration::from_secs(20));
    let moods = [
        Mood::Refuses(SimulatedError::Timeout),
        Mood::Refuses(SimulatedError::ServerError),
        Mood::Refuses(SimulatedError::ServerErrorHtml),
        Mood::Refuses(SimulatedError::BadGateway),
        Mood::Refuses(SimulatedError::Unavailable),
        Mood::Refuses(SimulatedError::GatewayTimeout),
        Mood::Refuses(SimulatedError::Status(529)),
        Mood::ResetOnAccept,
        Mood::ResetBeforeHead,
        Mood::CloseBeforeHead,
        Mood::Mute,
        slow_first_byte.clone(),
        Mood::Unsolicited101,
        Mood::EarlyAnswer { error: SimulatedError::Unavailable, closes_connection: true },
    ];
    let check_case = async |mood: Mood, body: &str| {
        let (status, _) = status_after_six_chats_in(&mood, body, false).await;
        assert_eq!(backend_state(&status, 0), "breaker_open", "{mood:?}: {status}");
        assert_eq!(unavailable_parts(&status), [], "{mood:?}");
    };
    join_all(moods.into_iter().map(|mood| check_case(mood, CHAT_BODY))).await;
    // Streams have a first-byte timeout of their own. A stream that breaks before any content fails over.
    let broken_before_content = Mood::CloseMidStream { after: BodyPosition::Events(0) };
    join_all([slow_first_byte, broken_before_content].map(|mood| check_case(mood, STREAM_BODY))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_backends_fail_over_and_open_the_breaker() {
    let azure = start_simulator(&["a", "b"]).await;
    let silent_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [
        ("refused", format!("http://127.0.0.1:{}", free_port()), "breaker_open"),
        ("no TLS there", format!("https://{}", azure.address("a")), "breaker_open"),
        ("TLS stalls", format!("https://{}", silent_listener.local_addr().unwrap()), "breaker_open"),
        ("no such name", "http://no-such-host.invalid".to_owned(), "unresolvable"),
    ];
    let check_case = async |(what, endpoint, state): (&str, String, &str)| {
        let status = status_after_six_chats(
            &backend_yaml("a", &endpoint, LISTED_DEPLOYMENTS),
            &azure,
            CHAT_BODY,
            false,
        )
        .await;
        assert_eq!(backend_state(&status, 0), state, "{what}: {status}");
    };
    join_all(endpoints.map(check_case)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_break_after_content_are_cut_and_open_the_breaker() {
    let moods = [
        Mood::ResetMidBody { after: BodyPosition::Events(3) },
        Mood::CloseMidStream { after: BodyPosition::Events(3) },
        Mood::Silence { after_events: 3, duration: Duration::from_secs(20) },
    ];
    let check_case = async |mood: Mood| {
        let (status, _) = status_after_six_chats_in(&mood, STREAM_BODY, true).await;
        assert_eq!(backend_state(&status, 0), "breaker_open", "{mood:?}: {status}");
    };
    join_all(moods.map(check_case)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_makes_the_matching_part_unavailable() {
    let throttled = Mood::Throttled { retry_after_ms: Some(20_000), retry_after: None };
    let (cooling, absent): (&[_], &[_]) = (&[("gpt-4o", "cooling")], &[("gpt-4o", "absent")]);
    let refusal = Mood::Refuses;
    let error_in_stream = |event_order| Mood::ErrorFirst { event_order, retry_after: Some("20".to_owned()) };
    let table = [
        (throttled, CHAT_BODY, "healthy", cooling),
        (error_in_stream(ErrorEventOrder::CreatedErrorFailed), STREAM_BODY, "healthy", cooling),
        (error_in_stream(ErrorEventOrder::ErrorAlone), STREAM_BODY, "healthy", cooling),
        (refusal(SimulatedError::InvalidKey), CHAT_BODY, "credential", &[]),
        (refusal(SimulatedError::InvalidToken), CHAT_BODY, "credential", &[]),
        (refusal(SimulatedError::AuthenticationTypeDisabled), CHAT_BODY, "credential", &[]),
        (refusal(SimulatedError::Firewall), CHAT_BODY, "credential", &[]),
        (refusal(SimulatedError::PermissionDenied), CHAT_BODY, "permission", &[("chat", "permission")]),
        (refusal(SimulatedError::DeploymentNotFound), CHAT_BODY, "absent", absent),
    ];
    let check_case = async |(mood, body, expected, parts): (Mood, &str, &str, &[(&str, &str)])| {
        let (status, azure) = status_after_six_chats_in(&mood, body, false).await;
        assert_eq!(backend_state(&status, 0), expected, "{mood:?}: {status}");
        let unavailable = unavailable_parts(&status);
        assert_eq!(without_times(&unavailable), parts, "{mood:?}");
        assert!(
            unavailable.iter().all(|(_, reason, ms)| reason == "cooling" || (50_000..=60_000).contains(ms))
        );
        // One 429 is enough. Of the others the balancer's own question has decided, or three requests.
        let is_cooling = parts == cooling;
        assert!(azure.request_count("a") <= if is_cooling { 1 } else { 4 }, "{mood:?}");
    };
    join_all(table.map(check_case)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_about_the_request_are_relayed_and_do_not_affect_health() {
    let moods = [
        SimulatedError::ContentFilter,
        SimulatedError::ContextLengthExceeded,
        SimulatedError::InvalidEncryptedContent,
        SimulatedError::PreviousResponseNotFound,
        SimulatedError::Conflict,
        SimulatedError::Status(400),
        SimulatedError::Status(413),
        SimulatedError::Status(422),
    ];
    let check_case = async |refusal: SimulatedError| {
        let azure = start_simulator(&["a", "b"]).await;
        azure.set_mood("a", Mood::Refuses(refusal));
        let balancer = Balancer::start(&listed_backends_yaml(&azure), SENSITIVE_BREAKER).await;
        let mut counts = HashMap::new();
        for _ in 0..10 {
            let response = balancer.post_chat().await;
            assert_eq!(response.header("x-aoai-lb-attempts"), Some("1"), "{refusal:?}");
            *counts.entry((answering_backend(&response), response.status)).or_insert(0) += 1;
        }
        let expected = [(("a".to_owned(), refusal.status()), 5), (("b".to_owned(), 200), 5)];
        assert_eq!(counts, HashMap::from(expected), "{refusal:?}");
        let status = balancer.status().await;
        assert_eq!(
            (backend_state(&status, 0), unavailable_parts(&status).len()),
            ("healthy", 0),
            "{refusal:?}: {status}"
        );
    };
    join_all(moods.map(check_case)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_deployment_or_denied_operation_affects_nothing_else() {
    let azure = start_simulator(&["a", "b"]).await;
    let moods_by_deployment =
        HashMap::from([("gpt-4o".to_owned(), Mood::Refuses(SimulatedError::DeploymentNotFound))]);
    azure.set_mood("a", Mood::PerDeployment { moods_by_deployment, default_mood: Box::new(Mood::Calm) });
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    for _ in 0..4 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    }
    let mut answering_backends = Vec::new();
    for _ in 0..4 {
        let response =
            balancer.post(OTHER_DEPLOYMENT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        answering_backends.push(answering_backend(&response));
    }
    answering_backends.sort();
    assert_eq!(answering_backends, ["a", "a", "b", "b"]);

    const DENIED_BODY: &str =
        r#"{"error":{"code":"PermissionDenied","message":"lacks the required data action"}}"#;
    let denying = ScriptedUpstream::start(|request: &RawRequest| {
        let is_chat = request.head.contains("/chat/");
        if is_chat {
            complete_response(403, JSON_TYPE, DENIED_BODY)
        } else {
            complete_response(200, JSON_TYPE, COMPLETION_BODY)
        }
    })
    .await;
    let two_backends = backend_yaml("a", &format!("http://{}", denying.address), LISTED_DEPLOYMENTS)
        + &simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS);
    let balancer = Balancer::start(&two_backends, "").await;
    for _ in 0..8 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    }
    // The balancer's own question, and at most three chats of the only client until it was answered.
    assert!(denying.requests().len() <= 4);
    let embeddings = "/openai/deployments/gpt-4o/embeddings?api-version=2024-10-21";
    let mut answering_backends = Vec::new();
    for _ in 0..4 {
        answering_backends.push(answering_backend(
            &balancer.post(embeddings, &[("api-key", CLIENT_KEY)], br#"{"input":"x"}"#).await,
        ));
    }
    answering_backends.sort();
    assert_eq!(answering_backends[..2], ["a", "a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_another_resource_may_not_have_fail_over_and_do_not_affect_health() {
    let bodies = [
        (400, r#"{"error":{"code":"BadRequest","message":"API version not supported"}}"#),
        (
            400,
            r#"{"error":{"message":"Could not find an existing deployment with the model requested","type":"invalid_request_error","code":null}}"#,
        ),
    ];
    for (status, body) in bodies {
        let azure = start_simulator(&["b"]).await;
        let lacking =
            ScriptedUpstream::start(move |_: &RawRequest| complete_response(status, JSON_TYPE, body)).await;
        let two_backends = backend_yaml("a", &format!("http://{}", lacking.address), LISTED_DEPLOYMENTS)
            + &simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS);
        let balancer = Balancer::start(&two_backends, "").await;
        for _ in 0..4 {
            assert_eq!(answering_backend(&balancer.post_chat().await), "b", "{body}");
        }
        assert_eq!(lacking.requests().len(), 2, "expected the backend to keep its turns: {body}");
        assert_eq!(unavailable_parts(&balancer.status().await), [], "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooldown_lasts_as_long_as_the_response_asks_for() {
    // The date counts from here, which may be some seconds before its case is tried.
    let began_at = Instant::now();
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(80));
    let date = format!("Retry-After: {date}");
    // Values are limited to 80 seconds. Without a valid value the cooldown is 30 seconds.
    let policy = "cooldown: { default: 30s, maximum: 80s }";
    let table = [
        (429, "retry-after-ms: 65500", 64_500..=65_500),
        (429, "x-ms-retry-after-ms: 65500", 64_500..=65_500),
        (429, "retry-after: 70", 69_000..=70_000),
        (429, "retry-after: 45.5", 44_500..=45_500),
        (429, "retry-after: 1m2s", 61_000..=62_000),
        (429, &*date, 78_000..=80_000),
        (429, "x-ratelimit-reset-tokens: 50\nx-ratelimit-reset-requests: 6m0s", 49_000..=50_000),
        (
            429,
            "x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-tokens: 1\nx-ratelimit-reset-requests: 60",
            59_000..=60_000,
        ),
        (429, "retry-after: 86400", 79_000..=80_000),
        (429, "retry-after: 86401", 29_000..=30_000),
        (429, "retry-after: -1", 29_000..=30_000),
        (429, "retry-after: soon", 29_000..=30_000),
        (429, "", 29_000..=30_000),
        (503, "retry-after: 70", 69_000..=70_000),
    ];
    let check_case = async |(status, header, expected): (u16, &str, std::ops::RangeInclusive<u64>)| {
        let azure = start_simulator(&["b"]).await;
        let headers = format!("{JSON_TYPE}\n{header}");
        let throttled =
            ScriptedUpstream::start(move |_: &RawRequest| complete_response(status, &headers, "{}")).await;
        let a = backend_yaml("a", &format!("http://{}", throttled.address), LISTED_DEPLOYMENTS);
        let balancer =
            Balancer::start(&(a + &simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS)), policy).await;
        for _ in 0..2 {
            assert_eq!(answering_backend(&balancer.post_chat().await), "b", "{header}");
        }
        let status = balancer.status().await;
        let elapsed_ms = u64::try_from(began_at.elapsed().as_millis()).unwrap();
        let unavailable = unavailable_parts(&status);
        assert_eq!(without_times(&unavailable), [("gpt-4o", "cooling")], "{header}");
        let remaining_ms = unavailable[0].2;
        let is_expected = remaining_ms <= *expected.end() && remaining_ms + elapsed_ms >= *expected.start();
        assert!(is_expected, "{header}: {remaining_ms}");
    };
    join_all(table.map(check_case)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_of_zero_is_a_cooldown_of_a_second_and_no_burst_of_attempts() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(0), retry_after: None });
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let response = balancer.post_chat().await;
    assert_eq!((response.status, response.header("x-aoai-lb-attempts")), (429, Some("1")));
    let hint: u64 = response.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((500..=1000).contains(&hint), "{hint}");
    assert_eq!(response.header("retry-after"), Some("1"));
}

/// A scripted first backend, and a simulated second one in this tier.
async fn scripted_then_simulated(
    script: impl Fn(&RawRequest) -> Vec<Vec<u8>> + Send + Sync + 'static,
    second_tier: u16,
    settings: &str,
) -> (ScriptedUpstream, Simulator, Balancer) {
    let first = ScriptedUpstream::start(script).await;
    let azure = start_simulator(&["b"]).await;
    let backends = backend_yaml("a", &format!("http://{}", first.address), LISTED_DEPLOYMENTS)
        + &simulated_backend_yaml(&azure, "b", &format!("{LISTED_DEPLOYMENTS}\ntier: {second_tier}"));
    let balancer = Balancer::start(&backends, settings).await;
    (first, azure, balancer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_about_the_size_of_one_request_keeps_no_other_request_away() {
    let refusals = [
        (
            20,
            r#"{"error":{"code":"too_many_requests","message":"The system is currently experiencing high demand. Your request exceeds the maximum usage size allowed during peak load."}}"#,
        ),
        // Larger than the whole limit of the deployment.
        (
            86_400,
            r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 86400 seconds."}}"#,
        ),
    ];
    for (retry_after, refusal) in refusals {
        check_refusal_of_large_requests(retry_after, refusal).await;
    }
}

async fn check_refusal_of_large_requests(retry_after: u32, refusal: &'static str) {
    let refuses_large = move |request: &RawRequest| match request.body.len() {
        ..1000 => complete_response(200, JSON_TYPE, COMPLETION_BODY),
        _ => complete_response(429, &format!("{JSON_TYPE}\nretry-after: {retry_after}"), refusal),
    };
    let (first, azure, balancer) = scripted_then_simulated(refuses_large, 2, "").await;
    let large = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(2000));
    let post =
        async |body: &str| balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
    assert_eq!(answering_backend(&post(&large).await), "b");
    assert_eq!(answering_backend(&post(CHAT_BODY).await), "a");
    // With nobody else, the client gets the 429 and the hint that came with it.
    azure.set_mood("b", Mood::HighDemand);
    let refused = post(&large).await;
    assert_eq!((refused.status, refused.header("x-aoai-lb-attempts")), (429, Some("2")));
    let relayed = [refusal, "maximum usage size"].iter().any(|text| refused.text().contains(text));
    assert!(relayed, "{}", refused.text());
    assert_eq!(answering_backend(&post(CHAT_BODY).await), "a");
    assert_eq!(first.requests().len(), 4);
    assert_eq!(unavailable_parts(&balancer.status().await), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_is_too_long_for_a_tier_goes_to_the_next_tier() {
    const TOO_LONG: &str = r#"{"error":{"code":"context_length_exceeded","message":"This model's maximum context length is 128000 tokens."}}"#;
    let script = |_: &RawRequest| complete_response(400, JSON_TYPE, TOO_LONG);
    let (first, _azure, balancer) = scripted_then_simulated(script, 2, "").await;
    assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    assert_eq!(first.requests().len(), 1);
    // Backends of one tier are alike: to ask the next would only cost time.
    let (_first, azure, balancer) = scripted_then_simulated(script, 1, "").await;
    let response = balancer.post_chat().await;
    assert_eq!((response.status, response.text()), (400, TOO_LONG.into()));
    assert_eq!(azure.request_count("b"), 0);
    // Unless the operator has listed the status.
    let settings = "retry: { statuses: [400, 429] }";
    let (_first, _azure, balancer) = scripted_then_simulated(script, 1, settings).await;
    assert_eq!(answering_backend(&balancer.post_chat().await), "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_kind_that_nobody_knows_are_the_clients_and_asked_nowhere_else() {
    let errors = [
        r#"{"type":"user_error","code":"invalid_payload","message":"does not match the schema"}"#,
        r#"{"type":"user_error","code":null,"message":"Failed to download image"}"#,
        r#"{"type":"forbidden","code":"forbidden","message":"not allowed for this model"}"#,
        r#"{"type":"image_generation_user_error","code":"moderation_blocked","message":"rejected"}"#,
        r#"{"type":"brand_new_error","code":"never_seen","message":"something"}"#,
    ];
    for error in errors {
        let script = move |_: &RawRequest| {
            let events = format!("event: error\ndata: {{\"type\":\"error\",\"error\":{error}}}\n\n");
            complete_response(200, "Content-Type: text/event-stream", &events)
        };
        let (_first, azure, balancer) = scripted_then_simulated(script, 2, SENSITIVE_BREAKER).await;
        for _ in 0..4 {
            let response =
                balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STREAM_BODY.as_bytes()).await;
            assert_eq!((response.status, response.header("x-aoai-lb-attempts")), (200, Some("1")), "{error}");
            assert!(response.text().contains(error), "{}", response.text());
        }
        assert_eq!(azure.request_count("b"), 0, "{error}");
        assert_eq!(backend_state(&balancer.status().await, 0), "healthy", "{error}");
    }
    // A listed status sends other errors on, but not the refusal of a prompt.
    let script = |_: &RawRequest| {
        let body = r#"{"error":{"type":"image_generation_user_error","code":"moderation_blocked"}}"#;
        complete_response(400, JSON_TYPE, body)
    };
    let (_first, azure, balancer) =
        scripted_then_simulated(script, 1, "retry: { statuses: [400-599] }").await;
    assert_eq!(balancer.post_chat().await.status, 400);
    assert_eq!(azure.request_count("b"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_has_no_such_model_in_its_own_words_is_skipped() {
    let answers = [
        (400, r#"{"error":{"code":"unknown_model","message":"Unknown model: gpt-4o"}}"#),
        (
            404,
            r#"{"error":{"message":"The model `gpt-4o` does not exist or you do not have access to it."}}"#,
        ),
        (400, r#"{"error":{"code":"400","message":"gpt-4o is not enabled in this region"}}"#),
        (
            403,
            r#"{"error":{"code":"403","message":"The traffic is not from an approved private endpoint."}}"#,
        ),
    ];
    for (status, body) in answers {
        let script = move |_: &RawRequest| complete_response(status, JSON_TYPE, body);
        let (_first, _azure, balancer) = scripted_then_simulated(script, 1, "").await;
        for _ in 0..6 {
            let response = balancer.post_chat().await;
            assert_eq!((response.status, answering_backend(&response)), (200, "b".to_owned()), "{body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_4xx_that_names_the_added_stream_options_is_repeated_without_them() {
    for status in [400, 401, 403, 404, 408, 422, 429] {
        let script = move |request: &RawRequest| {
            let names_options = String::from_utf8_lossy(&request.body).contains("stream_options");
            if names_options {
                let error =
                    r#"{"error":{"code":"Invalid input","message":"extra_forbidden: stream_options"}}"#;
                return complete_response(status, JSON_TYPE, error);
            }
            let event = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
            complete_response(200, "Content-Type: text/event-stream", event)
        };
        let upstream = ScriptedUpstream::start(script).await;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let record = format!(
            "record: {{ jsonl: {{ path: {} }}, spool: {{ path: {} }} }}",
            at("records.jsonl"),
            at("spool")
        );
        let a = backend_yaml("a", &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS);
        let balancer = Balancer::start(&a, &record).await;
        for expected_requests in [2, 3] {
            let response =
                balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STREAM_BODY.as_bytes()).await;
            assert_eq!((response.status, response.is_complete), (200, true), "{}", response.text());
            assert_eq!(upstream.requests().len(), expected_requests, "{status}: remembered after the first");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_inside_a_stored_stream_is_not_a_refusal() {
    const STORED_STREAM: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n\
        event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\
        \"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"then\"}}}\n\n";
    let replaying = ScriptedUpstream::start(|_: &RawRequest| {
        complete_response(200, "Content-Type: text/event-stream", STORED_STREAM)
    })
    .await;
    let balancer = Balancer::start(&replaying.backend_yaml("a"), "").await;
    let mut client = balancer.connect().await;
    let target = "/openai/v1/responses/resp_1?stream=true";
    let response = client.get(target, &[("api-key", CLIENT_KEY)]).await;
    assert_eq!((response.status, response.text().as_str()), (200, STORED_STREAM));
    assert_eq!(replaying.requests().len(), 1);
    let status = balancer.status().await;
    assert_eq!((backend_state(&status, 0), unavailable_parts(&status)), ("healthy", vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_401_of_a_backend_becomes_a_503_for_the_client() {
    const TRUNCATED_401: &str =
        "HTTP/1.1 401 X\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n{\"error\":";
    let truncating = ScriptedUpstream::start(|_: &RawRequest| vec![TRUNCATED_401.into()]).await;
    let balancer = Balancer::start(&truncating.backend_yaml("a"), "").await;
    let response = balancer.post_chat().await;
    assert_eq!((response.status, response.is_complete), (503, true));
    assert_eq!(response.error_code(), "backend_misconfigured");
}
