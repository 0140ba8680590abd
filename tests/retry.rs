//! What happens when a backend says no, says nothing or cannot be reached.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Extent, Mood, Refusal, Simulator};
use support::{Balancer, CHAT, Client, HELLO, KEY, answerer, azure, backend, backends, until};

const TIMEOUTS: &str =
    "timeouts: { connect: 500ms, first_byte: 300ms, first_byte_stream: 200ms, idle: 300ms }";

async fn two(more: &str) -> (Simulator, Balancer) {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&backends(&azure), more).await;
    (azure, balancer)
}

#[tokio::test]
async fn every_way_to_fail_moves_on() {
    let moods = [
        ("429", Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None }),
        ("429", Mood::HighDemand),
        ("408", Mood::Refuses(Refusal::Timeout)),
        ("424", Mood::Refuses(Refusal::FailedDependency)),
        ("500", Mood::Refuses(Refusal::ServerError)),
        ("500", Mood::Refuses(Refusal::ServerErrorHtml)),
        ("502", Mood::Refuses(Refusal::BadGateway)),
        ("503", Mood::Refuses(Refusal::Unavailable)),
        ("504", Mood::Refuses(Refusal::GatewayTimeout)),
        ("401", Mood::Refuses(Refusal::InvalidKey)),
        ("401", Mood::Refuses(Refusal::PermissionDenied)),
        ("403", Mood::Refuses(Refusal::AuthenticationTypeDisabled)),
        ("403", Mood::Refuses(Refusal::Firewall)),
        ("404", Mood::Refuses(Refusal::DeploymentNotFound)),
        ("", Mood::ResetOnAccept),
        ("reset", Mood::ResetBeforeHead),
        ("reset", Mood::CloseBeforeHead),
        ("first_byte_timeout", Mood::Mute),
        ("first_byte_timeout", Mood::SlowFirstByte(Duration::from_secs(20))),
        ("protocol", Mood::Unsolicited101),
    ];
    for (expected, mood) in moods {
        let (azure, balancer) =
            two(&format!("{TIMEOUTS}\nretry: {{ statuses: [408, 424, 429, 500-599] }}")).await;
        azure.set_mood("a", mood.clone());
        let reply = balancer.chat().await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"), "{mood:?}: {}", reply.text());
        assert_eq!(reply.header("x-aoai-lb-attempts"), Some("2"), "{mood:?}");
        let record = &balancer.records_of(1).await[0];
        let first = &record["attempts"][0];
        let seen = first["error"].as_str().map_or_else(|| first["status"].to_string(), str::to_owned);
        assert_eq!(first["backend"], "a", "{mood:?}");
        // A reset at once may come before or after the connection counts as made.
        assert!(
            seen == expected || (expected.is_empty() && matches!(&*seen, "reset" | "connect")),
            "{mood:?}: {seen}"
        );
        assert_eq!((record["outcome"].as_str(), record["backend"].as_str()), (Some("answered"), Some("b")));
        if !matches!(mood, Mood::ResetOnAccept) {
            let sent = azure.requests("b").pop().unwrap();
            assert_eq!(sent.body.unwrap(), HELLO.as_bytes(), "{mood:?}");
        }
    }
}

#[tokio::test]
async fn a_backend_that_is_not_there_moves_on() {
    let (azure, balancer) = two("").await;
    azure.stop_listening("a").await;
    let reply = balancer.chat().await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    assert_eq!(balancer.records_of(1).await[0]["attempts"][0]["error"], "connect_refused");
}

#[tokio::test]
async fn what_is_about_the_request_is_relayed_at_once() {
    for mood in
        [Refusal::ContentFilter, Refusal::ContextLengthExceeded, Refusal::ResourceNotFound, Refusal::Conflict]
    {
        let (azure, balancer) = two("").await;
        azure.set_mood("a", Mood::Refuses(mood));
        let direct = Client::connect(azure.address("a"))
            .await
            .post(CHAT, &[("api-key", "a-key")], HELLO.as_bytes())
            .await;
        let reply = balancer.chat().await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (direct.status, "a"), "{mood:?}");
        assert_eq!(reply.code(), direct.code(), "{mood:?}");
        assert_eq!(azure.hits("b"), 0, "{mood:?}");
        assert!(reply.header("apim-request-id").is_some());
        assert_eq!(balancer.records_of(1).await[0]["outcome"], "answered");
    }
}

#[tokio::test]
async fn listed_statuses_give_the_old_behaviour() {
    let (azure, balancer) = two("retry: { statuses: [400-599] }").await;
    azure.set_mood("a", Mood::Refuses(Refusal::Conflict));
    let reply = balancer.chat().await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
}

#[tokio::test]
async fn each_backend_once_then_further_rounds_until_one_answers() {
    let azure = azure(&["a", "b", "c"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    let down = || Mood::Refuses(Refusal::Unavailable);
    azure.set_mood("a", Mood::Sequence(vec![down(), down(), Mood::Calm]));
    azure.set_mood("b", down());
    azure.set_mood("c", down());
    let reply = balancer.chat().await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "a"));
    let record = &balancer.records_of(1).await[0];
    let order: Vec<&str> =
        record["attempts"].as_array().unwrap().iter().map(|a| a["backend"].as_str().unwrap()).collect();
    let mut rounds: Vec<Vec<&str>> = order.chunks(3).map(<[&str]>::to_vec).collect();
    rounds.iter_mut().for_each(|round| round.sort_unstable());
    assert_eq!(rounds[..2], [["a", "b", "c"], ["a", "b", "c"]], "{order:?}");
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_answer_is_the_backends() {
    let (azure, balancer) = two("retry: { attempts: 3 }").await;
    for name in ["a", "b"] {
        azure.set_mood(name, Mood::Refuses(Refusal::ServerError));
    }
    let mut client = balancer.client().await;
    let reply = client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
    assert_eq!((reply.status, reply.header("x-aoai-lb-attempts")), (500, Some("4")));
    assert_eq!(reply.json()["error"]["type"], "server_error");
    assert_eq!(azure.hits("a") + azure.hits("b"), 4);
    // The connection survives a failed request.
    azure.set_mood("a", Mood::Calm);
    azure.set_mood("b", Mood::Calm);
    assert_eq!(client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn all_throttled_is_a_429_with_the_soonest_true_hint() {
    let (azure, balancer) = two("").await;
    // What nobody lists has rests of its own only once somebody has answered for it.
    assert_eq!(balancer.chat().await.status, 200);
    let throttled = |ms| Mood::Throttled { retry_after_ms: Some(ms), retry_after: Some("86400".into()) };
    azure.set_mood("a", throttled(20_000));
    azure.set_mood("b", throttled(9_000));
    let reply = balancer.chat().await;
    let hint = |reply: &support::Reply, name: &str| reply.header(name).unwrap().parse::<u64>().unwrap();
    assert_eq!(reply.status, 429);
    assert!((8_000..=9_000).contains(&hint(&reply, "retry-after-ms")), "{reply:?}");
    assert_eq!(hint(&reply, "retry-after"), 9);
    assert_ne!(reply.code(), "all_throttled", "the backend's own words");
    // From now on nobody is asked at all.
    let mut client = balancer.client().await;
    for _ in 0..2 {
        let reply = client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
        assert_eq!((reply.status, reply.code().as_str()), (429, "all_throttled"));
        assert!((1_000..=9_000).contains(&hint(&reply, "retry-after-ms")), "{reply:?}");
        assert_eq!(reply.header("x-aoai-lb-attempts"), Some("0"));
    }
    assert_eq!(azure.hits("a") + azure.hits("b"), 3);
    let records = &balancer.records_of(4).await[1..];
    assert_eq!((records[0]["outcome"].as_str(), records[0]["refusal"].as_str()), (Some("answered"), None));
    assert_eq!(
        (records[1]["outcome"].as_str(), records[1]["refusal"].as_str()),
        (Some("refused"), Some("all_throttled"))
    );
}

#[tokio::test]
async fn absurd_hints_are_clamped() {
    for (header, least, most) in
        [("86400", 59_000, 60_000), ("-1", 1, 60_000), ("soon", 1, 60_000), ("1m2s", 59_000, 60_000)]
    {
        let azure = azure(&["a"]).await;
        let balancer = Balancer::start(&backends(&azure), "").await;
        azure.set_mood("a", Mood::Throttled { retry_after_ms: None, retry_after: Some(header.into()) });
        let reply = balancer.chat().await;
        let hint: u64 = reply.header("retry-after-ms").unwrap().parse().unwrap();
        assert!((least..=most).contains(&hint), "{header}: {hint}");
        let record = &balancer.records_of(1).await[0];
        assert!(record["attempts"][0]["retry_after_ms"].as_u64().unwrap() >= least);
    }
}

#[tokio::test]
async fn the_most_useful_answer_wins() {
    let azure = azure(&["a", "b", "c"]).await;
    let balancer = Balancer::start(&backends(&azure), "retry: { attempts: 2 }").await;
    azure.set_mood("a", Mood::Refuses(Refusal::Timeout));
    azure.set_mood("b", Mood::Throttled { retry_after_ms: Some(20_000), retry_after: None });
    azure.set_mood("c", Mood::Refuses(Refusal::ServerError));
    assert_eq!(balancer.chat().await.status, 429);
}

#[tokio::test]
async fn a_backends_own_credential_is_never_the_clients_problem() {
    let (azure, balancer) = two("").await;
    azure.set_mood("a", Mood::Refuses(Refusal::InvalidKey));
    azure.set_mood("b", Mood::Refuses(Refusal::DeploymentNotFound));
    for _ in 0..2 {
        let reply = balancer.chat().await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "backend_misconfigured"));
    }
    balancer.until_said("backend a: its credential").await;
    assert_eq!(balancer.status().await["backends"][0]["state"], "credential");
}

#[tokio::test]
async fn nobody_there_is_502_and_nobody_in_time_504() {
    let (azure, balancer) = two(&format!("{TIMEOUTS}\nretry: {{ attempts: 1 }}")).await;
    azure.set_mood("a", Mood::Mute);
    azure.set_mood("b", Mood::Mute);
    let begun = Instant::now();
    let reply = balancer.chat().await;
    assert_eq!((reply.status, reply.code().as_str()), (504, "upstream_timeout"));
    assert!(begun.elapsed() >= Duration::from_millis(600));
    azure.stop_listening("a").await;
    azure.stop_listening("b").await;
    let reply = balancer.chat().await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_failed"));
    let records = balancer.records_of(2).await;
    assert_eq!(records[0]["outcome"], "failed");
}

#[tokio::test]
async fn the_deadline_and_the_clients_own_time_out_begin_no_further_attempt() {
    for (config, headers) in
        [("retry: { deadline: 150ms }", vec![]), ("", vec![("x-stainless-read-timeout", "0.15")])]
    {
        let (azure, balancer) = two(config).await;
        for name in ["a", "b"] {
            azure.set_mood(name, Mood::Refuses(Refusal::Unavailable));
        }
        let headers = [vec![("api-key", KEY)], headers].concat();
        let reply = balancer.post(CHAT, &headers, HELLO.as_bytes()).await;
        assert_eq!(reply.status, 503);
        let hits = azure.hits("a") + azure.hits("b");
        assert!((1..=4).contains(&hits), "{hits}");
    }
}

#[tokio::test]
async fn a_create_is_not_repeated_once_it_may_have_happened() {
    let (azure, balancer) = two("").await;
    let post = |target: &'static str, body: &'static str| {
        balancer.post(target, &[("api-key", KEY)], body.as_bytes())
    };
    azure.set_mood("a", Mood::Refuses(Refusal::ServerError));
    let reply = post("/openai/v1/batches", "{}").await;
    assert_eq!((reply.status, azure.hits("a")), (500, 1));
    let background = r#"{"model":"gpt-4o","input":"x","background":true}"#;
    azure.set_mood("a", Mood::ResetBeforeHead);
    let before = azure.hits("b");
    let reply = post("/openai/v1/responses", background).await;
    assert_eq!((reply.status, azure.hits("b")), (502, before));
    // A 429 made nothing, and neither did a connection that was refused.
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(5_000), retry_after: None });
    azure.set_mood("b", Mood::Calm);
    for _ in 0..2 {
        let reply = post("/openai/v1/responses", background).await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    }
    let (azure, balancer) = two("").await;
    azure.stop_listening("a").await;
    let reply = balancer.post("/openai/v1/responses", &[("api-key", KEY)], background.as_bytes()).await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    assert_eq!(reply.header("x-aoai-lb-attempts"), Some("2"));
}

/// A body of JSON of about this size, in which every part is different.
fn large(model: Option<&str>, size: usize) -> Vec<u8> {
    let mut text = String::with_capacity(size + 200);
    text.push('{');
    if let Some(model) = model {
        text += &format!("\"model\":\"{model}\",");
    }
    text += "\"messages\":[{\"role\":\"user\",\"content\":\"";
    let mut n = 0_u64;
    while text.len() < size {
        text += &format!("{n} ");
        n += 7;
    }
    text += "\"}]}";
    text.into_bytes()
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    openssl::sha::sha256(bytes)
}

#[tokio::test]
async fn large_bodies_fail_over_byte_for_byte() {
    let azure = azure(&["a", "b"]).await;
    let renamed = backend(&azure, "a", "deployments: { x: gpt-4o }")
        + &backend(&azure, "b", "deployments: { x: gpt-4o }");
    let balancer = Balancer::start(&renamed, "").await;
    for (size, mood) in [
        (5 << 20, Mood::Refuses(Refusal::Unavailable)),
        (60 << 20, Mood::Throttled { retry_after_ms: Some(1), retry_after: None }),
    ] {
        azure.set_mood("a", mood);
        let classic = CHAT.replace("gpt-4o", "x");
        let body = large(None, size);
        let reply = balancer.post(&classic, &[("api-key", KEY)], &body).await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"), "{}", reply.text());
        let seen = azure.requests("b").pop().unwrap();
        assert_eq!((seen.body_len, digest(&seen.body.unwrap())), (body.len() as u64, digest(&body)));
        let v1 = large(Some("x"), size);
        let reply = balancer.post("/openai/v1/chat/completions", &[("api-key", KEY)], &v1).await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
        let seen = azure.requests("b").pop().unwrap();
        let renamed = [br#"{"model":"gpt-4o""#.as_slice(), &v1[br#"{"model":"x""#.len()..]].concat();
        assert_eq!(digest(&seen.body.unwrap()), digest(&renamed));
    }
}

#[tokio::test]
async fn chunked_and_expecting_bodies_fail_over_too() {
    let (azure, balancer) = two("").await;
    azure.set_mood("a", Mood::Refuses(Refusal::Unavailable));
    let body = large(None, 5 << 20);
    let mut client = balancer.client().await;
    let head = Client::head("POST", CHAT, &[("api-key", KEY), ("Transfer-Encoding", "chunked")]);
    client.send(head.as_bytes()).await;
    for piece in body.chunks(333_333) {
        client.send(format!("{:x};ext=1\r\n", piece.len()).as_bytes()).await;
        client.send(piece).await;
        client.send(b"\r\n").await;
    }
    client.send(b"0\r\nTrailer: x\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"));
    let seen = azure.requests("b").pop().unwrap();
    assert_eq!(
        (seen.header("content-length"), digest(&seen.body.clone().unwrap())),
        (Some(body.len().to_string().as_str()), digest(&body))
    );
    assert!(seen.header("transfer-encoding").is_none());

    azure.set_mood("b", Mood::Refuses(Refusal::Unavailable));
    azure.set_mood("a", Mood::Calm);
    let length = body.len().to_string();
    let head = Client::head(
        "POST",
        CHAT,
        &[("api-key", KEY), ("Content-Length", &length), ("Expect", "100-continue")],
    );
    client.send(head.as_bytes()).await;
    assert_eq!(client.reply_head().await.unwrap().status, 100);
    client.send(&body).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "a"));
    let seen = azure.requests("a").pop().unwrap();
    assert_eq!(digest(&seen.body.clone().unwrap()), digest(&body));
    assert!(seen.header("expect").is_none());
}

#[tokio::test]
async fn a_stale_pooled_connection_costs_nobody_anything() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    for _ in 0..20 {
        let reply = balancer.chat().await;
        assert_eq!(reply.status, 200);
        azure.drop_connections("a").await;
    }
}

#[tokio::test]
async fn bodies_have_a_limit_alone_and_together() {
    let azure = azure(&["a"]).await;
    let more = "requests: { max_body: 64KiB, max_streamed_body: 1MiB, body_memory: 100KiB }";
    let balancer = Balancer::start(&backends(&azure), more).await;
    let reply = balancer.post(CHAT, &[("api-key", KEY)], &large(None, 70 << 10)).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
    let mut client = balancer.client().await;
    client
        .send(Client::head("POST", CHAT, &[("api-key", KEY), ("Transfer-Encoding", "chunked")]).as_bytes())
        .await;
    let piece = vec![b' '; 70 << 10];
    client.try_send(format!("{:x}\r\n", piece.len()).as_bytes()).await;
    client.try_send(&piece).await;
    assert_eq!(client.reply().await.code(), "body_too_large");
    assert_eq!(azure.hits("a"), 0);
    // One that is held takes from what all may have together.
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_secs(2)));
    let held = large(None, 60 << 10);
    let head = Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &held.len().to_string())]);
    let mut first = balancer.client().await;
    first.send(head.as_bytes()).await;
    first.send(&held).await;
    until("the first body is held", || azure.hits("a") == 1).await;
    let reply = balancer.post(CHAT, &[("api-key", KEY)], &held).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "overloaded"));
    assert!(reply.header("retry-after").is_some());
    assert_eq!(first.reply().await.status, 200);
    azure.set_mood("a", Mood::Calm);
    assert_eq!(balancer.post(CHAT, &[("api-key", KEY)], &held).await.status, 200, "memory is given back");
}

#[tokio::test]
async fn uploads_too_large_to_hold_pass_through() {
    let azure = azure(&["a"]).await;
    let more = "requests: { max_body: 1MiB, max_streamed_body: 8MiB, body_memory: 2MiB }";
    let balancer = Balancer::start(&backends(&azure), more).await;
    let content = large(None, 6 << 20);
    let form = |content: &[u8]| {
        let mut form = b"--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.txt\"\r\n\r\n".to_vec();
        form.extend_from_slice(content);
        form.extend_from_slice(b"\r\n--B--\r\n");
        form
    };
    let kind = ("Content-Type", "multipart/form-data; boundary=B");
    let target = "/openai/files?api-version=2024-10-21";
    let body = form(&content);
    let reply = balancer.post(target, &[("api-key", KEY), kind], &body).await;
    assert!(matches!(reply.status, 200 | 201), "{} {}", reply.status, reply.text());
    let seen = azure.requests("a").pop().unwrap();
    assert_eq!(digest(&seen.body.unwrap()), digest(&body));
    let mut client = balancer.client().await;
    client
        .send(
            Client::head("POST", target, &[("api-key", KEY), kind, ("Transfer-Encoding", "chunked")])
                .as_bytes(),
        )
        .await;
    for piece in body.chunks(100_000) {
        client.send(format!("{:x}\r\n", piece.len()).as_bytes()).await;
        client.send(piece).await;
        client.send(b"\r\n").await;
    }
    client.send(b"0\r\n\r\n").await;
    let reply = client.reply().await;
    assert!(matches!(reply.status, 200 | 201), "{} {}", reply.status, reply.text());
    let seen = azure.requests("a").pop().unwrap();
    assert_eq!(digest(&seen.body.unwrap()), digest(&body));
    let too_large = form(&large(None, 9 << 20));
    let reply = balancer.post(target, &[("api-key", KEY), kind], &too_large).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
    assert_eq!(balancer.records_of(3).await[1]["request_bytes"], body.len());
}

#[tokio::test]
async fn a_cut_answer_without_a_key_is_recorded_as_failed() {
    // `clients: open` needs no key at all.
    let azure = azure(&["a"]).await;
    let balancer =
        Balancer::with_clients(&backends(&azure), "clients: open\n", "retry: { attempts: 0 }").await;
    azure.set_mood("a", Mood::ResetMidBody { after: Extent::Bytes(20) });
    let reply = balancer.post(CHAT, &[], HELLO.as_bytes()).await;
    assert!(!reply.whole, "a cut answer must not look whole");
    let record = &balancer.records_of(1).await[0];
    assert_eq!((record["outcome"].as_str(), record["client"].as_str()), (Some("failed"), None));
}
