//! Who is asked next, and when nobody is: waits, tiers, gates, breakers and the retry budget.

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
use serde_json::Value;
use support::upstream::{self, Request, Upstream};
use support::{Balancer, CHAT, Client, HELLO, KEY, LISTED, Reply, answerer, azure, backend, listed, until};

fn throttled(ms: u64) -> Mood {
    Mood::Throttled { retry_after_ms: Some(ms), retry_after: None }
}

fn down() -> Mood {
    Mood::Refuses(Refusal::Unavailable)
}

/// Resources in tiers of one each, in this order, with this further line in each entry.
async fn tiers(names: &[&str], line: &str, more: &str) -> (Simulator, Balancer) {
    let azure = azure(names).await;
    let entry = |(n, name): (usize, &&str)| backend(&azure, name, &format!("tier: {}\n{line}", n + 1));
    let entries: String = names.iter().enumerate().map(entry).collect();
    let balancer = Balancer::start(&entries, more).await;
    (azure, balancer)
}

/// Who was tried for a request, and with what.
fn tried(record: &Value) -> Vec<(String, u64)> {
    let attempts = record["attempts"].as_array().unwrap().iter();
    attempts
        .map(|attempt| {
            (attempt["backend"].as_str().unwrap().to_owned(), attempt["status"].as_u64().unwrap_or(0))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_refusal_of_a_provisioned_tier_loses_no_request() {
    let (azure, balancer) = tiers(&["ptu", "east"], LISTED, "").await;
    azure.set_mood("ptu", Mood::Sequence(vec![throttled(40), Mood::Calm]));
    let replies = join_all((0..30).map(|_| balancer.chat())).await;
    assert!(replies.iter().all(|reply| reply.status == 200 && answerer(reply) == "ptu"));
    assert_eq!(azure.hits("east"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_one_is_spilled_at_once() {
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let (azure, balancer) = tiers(&["ptu", "east"], LISTED, "").await;
        let mut client = balancer.client().await;
        client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
        azure.set_mood("ptu", throttled(5_000));
        let begun = Instant::now();
        let reply = client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
        fastest = fastest.min(begun.elapsed());
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "east"));
        assert_eq!(azure.hits("ptu"), 2);
    }
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_no_longer_than_it_may() {
    let (azure, balancer) = tiers(&["ptu", "east"], LISTED, "retry: { wait: 250ms, attempts: 2 }").await;
    azure.set_mood("ptu", throttled(200));
    assert_eq!(answerer(&balancer.chat().await), "east");
    let expected =
        [("ptu", 429), ("ptu", 429), ("east", 200)].map(|(name, status)| (name.to_owned(), status));
    assert_eq!(tried(&balancer.records_of(1).await[0]), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_tier_the_soonest_is_waited_for() {
    let azure = azure(&["a", "b", "east"]).await;
    let entries = backend(&azure, "a", LISTED)
        + &backend(&azure, "b", LISTED)
        + &backend(&azure, "east", &format!("tier: 2\n{LISTED}"));
    let balancer = Balancer::start(&entries, "").await;
    azure.set_mood("a", throttled(30_000));
    azure.set_mood("b", Mood::Sequence(vec![throttled(60), Mood::Calm]));
    assert_eq!(answerer(&balancer.chat().await), "b");
    assert_eq!((azure.hits("a"), azure.hits("b"), azure.hits("east")), (1, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_throttled_is_told_at_once() {
    let (azure, balancer) = tiers(&["a", "b"], "", "").await;
    for name in ["a", "b"] {
        azure.set_mood(name, throttled(1_000));
    }
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        let begun = Instant::now();
        assert_eq!(balancer.chat().await.status, 429);
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < Duration::from_millis(80), "no round of pauses: {fastest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_hands_on_what_it_was_to_find_out() {
    let (azure, balancer) = tiers(&["ptu", "east"], LISTED, "retry: { wait: 0s }").await;
    azure.set_mood("ptu", throttled(200));
    assert_eq!(answerer(&balancer.chat().await), "east");
    azure.set_mood("ptu", Mood::SlowFirstByte(Duration::from_secs(20)));
    let length = HELLO.len().to_string();
    let head = Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &length)]);
    balancer.until_status("the rest ends", |s| s["backends"][0]["resting"] == Value::Array(vec![])).await;
    // It is accepted, but leaves before that is known.
    let mut first = balancer.client().await;
    first.send(&[head.as_bytes(), HELLO.as_bytes()].concat()).await;
    until("it has arrived", || azure.requests("ptu").iter().filter(|seen| seen.complete).count() == 2).await;
    drop(first);
    azure.set_mood("ptu", Mood::Calm);
    until("its record is there", || balancer.records().len() == 2).await;
    assert_eq!(answerer(&balancer.chat().await), "ptu");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_breaker_waits_for_an_answer() {
    let azure = azure(&["a", "b"]).await;
    let more = "breaker: { failures: 3, ratio: 1%, open: 400ms }";
    let balancer = Arc::new(Balancer::start(&listed(&azure), more).await);
    azure.set_mood("a", down());
    for _ in 0..8 {
        assert_eq!(answerer(&balancer.chat().await), "b");
    }
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_secs(2)));
    balancer.until_status("half open", |s| s["backends"][0]["state"] != "breaker_open").await;
    let hits = azure.hits("a");
    let chat = |balancer: &Arc<Balancer>| {
        let balancer = Arc::clone(balancer);
        tokio::spawn(async move { answerer(&balancer.chat().await) })
    };
    // Of two that are asked, one finds out.
    let probes = [chat(&balancer), chat(&balancer)];
    until("one finds out", || azure.hits("a") == hits + 1).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(answerer(&balancer.chat().await), "b", "being sent is no answer");
    }
    let mut answered = [String::new(), String::new()];
    for (answer, probe) in answered.iter_mut().zip(probes) {
        *answer = probe.await.unwrap();
    }
    answered.sort();
    assert_eq!(answered, ["a", "b"]);
    azure.set_mood("a", Mood::Calm);
    let mut next = [answerer(&balancer.chat().await), answerer(&balancer.chat().await)];
    next.sort();
    assert_eq!(next, ["a", "b"], "it takes its turns again");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_answer_ends_the_breaker_of_the_last_backend() {
    let azure = azure(&["a"]).await;
    let more = "retry: { attempts: 0 }\nbreaker: { failures: 3, ratio: 1%, open: 60s }";
    let balancer = Balancer::start(&listed(&azure), more).await;
    azure.set_mood("a", down());
    for _ in 0..3 {
        assert_eq!(balancer.chat().await.status, 503);
    }
    balancer.until_status("open", |s| s["backends"][0]["state"] == "breaker_open").await;
    azure.set_mood("a", throttled(1_000));
    for _ in 0..2 {
        let reply = balancer.chat().await;
        assert_eq!(reply.status, 429, "{}", reply.text());
        let hint: u64 = reply.header("retry-after-ms").unwrap().parse().unwrap();
        assert!((1..=1_000).contains(&hint), "{hint}");
    }
    assert_eq!(balancer.status().await["backends"][0]["state"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_within_a_200_ends_a_breaker_too() {
    let azure = azure(&["a", "b"]).await;
    let more = "breaker: { failures: 3, ratio: 1%, open: 300ms }";
    let balancer = Balancer::start(&listed(&azure), more).await;
    azure.set_mood("a", down());
    for _ in 0..8 {
        assert_eq!(answerer(&balancer.chat().await), "b");
    }
    balancer.until_status("half open", |s| s["backends"][0]["state"] != "breaker_open").await;
    azure.set_mood(
        "a",
        Mood::ErrorFirst { order: ErrorOrder::ErrorAlone, retry_after: Some("30".to_owned()) },
    );
    let stream = r#"{"stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    for _ in 0..2 {
        let reply = balancer.post(CHAT, &[("api-key", KEY)], stream.as_bytes()).await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    }
    // Another deployment of it has all its turns.
    azure.set_mood("a", Mood::Calm);
    let other = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
    let replies =
        join_all((0..10).map(|_| balancer.post(other, &[("api-key", KEY)], HELLO.as_bytes()))).await;
    assert_eq!(replies.iter().filter(|reply| answerer(reply) == "a").count(), 5);
}

const NO_BREAKER: &str = "breaker: { failures: 10000 }";

#[tokio::test(flavor = "multi_thread")]
async fn the_first_failover_is_never_the_budgets() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&listed(&azure), &format!("retry: {{ budget: 0% }}\n{NO_BREAKER}")).await;
    azure.set_mood("a", down());
    for _ in 0..10 {
        let replies = join_all((0..30).map(|_| balancer.chat())).await;
        assert!(replies.iter().all(|reply| reply.status == 200 && answerer(reply) == "b"));
    }
    assert_eq!(azure.hits("a"), 150);
}

#[tokio::test(flavor = "multi_thread")]
async fn further_failovers_are_and_some_are_free() {
    let more = format!("retry: {{ budget: 0% }}\n{NO_BREAKER}");
    let (azure, balancer) = tiers(&["a", "b", "c"], LISTED, &more).await;
    azure.set_mood("a", down());
    azure.set_mood("b", down());
    let begun = Instant::now();
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.extend(join_all((0..40).map(|_| balancer.chat())).await.iter().map(|reply| reply.status));
    }
    // Ten a second, gathered over ten seconds; requests that look at the same moment may all find
    // the last one free.
    let free = 110 + usize::try_from(begun.elapsed().as_secs()).unwrap() * 10;
    let answered = statuses.iter().filter(|status| **status == 200).count();
    assert!((100..=free).contains(&answered), "{answered} of {}", statuses.len());
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), statuses.len() - answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_refusal_is_never_the_budgets() {
    let hidden = Mood::ErrorFirst { order: ErrorOrder::ErrorAlone, retry_after: None };
    let stream = r#"{"stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    for (mood, body) in
        [(throttled(5_000), HELLO), (Mood::Refuses(Refusal::InvalidKey), HELLO), (hidden, stream)]
    {
        // Not listed, so that no rest of the deployment is remembered.
        let more = format!("retry: {{ budget: 0% }}\n{NO_BREAKER}");
        let (azure, balancer) = tiers(&["a", "b", "c"], "", &more).await;
        azure.set_mood("a", mood.clone());
        azure.set_mood("b", mood.clone());
        for _ in 0..5 {
            let replies =
                join_all((0..30).map(|_| balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()))).await;
            assert!(replies.iter().all(|reply| reply.status == 200 && answerer(reply) == "c"), "{mood:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_status_is_asked_of_each_backend_once() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&listed(&azure), "retry: { statuses: [400-599] }").await;
    for name in ["a", "b"] {
        azure.set_mood(name, Mood::Refuses(Refusal::Conflict));
    }
    let reply = balancer.chat().await;
    assert_eq!((reply.status, azure.hits("a"), azure.hits("b")), (409, 1, 1));
    // A content filter's verdict is not shopped around at all.
    azure.set_mood("a", Mood::Refuses(Refusal::ContentFilter));
    azure.set_mood("b", Mood::Refuses(Refusal::ContentFilter));
    let reply = balancer.chat().await;
    assert_eq!((reply.status, azure.hits("a") + azure.hits("b")), (400, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_useful_answer_is_relayed_whole() {
    let table = [
        // A 4xx about the request, a 429, a 5xx, a 408.
        (Mood::Refuses(Refusal::Conflict), throttled(5_000), 409),
        (throttled(5_000), down(), 429),
        (down(), Mood::Refuses(Refusal::Timeout), 503),
        (Mood::Refuses(Refusal::InvalidKey), down(), 503),
        (Mood::Refuses(Refusal::DeploymentNotFound), throttled(5_000), 429),
        (Mood::Refuses(Refusal::InvalidKey), Mood::ResetBeforeHead, 502),
    ];
    for (one, other, expected) in table {
        for (a, b) in [(&one, &other), (&other, &one)] {
            let azure = azure(&["a", "b"]).await;
            let more = "retry: { statuses: [408, 409, 429, 500-599], attempts: 1 }";
            let balancer = Balancer::start(&listed(&azure), more).await;
            azure.set_mood("a", a.clone());
            azure.set_mood("b", b.clone());
            let reply = balancer.chat().await;
            assert_eq!(reply.status, expected, "{a:?} {b:?}: {}", reply.text());
            assert!(reply.whole);
            let error = &reply.json()["error"];
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_to_clients_are_true_and_bounded() {
    // A backend that could answer now is no reason to stay away.
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&listed(&azure), "retry: { attempts: 0 }").await;
    azure.set_mood("a", throttled(30_000));
    azure.set_mood("b", throttled(30_000));
    let hint = |reply: &Reply, name: &str| reply.header(name).map(|hint| hint.parse::<u64>().unwrap());
    let reply = balancer.chat().await;
    assert_eq!((reply.status, hint(&reply, "retry-after-ms")), (429, Some(1)));
    let reply = balancer.chat().await;
    assert!(hint(&reply, "retry-after-ms").is_some_and(|ms| (20_000..=30_000).contains(&ms)));
    // Some SDKs sleep for a day if a 503 tells them to.
    let told = [
        ("retry-after: 86400", Some(60)),
        ("retry-after: soon", Some(10)),
        ("retry-after: 7", Some(7)),
        ("x-ms-retry-after-ms: 1500", Some(2)),
        ("x-ratelimit-reset-tokens: 7", None),
    ];
    for (told, expected) in told {
        let upstream = Upstream::start(move |_: &Request| upstream::reply(503, told, "{}")).await;
        let balancer = Balancer::start(&upstream.backend("a"), "retry: { attempts: 0 }").await;
        let reply = balancer.chat().await;
        assert_eq!((reply.status, hint(&reply, "retry-after")), (503, expected), "{told}");
        assert_eq!(reply.header("x-ms-retry-after-ms"), None);
    }
}
