//! What a backend sees of a request, and a client of a reply.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use aoai_lb::demo::{Mood, Refusal, Seen};
use support::upstream::Upstream;
use support::websocket::{UPGRADE, frame, read_frame};
use support::{Balancer, CHAT, Client, HELLO, KEY, answerer, azure, backend, backends};

fn header(seen: &Seen, name: &str) -> Option<String> {
    let found = seen.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
}

#[tokio::test]
async fn classic_paths_are_mapped_by_segment_and_versions_added_or_replaced() {
    let azure = azure(&["a", "b"]).await;
    let entries = backend(&azure, "a", "deployments: { openai: gpt-4o, whisper: whisper }")
        + &backend(&azure, "b", "deployments: { chat: gpt-4o }\napi_version: \"2025-01-01-preview\"");
    let balancer = Balancer::start(&entries, "requests: { api_version: \"2024-10-21\" }").await;
    let key = [("api-key", KEY)];
    let table = [
        (
            "/openai/deployments/openai/chat/completions?api-version=2024-06-01",
            "a",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01",
        ),
        (
            "/openai/deployments/openai/chat/completions",
            "a",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        ),
        (
            "//OpenAI//Deployments/OPENAI/Chat/completions/?x=%2F&api-version=2024-06-01",
            "a",
            "/openai/deployments/gpt-4o/chat/completions?x=%2F&api-version=2024-06-01",
        ),
        (
            "/openai/deployments/ch%61t/chat/completions?api-version=2024-06-01",
            "b",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01-preview",
        ),
        (
            "/openai/deployments/chat/chat/completions?subscription-key=x&api%2Dkey=y",
            "b",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01-preview",
        ),
    ];
    for (asked, name, expected) in table {
        let reply = balancer.post(asked, &key, HELLO.as_bytes()).await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, name), "{asked}: {}", reply.text());
        let seen = azure.requests(name).pop().unwrap();
        assert_eq!(seen.target, expected, "{asked}");
        assert_eq!(seen.body.as_deref(), Some(HELLO.as_bytes()));
    }
    let record = balancer.records_of(5).await.pop().unwrap();
    assert_eq!(record["path"], "/openai/deployments/chat/chat/completions");
    assert_eq!(
        (record["deployment"].as_str(), record["upstream_deployment"].as_str()),
        (Some("chat"), Some("gpt-4o"))
    );
    assert_eq!(record["api_version"], "2025-01-01-preview");
}

#[tokio::test]
async fn v1_bodies_are_mapped_and_all_else_in_them_stays() {
    let azure = azure(&["a"]).await;
    let entry = backend(&azure, "a", "deployments: { x: gpt-4o }\napi_version: \"2024-10-21\"");
    let balancer = Balancer::start(&entry, "requests: { api_version: \"2024-10-21\" }").await;
    let body = |model: &str| {
        format!(
            "{{ \"messages\" : [{{\"role\":\"user\",\"content\":\"model: x \\u00e4\"}}],\n\t\"MODEL2\":1,\"model\" :\t{model} , \"top_p\":1.0 }}"
        )
    };
    for (asked, sent) in [
        ("/openai/v1/chat/completions", "/openai/v1/chat/completions"),
        ("/openai/v1/chat/completions?api-version=2024-06-01", "/openai/v1/chat/completions"),
        (
            "/openai/v1/chat/completions?api-version=preview",
            "/openai/v1/chat/completions?api-version=preview",
        ),
    ] {
        let reply = balancer
            .post(asked, &[("authorization", &format!("Bearer {KEY}"))], body("\"\\u0078\"").as_bytes())
            .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let seen = azure.requests("a").pop().unwrap();
        assert_eq!(seen.target, sent);
        assert_eq!(String::from_utf8(seen.body.unwrap().to_vec()).unwrap(), body("\"gpt-4o\""));
    }
}

#[tokio::test]
async fn what_is_for_the_next_hop_only_ends_here() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("a", Mood::Refuses(Refusal::Unavailable));
    azure.set_mood("b", Mood::Refuses(Refusal::Unavailable));
    let headers = [
        ("api-key", KEY),
        ("Connection", "keep-alive, X-Mine"),
        ("connection", " x-also"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("X-Mine", "1"),
        ("x-also", "2"),
        ("X-Kept", "3"),
        ("OpenAI-Beta", "assistants=v2"),
    ];
    // On every try alike.
    balancer.post(CHAT, &headers, HELLO.as_bytes()).await;
    for name in ["a", "b"] {
        let seen = azure.requests(name).pop().unwrap();
        for gone in ["connection", "keep-alive", "te", "x-mine", "x-also", "transfer-encoding"] {
            assert_eq!(header(&seen, gone), None, "{gone}");
        }
        let length = HELLO.len().to_string();
        for (kept, value) in [("x-kept", "3"), ("openai-beta", "assistants=v2"), ("content-length", &length)]
        {
            assert_eq!(header(&seen, kept).as_deref(), Some(value), "{kept}");
        }
    }
}

#[tokio::test]
async fn forms_are_mapped_and_keep_their_boundary() {
    let azure = azure(&["a", "b"]).await;
    let entries = backend(&azure, "a", "deployments: { x: whisper }")
        + &backend(&azure, "b", "deployments: { x: whisper }");
    let balancer = Balancer::start(
        &entries,
        "requests: { set_headers: { Content-Type: application/json, X-Team: blue } }",
    )
    .await;
    azure.set_mood("a", Mood::Refuses(Refusal::Unavailable));
    let form = |model: &str| {
        let sound = "RIFF\0\u{1}model\r\n--not the boundary\r\n".repeat(1000);
        format!(
            "--B o\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n{sound}\r\n--B o\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--B o--\r\n"
        )
    };
    let kind = "multipart/form-data; boundary=\"B o\"";
    let headers = [("api-key", KEY), ("Content-Type", kind)];
    let reply = balancer.post("/openai/v1/audio/transcriptions", &headers, form("x").as_bytes()).await;
    assert_eq!((reply.status, answerer(&reply).as_str()), (200, "b"), "{}", reply.text());
    let seen = azure.requests("b").pop().unwrap();
    assert_eq!(seen.body.as_deref(), Some(form("whisper").as_bytes()));
    assert_eq!(header(&seen, "content-type").as_deref(), Some(kind));
    assert_eq!(header(&seen, "x-team").as_deref(), Some("blue"));
    // What is no form gets the configured type.
    azure.set_mood("a", Mood::Calm);
    let reply = balancer
        .post(
            "/openai/v1/chat/completions",
            &[("api-key", KEY), ("Content-Type", "text/plain")],
            br#"{"model":"x","messages":[]}"#,
        )
        .await;
    let seen = azure.requests(&answerer(&reply)).pop().unwrap();
    assert_eq!(header(&seen, "content-type").as_deref(), Some("application/json"));
}

#[tokio::test]
async fn only_the_backends_own_credential_and_few_headers_go_upstream() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "requests: { remove_headers: [user-agent] }").await;
    let bearer = format!("Bearer {KEY}");
    let headers = [
        ("api-key", "something-else"),
        ("Ocp-Apim-Subscription-Key", KEY),
        ("Authorization", &bearer),
        ("Cookie", "a=b"),
        ("Proxy-Authorization", "Basic x"),
        ("Forwarded", "for=1.1.1.1"),
        ("X-Forwarded-For", "1.1.1.1"),
        ("X-Real-IP", "1.1.1.1"),
        ("X-Original-URL", "/x"),
        ("Via", "1.1 p"),
        ("Client-IP", "1.1.1.1"),
        ("X-Azure-Ref", "x"),
        ("X-AppGW-Trace-Id", "x"),
        ("X-ARR-SSL", "x"),
        ("CF-Ray", "x"),
        ("traceparent", "x"),
        ("tracestate", "x"),
        ("baggage", "x"),
        ("x-stainless-lang", "python"),
        ("x-stainless-retry-count", "0"),
        ("x-aoai-lb-admin", "1"),
        ("Connection", "keep-alive, X-Nominated"),
        ("X-Nominated", "x"),
        ("Keep-Alive", "5"),
        ("TE", "trailers"),
        ("Accept-Encoding", "gzip"),
        ("User-Agent", "AzureOpenAI/Python"),
        ("Accept", "application/json"),
        ("X-MS-Client-Request-Id", "mine"),
        ("OpenAI-Beta", "x=1"),
        ("Content-Type", "application/json"),
    ];
    let target = format!("{CHAT}&subscription-key={KEY}&api-key=zzz");
    let reply = balancer.post(&target, &headers, HELLO.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("x-ms-client-request-id"), Some("mine"));
    let seen = azure.requests("a").pop().unwrap();
    let mut names: Vec<String> = seen.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "accept",
            "accept-encoding",
            "api-key",
            "content-length",
            "content-type",
            "host",
            "openai-beta",
            "x-ms-client-request-id"
        ]
    );
    assert_eq!(header(&seen, "api-key").as_deref(), Some("a-key"));
    assert_eq!(header(&seen, "accept-encoding").as_deref(), Some("identity"));
    assert_eq!(header(&seen, "host"), Some(azure.address("a").to_string()));
    assert!(!seen.target.contains(KEY) && !seen.target.contains("zzz"), "{}", seen.target);
    let all = std::fs::read_to_string(balancer.path("records.jsonl")).unwrap_or_default() + &balancer.log();
    assert!(!all.contains(KEY) && !all.contains("a-key"), "{all}");
}

#[tokio::test]
async fn cookies_do_not_come_back_and_bodyless_replies_stay_so() {
    let upstream = Upstream::start(|request| {
        let reply = match request.head.split(' ').next() {
            Some("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nSet-Cookie: a=b\r\nConnection: close\r\n\r\n",
            Some("DELETE") => "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nSet-Cookie: a=b\r\nx-ms-region: R\r\nConnection: close\r\n\r\n[1,2,3]",
        };
        vec![reply.into()]
    })
    .await;
    let balancer = Balancer::start(&upstream.backend("a"), "").await;
    let mut client = balancer.client().await;
    let reply = client.get("/openai/v1/models", &[("api-key", KEY)]).await;
    assert_eq!((reply.status, reply.text().as_str(), reply.header("set-cookie")), (200, "[1,2,3]", None));
    assert_eq!(reply.header("x-ms-region"), Some("R"));
    let reply = client.request("HEAD", "/openai/v1/models", &[("api-key", KEY)], None).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("7")));
    let reply = client.request("DELETE", "/openai/v1/files/file-1", &[("api-key", KEY)], None).await;
    assert_eq!(reply.status, 204);
    let reply = client.request("HEAD", "/openai/v1/models", &[], None).await;
    assert_eq!(reply.status, 401);
    assert_eq!(
        client.get("/openai/v1/models", &[("api-key", KEY)]).await.status,
        200,
        "the connection is in step"
    );
}

#[tokio::test]
async fn websockets_are_routed_tunnelled_and_fail_over_before_the_101() {
    let azure = azure(&["a", "b"]).await;
    let entries = backend(&azure, "a", "deployments: { voice: gpt-4o }")
        + &backend(&azure, "b", "deployments: { voice: gpt-4o }");
    let balancer = Balancer::start(&entries, "").await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None });
    let targets = [
        ("/openai/realtime?api-version=2024-10-01-preview&deployment=voice", "deployment=gpt-4o"),
        ("/openai/v1/realtime?model=voice", "model=gpt-4o"),
    ];
    for (n, (target, sent)) in targets.into_iter().enumerate() {
        let mut client = balancer.client().await;
        let headers =
            [&UPGRADE[..], &[("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key.SECRET")]]
                .concat();
        client.send(Client::head("GET", target, &headers).as_bytes()).await;
        let reply = client.reply_head().await.unwrap();
        assert_eq!((reply.status, answerer(&reply).as_str()), (101, "b"), "{reply:?}");
        assert!(read_frame(&mut client).await.contains("session.created"));
        client.send(&frame(r#"{"type":"response.create"}"#)).await;
        while !read_frame(&mut client).await.contains("response.done") {}
        let seen = azure.requests("b").pop().unwrap();
        assert!(seen.target.contains(sent), "{}", seen.target);
        assert_eq!(header(&seen, "sec-websocket-protocol").as_deref(), Some("realtime"));
        assert_eq!(balancer.status().await["in_flight"], 1);
        drop(client);
        let record = balancer.records_of(n + 1).await.pop().unwrap();
        assert_eq!((record["operation"].as_str(), record["status"].as_u64()), (Some("realtime"), Some(101)));
        assert_eq!(record["deployment"], "voice");
    }
    // Refused by all: an ordinary answer.
    azure.set_mood("b", Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None });
    let mut client = balancer.client().await;
    client.send(Client::head("GET", targets[1].0, &UPGRADE).as_bytes()).await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 429);
    assert!(reply.header("retry-after-ms").is_some());
    let mut client = balancer.client().await;
    client.send(Client::head("GET", &targets[1].0.replace("voice", "none"), &UPGRADE).as_bytes()).await;
    assert_eq!(client.reply().await.code(), "DeploymentNotFound");
}
