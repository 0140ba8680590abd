//! Rests that end with one probe, breakers, and what an outage costs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aoai_lb::demo::{ErrorOrder, Mood, Refusal, Simulator};
use futures::future::join_all;
use support::{Balancer, CHAT, HELLO, KEY, STREAM, answerer, azure, backend, listed, until};

fn throttled(ms: u64) -> Mood {
    Mood::Throttled { retry_after_ms: Some(ms), retry_after: None }
}

/// So many chats at once; the statuses and who answered.
async fn at_once(balancer: &Arc<Balancer>, count: usize) -> Vec<(u16, String)> {
    let one = |balancer: Arc<Balancer>| async move {
        let reply = balancer.chat().await;
        (reply.status, answerer(&reply))
    };
    let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(one(balancer.clone()))).collect();
    let mut seen = Vec::new();
    for task in tasks {
        seen.push(task.await.unwrap());
    }
    seen
}

/// A provisioned backend before a standard one, the former about to end a rest.
async fn rested(then: Mood) -> (Simulator, Arc<Balancer>) {
    let azure = azure(&["ptu", "east"]).await;
    let tiers = backend(&azure, "ptu", "tier: 1\ndeployments: { gpt-4o: gpt-4o }")
        + &backend(&azure, "east", "tier: 2\ndeployments: { gpt-4o: gpt-4o }");
    let balancer = Arc::new(Balancer::start(&tiers, "retry: { wait: 0s }").await);
    azure.set_mood("ptu", throttled(300));
    assert_eq!(answerer(&balancer.chat().await), "east");
    azure.set_mood("ptu", then);
    balancer.until_status("the rest ends", |s| !s["backends"][0]["resting"][0].is_object()).await;
    (azure, balancer)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_cooldown_is_no_stampede() {
    let (azure, balancer) = rested(throttled(60_000)).await;
    let seen = at_once(&balancer, 40).await;
    assert!(seen.iter().all(|(status, name)| *status == 200 && name == "east"), "{seen:?}");
    assert_eq!(azure.hits("ptu"), 2, "one goes first, and is refused");
    // When it is not refused, the gate opens to everyone.
    let (_azure, balancer) = rested(Mood::Calm).await;
    assert_eq!(answerer(&balancer.chat().await), "ptu");
    let seen = at_once(&balancer, 20).await;
    assert!(seen.iter().all(|(_, name)| name == "ptu"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_opens_while_the_probe_still_waits_for_its_answer() {
    // Answers take long: the one that goes first is not to keep the others away so long.
    let (azure, balancer) = rested(Mood::SlowFirstByte(Duration::from_secs(5))).await;
    let first = tokio::spawn({
        let balancer = balancer.clone();
        async move { answerer(&balancer.chat().await) }
    });
    until("the first is on its way", || azure.hits("ptu") == 2).await;
    let begun = Instant::now();
    loop {
        azure.set_mood("east", Mood::Calm);
        let hits = azure.hits("ptu");
        let asked = tokio::spawn({
            let balancer = balancer.clone();
            async move { answerer(&balancer.chat().await) }
        });
        until("one is asked", || asked.is_finished() || azure.hits("ptu") > hits).await;
        if azure.hits("ptu") > hits {
            break;
        }
        assert_eq!(asked.await.unwrap(), "east");
        assert!(begun.elapsed() < Duration::from_secs(4), "the gate stays shut");
    }
    assert_eq!(first.await.unwrap(), "ptu");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_keeps_failing_is_left_alone_and_taken_back() {
    for mood in [Mood::Refuses(Refusal::ServerError), Mood::ResetBeforeHead] {
        let azure = azure(&["a", "b"]).await;
        let more = "breaker: { failures: 5, ratio: 50%, window: 10s, open: 1500ms, maximum: 20s }";
        let balancer = Arc::new(Balancer::start(&listed(&azure), more).await);
        azure.set_mood("a", mood);
        for _ in 0..30 {
            assert_eq!(answerer(&balancer.chat().await), "b");
        }
        let hits = azure.hits("a");
        let state = balancer.status().await["backends"][0]["state"].clone();
        assert_eq!(state, "breaker_open", "{}", balancer.log());
        // Half open: one goes first, and fails; it stays out longer.
        balancer.until_status("half open", |s| s["backends"][0]["state"] != "breaker_open").await;
        let seen = at_once(&balancer, 30).await;
        assert!(seen.iter().all(|(status, name)| *status == 200 && name == "b"), "{seen:?}");
        assert_eq!(azure.hits("a") - hits, 1);
        azure.set_mood("a", Mood::Calm);
        balancer.until_status("taken back", |s| s["backends"][0]["state"] == "ok").await;
        until_calm(&balancer).await;
        balancer.until_said("backend a fails too often").await;
    }
}

/// Until both take their turns again.
async fn until_calm(balancer: &Balancer) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (first, second) = (answerer(&balancer.chat().await), answerer(&balancer.chat().await));
        if first != second {
            return;
        }
        assert!(Instant::now() < deadline);
    }
}

#[tokio::test]
async fn one_poisonous_prompt_opens_no_breaker() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&listed(&azure), "retry: { attempts: 11 }").await;
    azure.set_mood("a", Mood::Refuses(Refusal::ServerError));
    azure.set_mood("b", Mood::Refuses(Refusal::ServerError));
    assert_eq!(balancer.chat().await.status, 500);
    assert!(azure.hits("a") >= 5, "{}", azure.hits("a"));
    azure.set_mood("a", Mood::Calm);
    azure.set_mood("b", Mood::Calm);
    assert_eq!(balancer.chat().await.status, 200);
    let status = balancer.status().await;
    assert_eq!(
        (status["backends"][0]["state"].as_str(), status["backends"][1]["state"].as_str()),
        (Some("ok"), Some("ok"))
    );
}

#[tokio::test]
async fn the_last_backend_is_still_offered() {
    let azure = azure(&["a"]).await;
    let more =
        "breaker: { failures: 2, ratio: 1%, window: 10s, open: 1m, maximum: 5m }\nretry: { attempts: 0 }";
    let balancer = Balancer::start(&listed(&azure), more).await;
    azure.set_mood("a", Mood::Refuses(Refusal::ServerError));
    for _ in 0..4 {
        assert_eq!(balancer.chat().await.status, 500);
    }
    assert_eq!(balancer.status().await["backends"][0]["state"], "breaker_open");
    azure.set_mood("a", Mood::Calm);
    assert_eq!(balancer.chat().await.status, 200, "asked all the same");
    assert_eq!(balancer.status().await["backends"][0]["state"], "ok", "and taken back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_total_outage_costs_little_more_than_the_clients_asked_for() {
    let outages = [
        (Mood::Refuses(Refusal::Unavailable), ""),
        (Mood::Mute, "timeouts: { first_byte: 200ms }"),
        (Mood::ResetBeforeHead, ""),
    ];
    join_all(outages.map(|(mood, more)| outage(mood, more))).await;
}

async fn outage(mood: Mood, more: &str) {
    let azure = azure(&["a", "b", "c"]).await;
    let balancer =
        Arc::new(Balancer::start(&listed(&azure), &format!("retry: {{ deadline: 2s }}\n{more}")).await);
    for name in ["a", "b", "c"] {
        azure.set_mood(name, mood.clone());
    }
    let hits = || azure.hits("a") + azure.hits("b") + azure.hits("c");
    let begun = Instant::now();
    let (mut asked, mut before) = (0, 0);
    while begun.elapsed() < Duration::from_secs(9) {
        if before == 0 && begun.elapsed() > Duration::from_secs(5) {
            (asked, before) = (0, hits());
        }
        let seen = at_once(&balancer, 25).await;
        assert!(seen.iter().all(|(status, _)| (502..=504).contains(status)), "{seen:?}");
        asked += 25;
    }
    let cost = hits() - before;
    // Ten a second are always free; `budget` is 20 %.
    let most = asked + asked / 5 + 125;
    println!("{mood:?} {more}: {cost} upstream requests for {asked} of clients");
    assert!(cost <= most, "{cost} upstream requests for {asked} of clients in {mood:?} {more}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_through_flapping_backends_without_one_error() {
    let azure = Arc::new(azure(&["a", "b", "c"]).await);
    // Rests as short as the moods last: who is well again is to be found out in time.
    let pace = "timeouts: { first_byte: 400ms, first_byte_stream: 300ms }\n\
                breaker: { open: 100ms, maximum: 200ms }\ncooldown: { default: 50ms, maximum: 100ms }";
    let balancer = Arc::new(Balancer::start(&listed(&azure), pace).await);
    let flapping = tokio::spawn({
        let azure = azure.clone();
        async move {
            let moods = [
                Mood::Refuses(Refusal::Unavailable),
                Mood::ResetBeforeHead,
                Mood::CloseBeforeHead,
                throttled(50),
                Mood::Refuses(Refusal::Timeout),
                Mood::ErrorFirst { order: ErrorOrder::CreatedErrorFailed, retry_after: Some("1".to_owned()) },
                Mood::Refuses(Refusal::ServerErrorHtml),
                Mood::Mute,
                Mood::ResetOnAccept,
                Mood::EarlyAnswer { refusal: Refusal::Unavailable, close: true },
            ];
            // One of the three is ill for a while, then two, in ever other ways; another could answer.
            let names = ["a", "b", "c"];
            for n in 0_usize.. {
                for (ill, mood) in [(n, n), (n + n % 2, n + 5)] {
                    azure.set_mood(names[ill % 3], moods[mood % moods.len()].clone());
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
                let mut client = balancer.client().await;
                let mut statuses = Vec::new();
                for n in 0..100 {
                    let body = if n % 2 == 0 { HELLO } else { STREAM };
                    let reply = client.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await;
                    if reply.status != 200 {
                        client = balancer.client().await;
                    } else if n % 2 == 1 {
                        let is_whole = reply.whole && reply.text().ends_with("data: [DONE]\n\n");
                        assert!(is_whole, "{}", reply.text());
                    }
                    statuses.push(reply.status);
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
    let records = balancer.records_of(1000).await;
    let sad: Vec<_> = records.iter().filter(|record| record["status"] != 200).collect();
    assert_eq!(failed, 0, "{:#?}", sad.first());
}

#[tokio::test]
async fn a_backend_with_traffic_is_not_probed() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backend(&azure, "a", "probe: { interval: 1s }"), "").await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_500) {
        assert_eq!(balancer.chat().await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(azure.requests("a").iter().all(|seen| seen.method == "POST"));
}

#[tokio::test]
async fn a_backend_without_traffic_is_asked_whether_it_is_well() {
    let azure = azure(&["a", "b"]).await;
    let tiers = backend(&azure, "a", "tier: 1") + &backend(&azure, "b", "tier: 2\nprobe: { interval: 1s }");
    let balancer = Balancer::start(&tiers, "").await;
    let state = async |expected: &str| {
        balancer.until_status(expected, |s| s["backends"][1]["state"] == expected).await;
    };
    until("it is probed", || azure.hits("b") > 0).await;
    let seen = azure.requests("b").pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.status), ("GET", Some(200)), "{seen:?}");
    assert_eq!(seen.target, "/openai/models?api-version=2024-10-21");
    azure.set_mood("b", Mood::Refuses(Refusal::Unavailable));
    state("breaker_open").await;
    azure.set_mood("b", Mood::Calm);
    state("ok").await;
    azure.set_mood("b", Mood::Refuses(Refusal::InvalidKey));
    state("credential").await;
    azure.set_mood("b", Mood::Calm);
    state("ok").await;
    azure.stop_listening("b").await;
    azure.drop_connections("b").await;
    state("breaker_open").await;
    assert_eq!(azure.hits("a"), 0, "who wants no probe gets none");
    assert!(balancer.records().is_empty(), "a probe is nobody's request");
}
