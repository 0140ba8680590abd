//! What a proxy owes both sides by the rules of HTTP/1.1, whatever runs its phases: interim and bodyless
//! responses, trailers, framing, unsolicited upgrades, responses that come before the request has ended,
//! and connections that stay usable or are closed. `src/proxy/runner.rs` has the list of these
//! obligations, and where the others are tested.

use crate::support;

use std::net::SocketAddr;

use support::upstream::ScriptedUpstream;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, Response, answering_backend, backend_yaml,
    wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const KEY_HEADER: &[(&str, &str)] = &[("api-key", CLIENT_KEY)];
const WHOLE_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";

/// A balancer in front of a backend that sends these pieces for each request.
async fn start_with_response(pieces: &'static [&'static [u8]]) -> (Balancer, ScriptedUpstream) {
    let upstream =
        ScriptedUpstream::start(move |_| pieces.iter().map(|piece| piece.to_vec()).collect()).await;
    (Balancer::start(&upstream.backend_yaml("a"), "").await, upstream)
}

/// A backend that sends this response as soon as it has a request head, and reads nothing more.
async fn start_responding_to_heads(response: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while support::client::find_bytes(&bytes, b"\r\n\r\n").is_none() {
                    if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                stream.write_all(response.as_bytes()).await.unwrap();
                // The connection stays open.
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_backend_whose_interim_responses_do_not_end_has_failed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(1000);
        while let Ok((mut stream, _)) = listener.accept().await {
            let interim = interim.clone();
            tokio::spawn(async move { while stream.write_all(&interim).await.is_ok() {} });
        }
    });
    let backends = backend_yaml("a", &format!("http://{address}"), "");
    let settings = "timeouts: { first_byte: 10s }\nretry: { attempts: 0 }";
    let balancer = Balancer::start(&backends, settings).await;
    let response = balancer.post_chat().await;
    assert_eq!((response.status, response.error_code().as_str()), (502, "upstream_failed"));
}

async fn post_chat(client: &mut Client) -> Response {
    client.post(CHAT_TARGET, KEY_HEADER, CHAT_BODY.as_bytes()).await
}

#[tokio::test]
async fn interim_responses_of_a_backend_do_not_reach_the_client() {
    let (balancer, _upstream) = start_with_response(&[
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
        WHOLE_RESPONSE,
    ])
    .await;
    let mut client = balancer.connect().await;
    let length = CHAT_BODY.len().to_string();
    let head =
        Client::request_head("POST", CHAT_TARGET, &[KEY_HEADER, &[("Content-Length", &length)]].concat());
    client.send((head + CHAT_BODY).as_bytes()).await;
    let first_head = client.read_response_head().await.unwrap();
    assert_eq!((first_head.status, first_head.header("link")), (200, None));
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_the_failure_of_its_backend() {
    let upgrading = ScriptedUpstream::start(|_| {
        vec![
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw"
                .to_vec(),
        ]
    })
    .await;
    let working = ScriptedUpstream::start(|_| vec![WHOLE_RESPONSE.to_vec()]).await;
    let backends = [upgrading.backend_yaml("upgrading"), working.backend_yaml("working")].concat();
    let balancer = Balancer::start(&backends, "").await;
    for _ in 0..2 {
        let response = post_chat(&mut balancer.connect().await).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "working"));
    }
    let balancer = Balancer::start(&upgrading.backend_yaml("upgrading"), "retry: { attempts: 0 }").await;
    let response = post_chat(&mut balancer.connect().await).await;
    assert_eq!((response.status, response.error_code().as_str()), (502, "upstream_failed"));
}

#[tokio::test]
async fn a_304_has_no_body_and_keeps_the_connection_in_step() {
    let (balancer, _upstream) = start_with_response(&[
        b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 7\r\nConnection: close\r\n\r\n",
    ])
    .await;
    let mut client = balancer.connect().await;
    for _ in 0..2 {
        let response = client.get("/openai/v1/files", KEY_HEADER).await;
        assert_eq!((response.status, response.header("etag")), (304, Some("\"x\"")));
        assert_eq!(response.header("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn a_body_with_trailers_arrives_whole_and_keeps_the_connection_in_step() {
    let (balancer, _upstream) = start_with_response(&[
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: close\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n",
    ])
    .await;
    let mut client = balancer.connect().await;
    for _ in 0..2 {
        let response = post_chat(&mut client).await;
        assert_eq!((response.status, response.is_complete, response.text().as_str()), (200, true, "{}"));
    }
}

#[tokio::test]
async fn a_response_that_ends_with_its_connection_is_chunked_for_the_client() {
    let (balancer, _upstream) =
        start_with_response(&[b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"one ", b"two"]).await;
    let mut client = balancer.connect().await;
    for _ in 0..2 {
        let response = post_chat(&mut client).await;
        assert_eq!((response.is_complete, response.text().as_str()), (true, "one two"));
        assert_eq!(response.header("transfer-encoding"), Some("chunked"));
    }
}

#[tokio::test]
async fn a_response_before_the_end_of_an_upload_reaches_the_client() {
    let response = "HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\n\r\n{\"error\":null}";
    let address = start_responding_to_heads(response).await;
    let extra_yaml = "requests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 64MiB }";
    let backends = backend_yaml("a", &format!("http://{address}"), "");
    let balancer = Balancer::start(&backends, extra_yaml).await;
    let mut client = balancer.connect().await;
    let headers = [KEY_HEADER, &[("Content-Length", "40000")]].concat();
    client.send(Client::request_head("POST", "/openai/v1/files", &headers).as_bytes()).await;
    client.send(&[b'x'; 20_000]).await;
    // The second half is never sent.
    let response = client.read_response().await;
    assert_eq!((response.status, response.text().as_str()), (400, "{\"error\":null}"));
    let record = balancer.wait_for_records(1).await.remove(0);
    assert_eq!((&record["outcome"], &record["status"]), (&"answered".into(), &400.into()));
    assert!(record["request_bytes"].is_null(), "the length of the upload is unknown: {record}");
}

#[tokio::test]
async fn a_response_to_a_body_that_the_backend_does_not_read_is_handled_at_once() {
    // More than all socket buffers on the way hold.
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(24 << 20));
    let no_record_of_content = "record: { content: none, jsonl: { path: records.jsonl } }";
    let refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\n\r\n{\"error\":null}";
    let address = start_responding_to_heads(refusal).await;
    let balancer =
        Balancer::start(&backend_yaml("a", &format!("http://{address}"), ""), no_record_of_content).await;
    let mut client = balancer.connect().await;
    for _ in 0..2 {
        let response = client.post(CHAT_TARGET, KEY_HEADER, body.as_bytes()).await;
        assert_eq!((response.status, response.text().as_str()), (400, "{\"error\":null}"));
    }
    // The same for a response that leads to another attempt, complete or not: that one gets the whole body.
    for throttled in [
        "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{",
    ] {
        let address = start_responding_to_heads(throttled).await;
        let reading = ScriptedUpstream::start(|_| vec![WHOLE_RESPONSE.to_vec()]).await;
        let backends = backend_yaml("a", &format!("http://{address}"), "tier: 1")
            + &backend_yaml("b", &format!("http://{}", reading.address), "tier: 2");
        let balancer = Balancer::start(&backends, no_record_of_content).await;
        let response = balancer.post(CHAT_TARGET, KEY_HEADER, body.as_bytes()).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
        assert!(reading.requests()[0].body == body.as_bytes());
        let record = balancer.wait_for_records(1).await.remove(0);
        assert_eq!(record["attempts"][0]["status"], 429, "{record:#}");
    }
}

#[tokio::test]
async fn a_backend_that_takes_nothing_of_a_body_for_too_long_is_abandoned() {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(24 << 20));
    let address = start_responding_to_heads("").await;
    let reading = ScriptedUpstream::start(|_| vec![WHOLE_RESPONSE.to_vec()]).await;
    let backends = backend_yaml("a", &format!("http://{address}"), "tier: 1")
        + &backend_yaml("b", &format!("http://{}", reading.address), "tier: 2");
    let extra_yaml = "timeouts: { idle: 500ms }\nrecord: { content: none, jsonl: { path: records.jsonl } }";
    let balancer = Balancer::start(&backends, extra_yaml).await;
    let response = balancer.post(CHAT_TARGET, KEY_HEADER, body.as_bytes()).await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    let record = balancer.wait_for_records(1).await.remove(0);
    assert_eq!(record["attempts"][0]["error"], "idle_timeout", "{record:#}");
}

#[tokio::test]
async fn a_connection_survives_relayed_errors_and_is_closed_after_a_failure_of_the_balancer() {
    let upstream = ScriptedUpstream::start(|_| {
        vec![b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}".to_vec()]
    })
    .await;
    let unreachable = "  - { name: gone, endpoint: \"http://127.0.0.1:1\", credential: { api_key: k }, deployments: { gone: gone } }\n";
    let endpoint = format!("http://{}", upstream.address);
    let backends = backend_yaml("a", &endpoint, "deployments: { gpt-4o: gpt-4o }") + unreachable;
    let balancer = Balancer::start(&backends, "retry: { attempts: 0 }").await;
    let mut client = balancer.connect().await;
    for _ in 0..2 {
        assert_eq!(post_chat(&mut client).await.status, 400);
    }
    let gone = CHAT_TARGET.replace("gpt-4o", "gone");
    let response = client.post(&gone, KEY_HEADER, CHAT_BODY.as_bytes()).await;
    assert_eq!((response.status, response.is_complete), (502, true));
    assert_eq!(response.header("connection").map(str::to_lowercase).as_deref(), Some("close"));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_connection_whose_request_was_not_sent_whole_is_not_reused() {
    // It answers before it has the body, and offers to keep the connection.
    let address = start_responding_to_heads("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
    let extra_yaml = "requests: { max_body: 1KiB, body_memory: 1MiB, max_streamed_body: 64MiB }";
    let backends = backend_yaml("a", &format!("http://{address}"), "");
    let balancer = Balancer::start(&backends, extra_yaml).await;
    for _ in 0..2 {
        let mut client = balancer.connect().await;
        let headers = [KEY_HEADER, &[("Content-Length", "40000")]].concat();
        client.send(Client::request_head("POST", "/openai/v1/files", &headers).as_bytes()).await;
        client.send(&[b'x'; 20_000]).await;
        // On a connection in the middle of another body this request would get no response.
        assert_eq!(client.read_response().await.status, 200);
    }
    let mut settled = 0;
    wait_until("both requests are settled", || {
        settled = balancer.records().len();
        settled == 2
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_to_another_protocol_than_websocket_is_ignored() {
    let answering = ScriptedUpstream::start(|_| vec![WHOLE_RESPONSE.to_vec()]).await;
    let upgrading = ScriptedUpstream::start(|_| {
        vec![b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nraw".to_vec()]
    })
    .await;
    let headers = [
        KEY_HEADER,
        &[
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AAMAAABk"),
            ("Sec-WebSocket-Protocol", "openai-insecure-api-key.SECRET"),
        ],
    ]
    .concat();
    let balancer = Balancer::start(&answering.backend_yaml("a"), "").await;
    let mut client = balancer.connect().await;
    for _ in 0..2 {
        let response = client.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes()).await;
        assert_eq!((response.status, response.text().as_str()), (200, "{}"));
    }
    let request = answering.requests().remove(0);
    let head = request.head.to_lowercase();
    assert!(!head.contains("upgrade") && !head.contains("secret"), "{head}");
    assert_eq!(request.body, CHAT_BODY.as_bytes());
    // A backend that switches protocols nevertheless has failed, and the balancer goes on.
    let balancer = Balancer::start(&upgrading.backend_yaml("a"), "retry: { attempts: 0 }").await;
    let response = balancer.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes()).await;
    assert_eq!(response.status, 502, "{}", response.text());
    assert!(!balancer.log().contains("panicked"), "{}", balancer.log());
}

#[tokio::test]
async fn only_a_valid_websocket_handshake_becomes_a_tunnel() {
    let upstream = ScriptedUpstream::start(|request| {
        // It switches protocols whenever it is asked to.
        if request.head.to_lowercase().contains("upgrade") {
            return vec![b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nraw".to_vec()];
        }
        vec![WHOLE_RESPONSE.to_vec()]
    })
    .await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
    let target = "/openai/v1/realtime?model=gpt-4o";
    let key = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let version = ("Sec-WebSocket-Version", "13");
    let upgrade = ("Upgrade", "websocket");
    let connection = ("Connection", "Upgrade");
    // Ordinary requests, of which the offer is ignored.
    for (method, fields) in [
        ("GET", &[upgrade, key, version][..]),
        ("GET", &[("Connection", "keep-alive"), upgrade, key, version]),
        ("POST", &[connection, upgrade]),
    ] {
        let headers = [KEY_HEADER, fields].concat();
        let body = (method == "POST").then_some(CHAT_BODY.as_bytes());
        let target = if method == "POST" { CHAT_TARGET } else { "/openai/v1/files" };
        let response = balancer.connect().await.request(method, target, &headers, body).await;
        assert_eq!((response.status, response.text().as_str()), (200, "{}"), "{fields:?}");
    }
    for request in upstream.requests() {
        let head = request.head.to_lowercase();
        assert!(!head.contains("upgrade") && !head.contains("sec-websocket"), "{head}");
    }
    upstream.forget_requests();
    // Malformed handshakes.
    for (method, fields, status) in [
        ("POST", &[key, version][..], 400),
        ("GET", &[key, key, version], 400),
        ("GET", &[version], 400),
        ("GET", &[("Sec-WebSocket-Key", "short"), version], 400),
        ("GET", &[key], 400),
        ("GET", &[key, ("Sec-WebSocket-Version", "8")], 426),
    ] {
        let headers = [KEY_HEADER, &[connection, upgrade], fields].concat();
        let body = (method == "POST").then_some(CHAT_BODY.as_bytes());
        let response = balancer.connect().await.request(method, target, &headers, body).await;
        assert_eq!(response.status, status, "{fields:?}: {}", response.text());
        let code = if status == 426 { "unsupported_websocket_version" } else { "bad_request" };
        assert_eq!(response.error_code(), code);
        let supported = (status == 426).then_some("13");
        assert_eq!(response.header("sec-websocket-version"), supported, "{:?}", response.headers);
    }
    assert!(upstream.requests().is_empty());
    assert!(!balancer.log().contains("panicked"), "{}", balancer.log());
}
