//! What a reply means: for the request, and for the backend that gave it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use aoai_lb::demo::{ErrorOrder, Extent, Mood, Refusal, Simulator};
use futures::future::join_all;
use serde_json::Value;
use support::upstream::{Request, Upstream, reply};
use support::{
    Balancer, CHAT, HELLO, KEY, LISTED, STREAM, answerer, azure, backend, entry, free_port, listed,
};
use tokio::net::TcpListener;

const TIMEOUTS: &str =
    "timeouts: { connect: 300ms, first_byte: 300ms, first_byte_stream: 300ms, idle: 300ms }";
const OK: &str = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
const JSON: &str = "Content-Type: application/json";
const OTHER: &str = "/openai/deployments/other/chat/completions?api-version=2024-10-21";

fn state(status: &Value, backend: usize) -> &str {
    status["backends"][backend]["state"].as_str().unwrap()
}

/// What rests of the first backend: deployment or operation, reason, milliseconds left.
fn resting(status: &Value) -> Vec<(String, String, u64)> {
    let rests = status["backends"][0]["resting"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rest = |rest: &Value| {
        let what = text(&rest["deployment"]) + &text(&rest["operation"]);
        (what, text(&rest["reason"]), rest["until_ms"].as_u64().unwrap())
    };
    rests.map(rest).collect()
}

/// Names without their times.
fn names(rests: &[(String, String, u64)]) -> Vec<(&str, &str)> {
    rests.iter().map(|(what, reason, _)| (what.as_str(), reason.as_str())).collect()
}

/// Three failures of three requests open the breaker of `a`; `b` is well.
const QUICK_BREAKER: &str = "breaker: { failures: 3, ratio: 1%, window: 30s, open: 60s }";

/// What the first backend of two does to chats: whether `b` answered all of them, and how `a` was
/// seen after that.
async fn suffers(first: &str, second: &Simulator, body: &str, breaks: bool) -> Value {
    let backends = first.to_owned() + &backend(second, "b", LISTED);
    let balancer = Balancer::start(&backends, &format!("{TIMEOUTS}\n{QUICK_BREAKER}")).await;
    for _ in 0..6 {
        let reply = balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await;
        if breaks {
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(reply.whole, answerer(&reply) == "b", "{}", reply.text());
        } else {
            assert_eq!((reply.status, answerer(&reply)), (200, "b".to_owned()), "{}", reply.text());
        }
    }
    let status = balancer.status().await;
    assert_eq!(state(&status, 1), "ok");
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_move_on_and_open_the_breaker() {
    let slow = Mood::SlowFirstByte(Duration::from_secs(20));
    let moods = [
        Mood::Refuses(Refusal::Timeout),
        Mood::Refuses(Refusal::ServerError),
        Mood::Refuses(Refusal::ServerErrorHtml),
        Mood::Refuses(Refusal::BadGateway),
        Mood::Refuses(Refusal::Unavailable),
        Mood::Refuses(Refusal::GatewayTimeout),
        Mood::Refuses(Refusal::Status(529)),
        Mood::ResetOnAccept,
        Mood::ResetBeforeHead,
        Mood::CloseBeforeHead,
        Mood::Mute,
        slow.clone(),
        Mood::Unsolicited101,
        Mood::EarlyAnswer { refusal: Refusal::Unavailable, close: true },
    ];
    let one = async |mood: Mood, body: &str| {
        let azure = azure(&["a", "b"]).await;
        azure.set_mood("a", mood.clone());
        let status = suffers(&backend(&azure, "a", LISTED), &azure, body, false).await;
        assert_eq!(state(&status, 0), "breaker_open", "{mood:?}: {status}");
        assert_eq!(resting(&status), [], "{mood:?}");
    };
    join_all(moods.into_iter().map(|mood| one(mood, HELLO))).await;
    // A stream has a time-out of its own; and one that breaks before it has said anything.
    let early = Mood::CloseMidStream { after: Extent::Events(0) };
    join_all([slow, early].map(|mood| one(mood, STREAM))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_that_cannot_be_reached_move_on_and_open_the_breaker() {
    let azure = azure(&["a", "b"]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [
        ("refused", format!("http://127.0.0.1:{}", free_port())),
        ("no TLS there", format!("https://{}", azure.address("a"))),
        ("TLS stalls", format!("https://{}", silent.local_addr().unwrap())),
        ("no such name", "http://no-such-host.invalid".to_owned()),
    ];
    let one = async |(what, endpoint): (&str, String)| {
        let status = suffers(&entry("a", &endpoint, LISTED), &azure, HELLO, false).await;
        assert_eq!(state(&status, 0), "breaker_open", "{what}: {status}");
    };
    join_all(endpoints.map(one)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_after_content_is_broken_off_and_opens_the_breaker() {
    let moods = [
        Mood::ResetMidBody { after: Extent::Events(3) },
        Mood::CloseMidStream { after: Extent::Events(3) },
        Mood::Silence { after: 3, lasting: Duration::from_secs(20) },
    ];
    let one = async |mood: Mood| {
        let azure = azure(&["a", "b"]).await;
        azure.set_mood("a", mood.clone());
        let status = suffers(&backend(&azure, "a", LISTED), &azure, STREAM, true).await;
        assert_eq!(state(&status, 0), "breaker_open", "{mood:?}: {status}");
    };
    join_all(moods.map(one)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_leave_the_mark_that_fits() {
    let throttled = Mood::Throttled { retry_after_ms: Some(20_000), retry_after: None };
    let (cools, absent): (&[_], &[_]) = (&[("gpt-4o", "cooling")], &[("gpt-4o", "absent")]);
    let refuses = Mood::Refuses;
    let hidden = |order| Mood::ErrorFirst { order, retry_after: Some("20".to_owned()) };
    let table = [
        (throttled, HELLO, "ok", cools),
        (Mood::HighDemand, HELLO, "ok", cools),
        (hidden(ErrorOrder::CreatedErrorFailed), STREAM, "ok", cools),
        (hidden(ErrorOrder::ErrorAlone), STREAM, "ok", cools),
        (refuses(Refusal::InvalidKey), HELLO, "credential", &[]),
        (refuses(Refusal::InvalidToken), HELLO, "credential", &[]),
        (refuses(Refusal::AuthenticationTypeDisabled), HELLO, "credential", &[]),
        (refuses(Refusal::Firewall), HELLO, "credential", &[]),
        (refuses(Refusal::PermissionDenied), HELLO, "ok", &[("chat", "permission")]),
        (refuses(Refusal::DeploymentNotFound), HELLO, "ok", absent),
    ];
    let one = async |(mood, body, expected, rests): (Mood, &str, &str, &[(&str, &str)])| {
        let azure = azure(&["a", "b"]).await;
        azure.set_mood("a", mood.clone());
        let status = suffers(&backend(&azure, "a", LISTED), &azure, body, false).await;
        assert_eq!(state(&status, 0), expected, "{mood:?}: {status}");
        let seen = resting(&status);
        assert_eq!(names(&seen), rests, "{mood:?}");
        assert!(seen.iter().all(|(_, reason, ms)| reason == "cooling" || (50_000..=60_000).contains(ms)));
        // One was enough: it is not asked again.
        assert_eq!(azure.hits("a"), 1, "{mood:?}");
    };
    join_all(table.map(one)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_the_request_is_relayed_and_leaves_no_mark() {
    let moods = [
        Refusal::ContentFilter,
        Refusal::ContextLengthExceeded,
        Refusal::InvalidEncryptedContent,
        Refusal::PreviousResponseNotFound,
        Refusal::Conflict,
        Refusal::Status(400),
        Refusal::Status(413),
        Refusal::Status(422),
    ];
    let one = async |refusal: Refusal| {
        let azure = azure(&["a", "b"]).await;
        azure.set_mood("a", Mood::Refuses(refusal));
        let balancer = Balancer::start(&listed(&azure), QUICK_BREAKER).await;
        let mut seen = HashMap::new();
        for _ in 0..10 {
            let reply = balancer.chat().await;
            assert_eq!(reply.header("x-aoai-lb-attempts"), Some("1"), "{refusal:?}");
            *seen.entry((answerer(&reply), reply.status)).or_insert(0) += 1;
        }
        let expected = [(("a".to_owned(), refusal.status()), 5), (("b".to_owned(), 200), 5)];
        assert_eq!(seen, HashMap::from(expected), "{refusal:?}");
        let status = balancer.status().await;
        assert_eq!((state(&status, 0), resting(&status).len()), ("ok", 0), "{refusal:?}: {status}");
    };
    join_all(moods.map(one)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_deployment_and_a_denied_operation_take_nothing_else_along() {
    let azure = azure(&["a", "b"]).await;
    let moods = HashMap::from([("gpt-4o".to_owned(), Mood::Refuses(Refusal::DeploymentNotFound))]);
    azure.set_mood("a", Mood::PerDeployment { moods, otherwise: Box::new(Mood::Calm) });
    let balancer = Balancer::start(&listed(&azure), "").await;
    for _ in 0..4 {
        assert_eq!(answerer(&balancer.chat().await), "b");
    }
    let mut others = Vec::new();
    for _ in 0..4 {
        let reply = balancer.post(OTHER, &[("api-key", KEY)], HELLO.as_bytes()).await;
        others.push(answerer(&reply));
    }
    others.sort();
    assert_eq!(others, ["a", "a", "b", "b"]);

    const DENIED: &str =
        r#"{"error":{"code":"PermissionDenied","message":"lacks the required data action"}}"#;
    let denies = Upstream::start(|request: &Request| {
        let is_chat = request.head.contains("/chat/");
        if is_chat { reply(403, JSON, DENIED) } else { reply(200, JSON, OK) }
    })
    .await;
    let both = entry("a", &format!("http://{}", denies.address), LISTED) + &backend(&azure, "b", LISTED);
    let balancer = Balancer::start(&both, "").await;
    for _ in 0..4 {
        assert_eq!(answerer(&balancer.chat().await), "b");
    }
    assert_eq!(denies.requests().len(), 1);
    let embeddings = "/openai/deployments/gpt-4o/embeddings?api-version=2024-10-21";
    let mut asked = Vec::new();
    for _ in 0..4 {
        asked.push(answerer(&balancer.post(embeddings, &[("api-key", KEY)], br#"{"input":"x"}"#).await));
    }
    asked.sort();
    assert_eq!(asked[..2], ["a", "a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_resource_may_know_is_asked_there_and_leaves_no_mark() {
    let bodies = [
        (400, r#"{"error":{"code":"BadRequest","message":"API version not supported"}}"#),
        (
            400,
            r#"{"error":{"message":"Could not find an existing deployment with the model requested","type":"invalid_request_error","code":null}}"#,
        ),
    ];
    for (status, body) in bodies {
        let azure = azure(&["b"]).await;
        let lacks = Upstream::start(move |_: &Request| reply(status, JSON, body)).await;
        let both = entry("a", &format!("http://{}", lacks.address), LISTED) + &backend(&azure, "b", LISTED);
        let balancer = Balancer::start(&both, "").await;
        for _ in 0..4 {
            assert_eq!(answerer(&balancer.chat().await), "b", "{body}");
        }
        assert_eq!(lacks.requests().len(), 2, "its turns go on: {body}");
        assert_eq!(resting(&balancer.status().await), [], "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rest_is_as_long_as_the_reply_asked_for() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(8));
    let date = format!("Retry-After: {date}");
    // Clamped to eight seconds; three where nothing sensible is said.
    let policy = "cooldown: { default: 3s, maximum: 8s }";
    let table = [
        (429, "retry-after-ms: 6500", 5_500..=6_500),
        (429, "x-ms-retry-after-ms: 6500", 5_500..=6_500),
        (429, "retry-after: 7", 6_000..=7_000),
        (429, "retry-after: 4.5", 3_500..=4_500),
        (429, "retry-after: 1m2s", 7_000..=8_000),
        (429, &*date, 4_000..=8_000),
        (429, "x-ratelimit-reset-tokens: 5\nx-ratelimit-reset-requests: 6m0s", 4_000..=5_000),
        (
            429,
            "x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-tokens: 1\nx-ratelimit-reset-requests: 6",
            5_000..=6_000,
        ),
        (429, "retry-after: 86400", 7_000..=8_000),
        (429, "retry-after: 86401", 2_000..=3_000),
        (429, "retry-after: -1", 2_000..=3_000),
        (429, "retry-after: soon", 2_000..=3_000),
        (429, "", 2_000..=3_000),
        (503, "retry-after: 7", 6_000..=7_000),
    ];
    let one = async |(status, header, expected): (u16, &str, std::ops::RangeInclusive<u64>)| {
        let azure = azure(&["b"]).await;
        let headers = format!("{JSON}\n{header}");
        let throttled = Upstream::start(move |_: &Request| reply(status, &headers, "{}")).await;
        let a = entry("a", &format!("http://{}", throttled.address), LISTED);
        let balancer = Balancer::start(&(a + &backend(&azure, "b", LISTED)), policy).await;
        for _ in 0..2 {
            assert_eq!(answerer(&balancer.chat().await), "b", "{header}");
        }
        let status = balancer.status().await;
        let seen = resting(&status);
        assert_eq!(names(&seen), [("gpt-4o", "cooling")], "{header}");
        assert!(expected.contains(&seen[0].2), "{header}: {}", seen[0].2);
    };
    join_all(table.map(one)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_of_zero_is_no_rest_that_anyone_sees() {
    let azure = azure(&["a", "b"]).await;
    azure.set_mood(
        "a",
        Mood::Sequence(vec![Mood::Throttled { retry_after_ms: Some(0), retry_after: None }, Mood::Calm]),
    );
    let balancer = Balancer::start(&listed(&azure), "").await;
    for _ in 0..4 {
        assert_eq!(balancer.chat().await.status, 200);
    }
    assert!(azure.hits("a") > 1);
}

/// Credential, permission and absence are asked about again after a minute, by one request.
#[tokio::test(flavor = "multi_thread")]
async fn what_needs_mending_is_asked_again_after_a_minute() {
    let table = [
        (Refusal::InvalidKey, "credential"),
        (Refusal::PermissionDenied, "permission"),
        (Refusal::DeploymentNotFound, "absent"),
    ];
    let one = async |(refusal, reason): (Refusal, &str)| {
        let azure = azure(&["a", "b"]).await;
        azure.set_mood("a", Mood::Refuses(refusal));
        let balancer = Balancer::start(&listed(&azure), "").await;
        for _ in 0..4 {
            assert_eq!(answerer(&balancer.chat().await), "b");
        }
        let seen = balancer.status().await.to_string();
        assert!(seen.contains(reason), "{seen}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let chats = join_all((0..20).map(|_| balancer.chat())).await;
        assert!(chats.iter().all(|reply| reply.status == 200));
        assert_eq!(azure.hits("a"), 2, "{refusal:?}");
    };
    join_all(table.map(one)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_stream_that_tells_of_a_failure_is_no_refusal() {
    const STORED: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n\
        event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\
        \"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"then\"}}}\n\n";
    let stored = Upstream::start(|_: &Request| reply(200, "Content-Type: text/event-stream", STORED)).await;
    let balancer = Balancer::start(&stored.backend("a"), "").await;
    let mut client = balancer.client().await;
    let target = "/openai/v1/responses/resp_1?stream=true";
    let answer = client.get(target, &[("api-key", KEY)]).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, STORED));
    assert_eq!(stored.requests().len(), 1);
    let status = balancer.status().await;
    assert_eq!((state(&status, 0), resting(&status)), ("ok", vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_own_trouble_is_not_shown_even_where_its_reply_breaks_off() {
    const CUT: &str = "HTTP/1.1 401 X\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n{\"error\":";
    let broken = Upstream::start(|_: &Request| vec![CUT.into()]).await;
    let balancer = Balancer::start(&broken.backend("a"), "").await;
    let reply = balancer.chat().await;
    assert_eq!((reply.status, reply.whole), (503, true));
    assert_eq!(reply.code(), "backend_misconfigured");
}
