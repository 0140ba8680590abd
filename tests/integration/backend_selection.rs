//! Which backend gets a request next: tiers, waiting for cooldowns, probes, breakers, the retry budget.

use crate::support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aoai_lb::demo::{ErrorEventOrder, Mood, SimulatedError, Simulator};
use futures::future::join_all;
use serde_json::Value;
use support::upstream::{self, RawRequest, ScriptedUpstream};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, Response, answering_backend,
    listed_backends_yaml, simulated_backend_yaml, start_simulator, wait_until, wait_until_async,
};

fn throttled(ms: u64) -> Mood {
    Mood::Throttled { retry_after_ms: Some(ms), retry_after: None }
}

fn unavailable() -> Mood {
    Mood::Refuses(SimulatedError::Unavailable)
}

/// Starts one resource per tier, in this order, with a further line of YAML in each backend.
async fn start_tiered_backends(names: &[&str], yaml_line: &str, extra_yaml: &str) -> (Simulator, Balancer) {
    let azure = start_simulator(names).await;
    let entry = |(index, name): (usize, &&str)| {
        simulated_backend_yaml(&azure, name, &format!("tier: {}\n{yaml_line}", index + 1))
    };
    let entries: String = names.iter().enumerate().map(entry).collect();
    let balancer = Balancer::start(&entries, extra_yaml).await;
    (azure, balancer)
}

/// The backend and status of each attempt in a record, 0 without a status.
fn attempts_of(record: &Value) -> Vec<(String, u64)> {
    let attempts = record["attempts"].as_array().unwrap().iter();
    attempts
        .map(|attempt| {
            (attempt["backend"].as_str().unwrap().to_owned(), attempt["status"].as_u64().unwrap_or(0))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_out_a_short_429_of_a_provisioned_backend() {
    let (azure, balancer) = start_tiered_backends(&["ptu", "east"], LISTED_DEPLOYMENTS, "").await;
    azure.set_mood("ptu", Mood::Sequence(vec![throttled(40), Mood::Calm]));
    let responses = join_all((0..30).map(|_| balancer.post_chat())).await;
    assert!(responses.iter().all(|response| response.status == 200 && answering_backend(response) == "ptu"));
    assert_eq!(azure.request_count("east"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_429_spills_over_to_the_next_tier_at_once() {
    // A busy machine delays some.
    wait_until_async("a request is sent on at once", async || {
        let (azure, balancer) = start_tiered_backends(&["ptu", "east"], LISTED_DEPLOYMENTS, "").await;
        let mut client = balancer.connect().await;
        client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        azure.set_mood("ptu", throttled(5_000));
        let start = Instant::now();
        let response = client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        let elapsed = start.elapsed();
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "east"));
        assert_eq!(azure.request_count("ptu"), 2);
        elapsed < Duration::from_millis(50)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_cooldowns_no_longer_than_retry_wait() {
    let (azure, balancer) =
        start_tiered_backends(&["ptu", "east"], LISTED_DEPLOYMENTS, "retry: { wait: 250ms, attempts: 2 }")
            .await;
    azure.set_mood("ptu", throttled(200));
    assert_eq!(answering_backend(&balancer.post_chat().await), "east");
    let expected =
        [("ptu", 429), ("ptu", 429), ("east", 200)].map(|(name, status)| (name.to_owned(), status));
    assert_eq!(attempts_of(&balancer.wait_for_records(1).await[0]), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_the_backend_of_its_tier_that_is_available_first() {
    let azure = start_simulator(&["a", "b", "east"]).await;
    let entries = simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS)
        + &simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS)
        + &simulated_backend_yaml(&azure, "east", &format!("tier: 2\n{LISTED_DEPLOYMENTS}"));
    let balancer = Balancer::start(&entries, "").await;
    azure.set_mood("a", throttled(30_000));
    azure.set_mood("b", Mood::Sequence(vec![throttled(60), Mood::Calm]));
    assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    assert_eq!((azure.request_count("a"), azure.request_count("b"), azure.request_count("east")), (1, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_is_returned_at_once_when_all_backends_are_throttled() {
    let (azure, balancer) = start_tiered_backends(&["a", "b"], "", "").await;
    for name in ["a", "b"] {
        azure.set_mood(name, throttled(1_000));
    }
    wait_until_async("a request is refused without waiting rounds", async || {
        let start = Instant::now();
        assert_eq!(balancer.post_chat().await.status, 429);
        start.elapsed() < Duration::from_millis(80)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_disconnect_releases_the_probe_of_a_backend() {
    let (azure, balancer) =
        start_tiered_backends(&["ptu", "east"], LISTED_DEPLOYMENTS, "retry: { wait: 0s }").await;
    azure.set_mood("ptu", throttled(200));
    assert_eq!(answering_backend(&balancer.post_chat().await), "east");
    azure.set_mood("ptu", Mood::SlowFirstByte(Duration::from_secs(20)));
    let length = CHAT_BODY.len().to_string();
    let head =
        Client::request_head("POST", CHAT_TARGET, &[("api-key", CLIENT_KEY), ("Content-Length", &length)]);
    balancer
        .wait_for_status("the cooldown of ptu ends", |s| s["backends"][0]["resting"] == Value::Array(vec![]))
        .await;
    // The request probes ptu, but its client disconnects before the response.
    let mut probing_client = balancer.connect().await;
    probing_client.send(&[head.as_bytes(), CHAT_BODY.as_bytes()].concat()).await;
    wait_until("the probing request reaches ptu", || {
        azure.received_requests("ptu").iter().filter(|request| request.is_body_complete).count() == 2
    })
    .await;
    drop(probing_client);
    azure.set_mood("ptu", Mood::Calm);
    wait_until("the record of the probing request is written", || balancer.records().len() == 2).await;
    assert_eq!(answering_backend(&balancer.post_chat().await), "ptu");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_breaker_admits_one_request_until_its_response_arrives() {
    let azure = start_simulator(&["a", "b"]).await;
    let extra_yaml = "breaker: { failures: 3, ratio: 1%, open: 400ms }";
    let balancer = Arc::new(Balancer::start(&listed_backends_yaml(&azure), extra_yaml).await);
    azure.set_mood("a", unavailable());
    for _ in 0..8 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    }
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_secs(2)));
    balancer
        .wait_for_status("the breaker of a is half open", |s| s["backends"][0]["state"] != "breaker_open")
        .await;
    let hits = azure.request_count("a");
    let chat = |balancer: &Arc<Balancer>| {
        let balancer = Arc::clone(balancer);
        tokio::spawn(async move { answering_backend(&balancer.post_chat().await) })
    };
    // One of two requests probes the backend.
    let concurrent_chats = [chat(&balancer), chat(&balancer)];
    wait_until("one request probes a", || azure.request_count("a") == hits + 1).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        assert_eq!(
            answering_backend(&balancer.post_chat().await),
            "b",
            "expected a sent request without a response not to close the breaker"
        );
    }
    let mut answering_backends = [String::new(), String::new()];
    for (answering_backend_name, probe) in answering_backends.iter_mut().zip(concurrent_chats) {
        *answering_backend_name = probe.await.unwrap();
    }
    answering_backends.sort();
    assert_eq!(answering_backends, ["a", "b"]);
    azure.set_mood("a", Mood::Calm);
    let mut later_backends =
        [answering_backend(&balancer.post_chat().await), answering_backend(&balancer.post_chat().await)];
    later_backends.sort();
    assert_eq!(later_backends, ["a", "b"], "expected a to take its turns again");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_response_closes_the_breaker_of_the_only_backend() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "retry: { attempts: 0 }\nbreaker: { failures: 3, ratio: 1%, open: 60s }";
    let balancer = Balancer::start(&listed_backends_yaml(&azure), extra_yaml).await;
    azure.set_mood("a", unavailable());
    for _ in 0..3 {
        assert_eq!(balancer.post_chat().await.status, 503);
    }
    balancer
        .wait_for_status("the breaker of a is open", |s| s["backends"][0]["state"] == "breaker_open")
        .await;
    azure.set_mood("a", throttled(1_000));
    for _ in 0..2 {
        let response = balancer.post_chat().await;
        assert_eq!(response.status, 429, "{}", response.text());
        let retry_after_ms: u64 = response.header("retry-after-ms").unwrap().parse().unwrap();
        assert!((1..=1_000).contains(&retry_after_ms), "{retry_after_ms}");
    }
    assert_eq!(balancer.status().await["backends"][0]["state"], "healthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_inside_a_200_closes_a_half_open_breaker() {
    let azure = start_simulator(&["a", "b"]).await;
    let extra_yaml = "breaker: { failures: 3, ratio: 1%, open: 300ms }";
    let balancer = Balancer::start(&listed_backends_yaml(&azure), extra_yaml).await;
    azure.set_mood("a", unavailable());
    for _ in 0..8 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    }
    balancer
        .wait_for_status("the breaker of a is half open", |s| s["backends"][0]["state"] != "breaker_open")
        .await;
    azure.set_mood(
        "a",
        Mood::ErrorFirst { event_order: ErrorEventOrder::ErrorAlone, retry_after: Some("30".to_owned()) },
    );
    let stream = r#"{"stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    for _ in 0..2 {
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], stream.as_bytes()).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    }
    // Another deployment of the same backend is not affected.
    azure.set_mood("a", Mood::Calm);
    let other = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
    let responses =
        join_all((0..10).map(|_| balancer.post(other, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes())))
            .await;
    assert_eq!(responses.iter().filter(|response| answering_backend(response) == "a").count(), 5);
}

/// One request probes the backend after a minute.
#[tokio::test(flavor = "multi_thread")]
async fn credential_permission_and_deployment_errors_are_probed_again_after_a_minute() {
    let table = [
        (SimulatedError::InvalidKey, "credential"),
        (SimulatedError::PermissionDenied, "permission"),
        (SimulatedError::DeploymentNotFound, "absent"),
    ];
    let check_case = async |(refusal, reason): (SimulatedError, &str)| {
        let azure = start_simulator(&["a", "b"]).await;
        azure.set_mood("a", Mood::Refuses(refusal));
        let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
        for _ in 0..8 {
            assert_eq!(answering_backend(&balancer.post_chat().await), "b");
        }
        let status = balancer.status().await.to_string();
        assert!(status.contains(reason), "expected {reason:?} in: {status}");
        let requests_before = azure.request_count("a");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let chats = join_all((0..20).map(|_| balancer.post_chat())).await;
        assert!(chats.iter().all(|response| response.status == 200));
        // One chat, and the balancer's own question about its rejection.
        let further_requests = azure.request_count("a") - requests_before;
        assert!((1..=2).contains(&further_requests), "{refusal:?}: {further_requests}");
    };
    join_all(table.map(check_case)).await;
}

const NO_BREAKER: &str = "breaker: { failures: 10000 }";

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_budget_does_not_limit_the_first_failover() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer =
        Balancer::start(&listed_backends_yaml(&azure), &format!("retry: {{ budget: 0% }}\n{NO_BREAKER}"))
            .await;
    azure.set_mood("a", unavailable());
    for _ in 0..10 {
        let responses = join_all((0..30).map(|_| balancer.post_chat())).await;
        assert!(
            responses.iter().all(|response| response.status == 200 && answering_backend(response) == "b")
        );
    }
    assert_eq!(azure.request_count("a"), 150);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_budget_limits_further_failovers_beyond_a_free_allowance() {
    let extra_yaml = format!("retry: {{ budget: 0% }}\n{NO_BREAKER}");
    let (azure, balancer) = start_tiered_backends(&["a", "b", "c"], LISTED_DEPLOYMENTS, &extra_yaml).await;
    azure.set_mood("a", unavailable());
    azure.set_mood("b", unavailable());
    let start = Instant::now();
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.extend(
            join_all((0..40).map(|_| balancer.post_chat())).await.iter().map(|response| response.status),
        );
    }
    // Ten failovers a second are free, for up to ten seconds in advance. Requests that check at the
    // same moment may share the last free one.
    let free_failovers = 110 + usize::try_from(start.elapsed().as_secs()).unwrap() * 10;
    let answering_backends = statuses.iter().filter(|status| **status == 200).count();
    assert!(
        (100..=free_failovers).contains(&answering_backends),
        "{answering_backends} of {}",
        statuses.len()
    );
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), statuses.len() - answering_backends);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_budget_does_not_limit_failovers_after_a_refusal() {
    let error_in_stream = Mood::ErrorFirst { event_order: ErrorEventOrder::ErrorAlone, retry_after: None };
    let stream = r#"{"stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    for (mood, body) in [
        (throttled(5_000), CHAT_BODY),
        (Mood::Refuses(SimulatedError::InvalidKey), CHAT_BODY),
        (error_in_stream, stream),
    ] {
        // The deployment is not listed, so that no cooldown of the deployment is kept.
        let extra_yaml = format!("retry: {{ budget: 0% }}\n{NO_BREAKER}");
        let (azure, balancer) = start_tiered_backends(&["a", "b", "c"], "", &extra_yaml).await;
        azure.set_mood("a", mood.clone());
        azure.set_mood("b", mood.clone());
        for _ in 0..5 {
            let responses = join_all(
                (0..30).map(|_| balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes())),
            )
            .await;
            assert!(
                responses.iter().all(|response| response.status == 200 && answering_backend(response) == "c"),
                "{mood:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_in_retry_statuses_is_tried_once_on_each_backend() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "retry: { statuses: [400-599] }").await;
    for name in ["a", "b"] {
        azure.set_mood(name, Mood::Refuses(SimulatedError::Conflict));
    }
    let response = balancer.post_chat().await;
    assert_eq!((response.status, azure.request_count("a"), azure.request_count("b")), (409, 1, 1));
    // A rejection by the content filter is not retried on other backends.
    azure.set_mood("a", Mood::Refuses(SimulatedError::ContentFilter));
    azure.set_mood("b", Mood::Refuses(SimulatedError::ContentFilter));
    let response = balancer.post_chat().await;
    assert_eq!((response.status, azure.request_count("a") + azure.request_count("b")), (400, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_useful_response_of_all_attempts_is_relayed_completely() {
    let table = [
        // From most to least useful: a 4xx about the request, a 429, a 5xx, a 408.
        (Mood::Refuses(SimulatedError::Conflict), throttled(5_000), 409),
        (throttled(5_000), unavailable(), 429),
        (unavailable(), Mood::Refuses(SimulatedError::Timeout), 503),
        (Mood::Refuses(SimulatedError::InvalidKey), unavailable(), 503),
        (Mood::Refuses(SimulatedError::DeploymentNotFound), throttled(5_000), 429),
        (Mood::Refuses(SimulatedError::InvalidKey), Mood::ResetBeforeHead, 502),
    ];
    for (first_mood, second_mood, expected) in table {
        for (a, b) in [(&first_mood, &second_mood), (&second_mood, &first_mood)] {
            let azure = start_simulator(&["a", "b"]).await;
            let extra_yaml = "retry: { statuses: [408, 409, 429, 500-599], attempts: 1 }";
            let balancer = Balancer::start(&listed_backends_yaml(&azure), extra_yaml).await;
            azure.set_mood("a", a.clone());
            azure.set_mood("b", b.clone());
            let response = balancer.post_chat().await;
            assert_eq!(response.status, expected, "{a:?} {b:?}: {}", response.text());
            assert!(response.is_complete);
            let error = &response.json()["error"];
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_hints_to_clients_are_accurate_and_limited() {
    // The client need not wait if one of the backends may be available at once.
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "retry: { attempts: 0 }").await;
    azure.set_mood("a", throttled(30_000));
    azure.set_mood("b", throttled(30_000));
    let parse_hint =
        |response: &Response, name: &str| response.header(name).map(|hint| hint.parse::<u64>().unwrap());
    let response = balancer.post_chat().await;
    assert_eq!((response.status, parse_hint(&response, "retry-after-ms")), (429, Some(1)));
    let response = balancer.post_chat().await;
    assert!(parse_hint(&response, "retry-after-ms").is_some_and(|ms| (20_000..=30_000).contains(&ms)));
    // Some SDKs would sleep for a day if a 503 asked for it.
    let hints = [
        ("retry-after: 86400", Some(60)),
        ("retry-after: soon", Some(10)),
        ("retry-after: 7", Some(7)),
        ("x-ms-retry-after-ms: 1500", Some(2)),
        ("x-ratelimit-reset-tokens: 7", None),
    ];
    for (header, expected) in hints {
        let upstream =
            ScriptedUpstream::start(move |_: &RawRequest| upstream::complete_response(503, header, "{}"))
                .await;
        let balancer = Balancer::start(&upstream.backend_yaml("a"), "retry: { attempts: 0 }").await;
        let response = balancer.post_chat().await;
        assert_eq!((response.status, parse_hint(&response, "retry-after")), (503, expected), "{header}");
        assert_eq!(response.header("x-ms-retry-after-ms"), None);
    }
}
