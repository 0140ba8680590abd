//! Failover: probes after cooldowns, breakers, the cost of an outage, and background probes.

use crate::support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aoai_lb::demo::{ErrorEventOrder, Mood, SimulatedError, Simulator};
use futures::future::join_all;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, STREAM_BODY, answering_backend, listed_backends_yaml,
    simulated_backend_yaml, start_simulator, wait_until,
};

fn throttled(ms: u64) -> Mood {
    Mood::Throttled { retry_after_ms: Some(ms), retry_after: None }
}

/// Sends `count` chats concurrently; returns status and backend of each response.
async fn post_chats_concurrently(balancer: &Arc<Balancer>, count: usize) -> Vec<(u16, String)> {
    let post_chat = |balancer: Arc<Balancer>| async move {
        let response = balancer.post_chat().await;
        (response.status, answering_backend(&response))
    };
    let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(post_chat(balancer.clone()))).collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}

/// Starts a provisioned backend in front of a standard one. The cooldown of the provisioned one has just
/// ended; its next requests meet this mood.
async fn start_with_expired_cooldown(mood_after_cooldown: Mood) -> (Simulator, Arc<Balancer>) {
    let azure = start_simulator(&["ptu", "east"]).await;
    let tiers = simulated_backend_yaml(&azure, "ptu", "tier: 1\ndeployments: { gpt-4o: gpt-4o }")
        + &simulated_backend_yaml(&azure, "east", "tier: 2\ndeployments: { gpt-4o: gpt-4o }");
    let balancer = Arc::new(Balancer::start(&tiers, "retry: { wait: 0s }").await);
    azure.set_mood("ptu", throttled(300));
    assert_eq!(answering_backend(&balancer.post_chat().await), "east");
    azure.set_mood("ptu", mood_after_cooldown);
    balancer
        .wait_for_status("the cooldown of ptu ends", |s| !s["backends"][0]["resting"][0].is_object())
        .await;
    (azure, balancer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_request_probes_a_backend_after_its_cooldown() {
    let mut was_quick = false;
    for _ in 0..20 {
        let (azure, balancer) = start_with_expired_cooldown(throttled(60_000)).await;
        let outcomes = post_chats_concurrently(&balancer, 40).await;
        assert!(outcomes.iter().all(|(status, name)| *status == 200 && name == "east"), "{outcomes:?}");
        // A probe counts as accepted after 100 ms: on a busy machine its refusal may take longer.
        let records = balancer.wait_for_records(41).await;
        let attempts = records.iter().flat_map(|record| record["attempts"].as_array().unwrap());
        if attempts
            .filter(|attempt| attempt["backend"] == "ptu")
            .all(|attempt| attempt["ms"].as_u64() < Some(80))
        {
            assert_eq!(azure.request_count("ptu"), 2, "expected one request to probe ptu and be refused");
            was_quick = true;
            break;
        }
    }
    assert!(was_quick, "the refusal of the probe always took long");
    // After a successful probe all requests are admitted.
    let (_azure, balancer) = start_with_expired_cooldown(Mood::Calm).await;
    assert_eq!(answering_backend(&balancer.post_chat().await), "ptu");
    let outcomes = post_chats_concurrently(&balancer, 20).await;
    assert!(outcomes.iter().all(|(_, name)| name == "ptu"), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_requests_are_admitted_before_the_probe_has_its_response() {
    // A response takes long, so that waiting for the response of the probe would block the others.
    let (azure, balancer) = start_with_expired_cooldown(Mood::SlowFirstByte(Duration::from_secs(5))).await;
    let first = tokio::spawn({
        let balancer = balancer.clone();
        async move { answering_backend(&balancer.post_chat().await) }
    });
    wait_until("the probe reaches ptu", || azure.request_count("ptu") == 2).await;
    let start = Instant::now();
    loop {
        azure.set_mood("east", Mood::Calm);
        let hits = azure.request_count("ptu");
        let client_requests = tokio::spawn({
            let balancer = balancer.clone();
            async move { answering_backend(&balancer.post_chat().await) }
        });
        wait_until("the next request reaches ptu or ends", || {
            client_requests.is_finished() || azure.request_count("ptu") > hits
        })
        .await;
        if azure.request_count("ptu") > hits {
            break;
        }
        assert_eq!(client_requests.await.unwrap(), "east");
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "expected further requests to be admitted before the response of the probe"
        );
    }
    assert_eq!(first.await.unwrap(), "ptu");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_of_a_failing_backend_opens_and_closes_when_it_recovers() {
    for mood in [Mood::Refuses(SimulatedError::ServerError), Mood::ResetBeforeHead] {
        let azure = start_simulator(&["a", "b"]).await;
        let extra_yaml = "breaker: { failures: 5, ratio: 50%, window: 10s, open: 1500ms, maximum: 20s }";
        let balancer = Arc::new(Balancer::start(&listed_backends_yaml(&azure), extra_yaml).await);
        azure.set_mood("a", mood);
        for _ in 0..30 {
            assert_eq!(answering_backend(&balancer.post_chat().await), "b");
        }
        let hits = azure.request_count("a");
        let state = balancer.status().await["backends"][0]["state"].clone();
        assert_eq!(state, "breaker_open", "{}", balancer.log());
        // Half open: one request probes the backend and fails, and the breaker opens for longer.
        balancer
            .wait_for_status("the breaker of a is half open", |s| s["backends"][0]["state"] != "breaker_open")
            .await;
        let outcomes = post_chats_concurrently(&balancer, 30).await;
        assert!(outcomes.iter().all(|(status, name)| *status == 200 && name == "b"), "{outcomes:?}");
        assert_eq!(azure.request_count("a") - hits, 1);
        azure.set_mood("a", Mood::Calm);
        balancer
            .wait_for_status("backend a is available again", |s| s["backends"][0]["state"] != "breaker_open")
            .await;
        wait_until_both_answer(&balancer).await;
        balancer.wait_for_log("backend a: circuit open for ").await;
    }
}

/// Waits until both backends take turns again.
async fn wait_until_both_answer(balancer: &Balancer) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (first, second) =
            (answering_backend(&balancer.post_chat().await), answering_backend(&balancer.post_chat().await));
        if first != second {
            return;
        }
        assert!(Instant::now() < deadline);
    }
}

#[tokio::test]
async fn a_single_request_that_always_fails_opens_no_breaker() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "retry: { attempts: 11 }").await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::ServerError));
    azure.set_mood("b", Mood::Refuses(SimulatedError::ServerError));
    assert_eq!(balancer.post_chat().await.status, 500);
    assert!(azure.request_count("a") >= 5, "{}", azure.request_count("a"));
    azure.set_mood("a", Mood::Calm);
    azure.set_mood("b", Mood::Calm);
    assert_eq!(balancer.post_chat().await.status, 200);
    let status = balancer.status().await;
    assert_eq!(
        (status["backends"][0]["state"].as_str(), status["backends"][1]["state"].as_str()),
        (Some("healthy"), Some("healthy"))
    );
}

#[tokio::test]
async fn the_only_backend_is_used_although_its_breaker_is_open() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml =
        "breaker: { failures: 2, ratio: 1%, window: 10s, open: 1m, maximum: 5m }\nretry: { attempts: 0 }";
    let balancer = Balancer::start(&listed_backends_yaml(&azure), extra_yaml).await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::ServerError));
    for _ in 0..4 {
        assert_eq!(balancer.post_chat().await.status, 500);
    }
    assert_eq!(balancer.status().await["backends"][0]["state"], "breaker_open");
    azure.set_mood("a", Mood::Calm);
    assert_eq!(balancer.post_chat().await.status, 200, "expected the backend to be tried anyway");
    // The breaker is closed. Most attempts of the last minute have failed all the same.
    assert_eq!(balancer.status().await["backends"][0]["state"], "failing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_total_outage_causes_few_extra_upstream_requests() {
    let outages = [
        (Mood::Refuses(SimulatedError::Unavailable), ""),
        (Mood::Mute, "timeouts: { first_byte: 200ms }"),
        (Mood::ResetBeforeHead, ""),
    ];
    join_all(outages.map(|(mood, extra_yaml)| check_outage_cost(mood, extra_yaml))).await;
}

async fn check_outage_cost(mood: Mood, extra_yaml: &str) {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let balancer = Arc::new(
        Balancer::start(&listed_backends_yaml(&azure), &format!("retry: {{ deadline: 2s }}\n{extra_yaml}"))
            .await,
    );
    for name in ["a", "b", "c"] {
        azure.set_mood(name, mood.clone());
    }
    let hits = || azure.request_count("a") + azure.request_count("b") + azure.request_count("c");
    let start = Instant::now();
    let (mut client_requests, mut upstream_requests_before) = (0, 0);
    while start.elapsed() < Duration::from_secs(9) {
        if upstream_requests_before == 0 && start.elapsed() > Duration::from_secs(5) {
            (client_requests, upstream_requests_before) = (0, hits());
        }
        let outcomes = post_chats_concurrently(&balancer, 25).await;
        assert!(outcomes.iter().all(|(status, _)| (502..=504).contains(status)), "{outcomes:?}");
        client_requests += 25;
    }
    let upstream_requests = hits() - upstream_requests_before;
    // Ten retries a second are always free; beyond that, `retry.budget` allows 20 %.
    let limit = client_requests + client_requests / 5 + 125;
    println!("{mood:?} {extra_yaml}: {upstream_requests} upstream requests for {client_requests} of clients");
    assert!(
        upstream_requests <= limit,
        "{upstream_requests} upstream requests for {client_requests} of clients in {mood:?} {extra_yaml}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_succeed_with_flapping_backends() {
    let azure = Arc::new(start_simulator(&["a", "b", "c"]).await);
    // Breakers and cooldowns as short as the moods, so that recovered backends are noticed in time.
    let extra_yaml = "timeouts: { first_byte: 400ms, first_byte_stream: 300ms }\n\
                breaker: { open: 100ms, maximum: 200ms }\ncooldown: { default: 50ms, maximum: 100ms }";
    let balancer = Arc::new(Balancer::start(&listed_backends_yaml(&azure), extra_yaml).await);
    let flapping = tokio::spawn({
        let azure = azure.clone();
        async move {
            let moods = [
                Mood::Refuses(SimulatedError::Unavailable),
                Mood::ResetBeforeHead,
                Mood::CloseBeforeHead,
                throttled(50),
                Mood::Refuses(SimulatedError::Timeout),
                Mood::ErrorFirst {
                    event_order: ErrorEventOrder::CreatedErrorFailed,
                    retry_after: Some("1".to_owned()),
                },
                Mood::Refuses(SimulatedError::ServerErrorHtml),
                Mood::Mute,
                Mood::ResetOnAccept,
                Mood::EarlyAnswer { error: SimulatedError::Unavailable, closes_connection: true },
            ];
            // One or two of the three fail at a time, each time in another way; at least one works.
            let names = ["a", "b", "c"];
            for round in 0_usize.. {
                for (backend_index, mood) in [(round, round), (round + round % 2, round + 5)] {
                    azure.set_mood(names[backend_index % 3], moods[mood % moods.len()].clone());
                }
                tokio::time::sleep(Duration::from_millis(150)).await;
                names.iter().for_each(|name| azure.set_mood(name, Mood::Calm));
            }
        }
    });
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let balancer = balancer.clone();
            tokio::spawn(async move {
                let mut client = balancer.connect().await;
                let mut statuses = Vec::new();
                for round in 0..100 {
                    let body = if round % 2 == 0 { CHAT_BODY } else { STREAM_BODY };
                    let response =
                        client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
                    if response.status != 200 {
                        client = balancer.connect().await;
                    } else if round % 2 == 1 {
                        let is_whole = response.is_complete && response.text().ends_with("data: [DONE]\n\n");
                        assert!(is_whole, "{}", response.text());
                    }
                    statuses.push(response.status);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                statuses
            })
        })
        .collect();
    let mut failed = 0;
    for task in tasks {
        failed += task.await.unwrap().iter().filter(|status| **status != 200).count();
    }
    flapping.abort();
    let records = balancer.wait_for_records(1000).await;
    let failed_records: Vec<_> = records.iter().filter(|record| record["status"] != 200).collect();
    assert_eq!(failed, 0, "{:#?}", failed_records.first());
}

#[tokio::test]
async fn a_backend_with_traffic_is_not_probed() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", "probe: { interval: 1s }"), "").await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2_500) {
        assert_eq!(balancer.post_chat().await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(azure.received_requests("a").iter().all(|request| request.method == "POST"));
}

#[tokio::test]
async fn an_idle_backend_is_probed_and_its_state_follows_the_probe() {
    let azure = start_simulator(&["a", "b"]).await;
    let tiers = simulated_backend_yaml(&azure, "a", "tier: 1")
        + &simulated_backend_yaml(&azure, "b", "tier: 2\nprobe: { interval: 1s }");
    let balancer = Balancer::start(&tiers, "").await;
    let state = async |expected: &str| {
        balancer.wait_for_status(expected, |s| s["backends"][1]["state"] == expected).await;
    };
    wait_until("backend b is probed", || azure.request_count("b") > 0).await;
    let request = azure.received_requests("b").pop().unwrap();
    assert_eq!((request.method.as_str(), request.response_status), ("GET", Some(200)), "{request:?}");
    assert_eq!(request.target, "/openai/models?api-version=2024-10-21");
    azure.set_mood("b", Mood::Refuses(SimulatedError::Unavailable));
    state("breaker_open").await;
    azure.set_mood("b", Mood::Calm);
    state("healthy").await;
    azure.set_mood("b", Mood::Refuses(SimulatedError::InvalidKey));
    state("credential").await;
    azure.set_mood("b", Mood::Calm);
    state("healthy").await;
    azure.stop_listening("b").await;
    azure.abort_connections("b").await;
    state("breaker_open").await;
    assert_eq!(azure.request_count("a"), 0, "expected no probe of the backend without a `probe` block");
    assert!(balancer.records().is_empty(), "expected no record of a probe");
}
