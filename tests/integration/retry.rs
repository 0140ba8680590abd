//! Retries and failover when a backend refuses, does not respond or cannot be reached.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{BodyPosition, Mood, SimulatedError, Simulator};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, all_backends_yaml, answering_backend,
    start_simulator,
};

const TIMEOUTS: &str =
    "timeouts: { connect: 500ms, first_byte: 300ms, first_byte_stream: 200ms, idle: 300ms }";

async fn start_two_backends(extra_yaml: &str) -> (Simulator, Balancer) {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), extra_yaml).await;
    (azure, balancer)
}

#[tokio::test]
async fn every_kind_of_failure_fails_over() {
    let moods = [
        ("429", Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None }),
        ("429", Mood::HighDemand),
        ("408", Mood::Refuses(SimulatedError::Timeout)),
        ("424", Mood::Refuses(SimulatedError::FailedDependency)),
        ("500", Mood::Refuses(SimulatedError::ServerError)),
        ("500", Mood::Refuses(SimulatedError::ServerErrorHtml)),
        ("502", Mood::Refuses(SimulatedError::BadGateway)),
        ("503", Mood::Refuses(SimulatedError::Unavailable)),
        ("504", Mood::Refuses(SimulatedError::GatewayTimeout)),
        ("401", Mood::Refuses(SimulatedError::InvalidKey)),
        ("401", Mood::Refuses(SimulatedError::PermissionDenied)),
        ("403", Mood::Refuses(SimulatedError::AuthenticationTypeDisabled)),
        ("403", Mood::Refuses(SimulatedError::Firewall)),
        ("404", Mood::Refuses(SimulatedError::DeploymentNotFound)),
        ("", Mood::ResetOnAccept),
        ("reset", Mood::ResetBeforeHead),
        ("reset", Mood::CloseBeforeHead),
        ("first_byte_timeout", Mood::Mute),
        ("first_byte_timeout", Mood::SlowFirstByte(Duration::from_secs(20))),
        ("protocol", Mood::Unsolicited101),
    ];
    for (expected, mood) in moods {
        let (azure, balancer) =
            start_two_backends(&format!("{TIMEOUTS}\nretry: {{ statuses: [408, 424, 429, 500-599] }}")).await;
        azure.set_mood("a", mood.clone());
        let response = balancer.post_chat().await;
        assert_eq!(
            (response.status, answering_backend(&response).as_str()),
            (200, "b"),
            "{mood:?}: {}",
            response.text()
        );
        assert_eq!(response.header("x-aoai-lb-attempts"), Some("2"), "{mood:?}");
        let record = &balancer.wait_for_records(1).await[0];
        let first = &record["attempts"][0];
        let failure = first["error"].as_str().map_or_else(|| first["status"].to_string(), str::to_owned);
        assert_eq!(first["backend"], "a", "{mood:?}");
        // An immediate reset may arrive before or after the connection counts as established.
        assert!(
            failure == expected || (expected.is_empty() && matches!(&*failure, "reset" | "connect")),
            "{mood:?}: {failure}"
        );
        assert_eq!((record["outcome"].as_str(), record["backend"].as_str()), (Some("answered"), Some("b")));
        if !matches!(mood, Mood::ResetOnAccept) {
            let sent = azure.received_requests("b").pop().unwrap();
            assert_eq!(sent.body.unwrap(), CHAT_BODY.as_bytes(), "{mood:?}");
        }
    }
}

#[tokio::test]
async fn a_refused_connection_fails_over() {
    let (azure, balancer) = start_two_backends("").await;
    azure.stop_listening("a").await;
    let response = balancer.post_chat().await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    assert_eq!(balancer.wait_for_records(1).await[0]["attempts"][0]["error"], "connect_refused");
}

#[tokio::test]
async fn errors_about_the_request_are_relayed_without_a_failover() {
    for mood in [
        SimulatedError::ContentFilter,
        SimulatedError::ContextLengthExceeded,
        SimulatedError::ResourceNotFound,
        SimulatedError::Conflict,
    ] {
        let (azure, balancer) = start_two_backends("").await;
        azure.set_mood("a", Mood::Refuses(mood));
        let direct_response = Client::connect(azure.address("a"))
            .await
            .post(CHAT_TARGET, &[("api-key", "a-key")], CHAT_BODY.as_bytes())
            .await;
        let response = balancer.post_chat().await;
        assert_eq!(
            (response.status, answering_backend(&response).as_str()),
            (direct_response.status, "a"),
            "{mood:?}"
        );
        assert_eq!(response.error_code(), direct_response.error_code(), "{mood:?}");
        assert_eq!(azure.request_count("b"), 0, "{mood:?}");
        assert!(response.header("apim-request-id").is_some());
        assert_eq!(balancer.wait_for_records(1).await[0]["outcome"], "answered");
    }
}

#[tokio::test]
async fn retry_statuses_may_include_4xx() {
    let (azure, balancer) = start_two_backends("retry: { statuses: [400-599] }").await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Conflict));
    let response = balancer.post_chat().await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
}

#[tokio::test]
async fn each_round_tries_every_backend_once_until_one_succeeds() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let unavailable = || Mood::Refuses(SimulatedError::Unavailable);
    azure.set_mood("a", Mood::Sequence(vec![unavailable(), unavailable(), Mood::Calm]));
    azure.set_mood("b", unavailable());
    azure.set_mood("c", unavailable());
    let response = balancer.post_chat().await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "a"));
    let record = &balancer.wait_for_records(1).await[0];
    let backends_tried: Vec<&str> =
        record["attempts"].as_array().unwrap().iter().map(|a| a["backend"].as_str().unwrap()).collect();
    let mut rounds: Vec<Vec<&str>> = backends_tried.chunks(3).map(<[&str]>::to_vec).collect();
    rounds.iter_mut().for_each(|round| round.sort_unstable());
    assert_eq!(rounds[..2], [["a", "b", "c"], ["a", "b", "c"]], "{backends_tried:?}");
}

#[tokio::test]
async fn attempts_are_limited_and_the_last_backend_response_is_relayed() {
    let (azure, balancer) = start_two_backends("retry: { attempts: 3 }").await;
    for name in ["a", "b"] {
        azure.set_mood(name, Mood::Refuses(SimulatedError::ServerError));
    }
    let mut client = balancer.connect().await;
    let response = client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
    assert_eq!((response.status, response.header("x-aoai-lb-attempts")), (500, Some("4")));
    assert_eq!(response.json()["error"]["type"], "server_error");
    assert_eq!(azure.request_count("a") + azure.request_count("b"), 4);
    // The client connection survives a failed request.
    azure.set_mood("a", Mood::Calm);
    azure.set_mood("b", Mood::Calm);
    assert_eq!(client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn the_429_of_throttled_backends_has_the_earliest_retry_after() {
    let (azure, balancer) = start_two_backends("").await;
    // The health of an unlisted deployment is kept only after its first successful response.
    assert_eq!(balancer.post_chat().await.status, 200);
    let throttled = |ms| Mood::Throttled { retry_after_ms: Some(ms), retry_after: Some("3600".into()) };
    azure.set_mood("a", throttled(20_000));
    azure.set_mood("b", throttled(9_000));
    let response = balancer.post_chat().await;
    let parse_hint =
        |response: &support::Response, name: &str| response.header(name).unwrap().parse::<u64>().unwrap();
    assert_eq!(response.status, 429);
    assert!((8_000..=9_000).contains(&parse_hint(&response, "retry-after-ms")), "{response:?}");
    assert_eq!(parse_hint(&response, "retry-after"), 9);
    assert_ne!(response.error_code(), "all_throttled", "expected the error of the backend");
    // From now on no backend is tried.
    let mut client = balancer.connect().await;
    for _ in 0..2 {
        let response = client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        assert_eq!((response.status, response.error_code().as_str()), (429, "all_throttled"));
        assert!((1_000..=9_000).contains(&parse_hint(&response, "retry-after-ms")), "{response:?}");
        assert_eq!(response.header("x-aoai-lb-attempts"), Some("0"));
    }
    assert_eq!(azure.request_count("a") + azure.request_count("b"), 3);
    let records = &balancer.wait_for_records(4).await[1..];
    assert_eq!((records[0]["outcome"].as_str(), records[0]["refusal"].as_str()), (Some("answered"), None));
    assert_eq!(
        (records[1]["outcome"].as_str(), records[1]["refusal"].as_str()),
        (Some("refused"), Some("all_throttled"))
    );
}

#[tokio::test]
async fn absurd_retry_after_values_are_clamped() {
    for (header, min_ms, max_ms) in
        [("86400", 59_000, 60_000), ("-1", 1, 60_000), ("soon", 1, 60_000), ("1m2s", 59_000, 60_000)]
    {
        let azure = start_simulator(&["a"]).await;
        let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
        azure.set_mood("a", Mood::Throttled { retry_after_ms: None, retry_after: Some(header.into()) });
        let response = balancer.post_chat().await;
        let retry_after_ms: u64 = response.header("retry-after-ms").unwrap().parse().unwrap();
        assert!((min_ms..=max_ms).contains(&retry_after_ms), "{header}: {retry_after_ms}");
        let record = &balancer.wait_for_records(1).await[0];
        assert!(record["attempts"][0]["retry_after_ms"].as_u64().unwrap() >= min_ms);
    }
}

#[tokio::test]
async fn a_429_is_preferred_to_a_408_and_a_500() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "retry: { attempts: 2 }").await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Timeout));
    azure.set_mood("b", Mood::Throttled { retry_after_ms: Some(20_000), retry_after: None });
    azure.set_mood("c", Mood::Refuses(SimulatedError::ServerError));
    assert_eq!(balancer.post_chat().await.status, 429);
}

#[tokio::test]
async fn a_rejected_backend_credential_becomes_a_503_for_the_client() {
    let (azure, balancer) = start_two_backends("").await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::InvalidKey));
    azure.set_mood("b", Mood::Refuses(SimulatedError::DeploymentNotFound));
    for _ in 0..2 {
        let response = balancer.post_chat().await;
        assert_eq!((response.status, response.error_code().as_str()), (503, "backend_misconfigured"));
    }
    balancer.wait_for_log("backend a: credential rejected").await;
    assert_eq!(balancer.status().await["backends"][0]["state"], "credential");
}

#[tokio::test]
async fn unreachable_backends_give_502_and_slow_ones_504() {
    let (azure, balancer) = start_two_backends(&format!("{TIMEOUTS}\nretry: {{ attempts: 1 }}")).await;
    azure.set_mood("a", Mood::Mute);
    azure.set_mood("b", Mood::Mute);
    let start = Instant::now();
    let response = balancer.post_chat().await;
    assert_eq!((response.status, response.error_code().as_str()), (504, "upstream_timeout"));
    assert!(start.elapsed() >= Duration::from_millis(600));
    azure.stop_listening("a").await;
    azure.stop_listening("b").await;
    let response = balancer.post_chat().await;
    assert_eq!((response.status, response.error_code().as_str()), (502, "upstream_failed"));
    let records = balancer.wait_for_records(2).await;
    assert_eq!(records[0]["outcome"], "failed");
}

#[tokio::test]
async fn no_attempt_starts_after_the_deadline_or_the_clients_read_timeout() {
    for (config, headers) in
        [("retry: { deadline: 150ms }", vec![]), ("", vec![("x-stainless-read-timeout", "0.15")])]
    {
        let (azure, balancer) = start_two_backends(config).await;
        for name in ["a", "b"] {
            azure.set_mood(name, Mood::Refuses(SimulatedError::Unavailable));
        }
        let headers = [vec![("api-key", CLIENT_KEY)], headers].concat();
        let response = balancer.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes()).await;
        assert_eq!(response.status, 503);
        let hits = azure.request_count("a") + azure.request_count("b");
        assert!((1..=4).contains(&hits), "{hits}");
    }
}

#[tokio::test]
async fn a_create_call_is_not_repeated_once_it_may_have_taken_effect() {
    let (azure, balancer) = start_two_backends("").await;
    let post = |target: &'static str, body: &'static str| {
        balancer.post(target, &[("api-key", CLIENT_KEY)], body.as_bytes())
    };
    azure.set_mood("a", Mood::Refuses(SimulatedError::ServerError));
    let response = post("/openai/v1/batches", "{}").await;
    assert_eq!((response.status, azure.request_count("a")), (500, 1));
    let background_body = r#"{"model":"gpt-4o","input":"x","background":true}"#;
    azure.set_mood("a", Mood::ResetBeforeHead);
    let before = azure.request_count("b");
    let response = post("/openai/v1/responses", background_body).await;
    assert_eq!((response.status, azure.request_count("b")), (502, before));
    // A 429 and a refused connection have created nothing, so the call may be repeated.
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(5_000), retry_after: None });
    azure.set_mood("b", Mood::Calm);
    for _ in 0..2 {
        let response = post("/openai/v1/responses", background_body).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    }
    let (azure, balancer) = start_two_backends("").await;
    azure.stop_listening("a").await;
    let response =
        balancer.post("/openai/v1/responses", &[("api-key", CLIENT_KEY)], background_body.as_bytes()).await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    assert_eq!(response.header("x-aoai-lb-attempts"), Some("2"));
}

#[tokio::test]
async fn a_stale_pooled_connection_fails_no_request() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    for _ in 0..20 {
        let response = balancer.post_chat().await;
        assert_eq!(response.status, 200);
        azure.abort_connections("a").await;
    }
}

#[tokio::test]
async fn a_truncated_response_to_an_anonymous_client_is_recorded_as_failed() {
    // With `clients: open` no key is needed.
    let azure = start_simulator(&["a"]).await;
    let balancer =
        Balancer::start_with_clients(&all_backends_yaml(&azure), "clients: open\n", "retry: { attempts: 0 }")
            .await;
    azure.set_mood("a", Mood::ResetMidBody { after: BodyPosition::Bytes(20) });
    let response = balancer.post(CHAT_TARGET, &[], CHAT_BODY.as_bytes()).await;
    assert!(!response.is_complete, "expected the truncated response to look truncated");
    let record = &balancer.wait_for_records(1).await[0];
    assert_eq!((record["outcome"].as_str(), record["client"].as_str()), (Some("failed"), None));
}
