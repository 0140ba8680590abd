//! Realtime sessions: bytes pass unchanged, each response has a record of its own, and keys and subprotocols of the
//! handshake.

use crate::support;

use serde_json::{Value, json};
use support::websocket::UPGRADE_HEADERS;
use support::{Balancer, CLIENT_KEY, Client, TEST_TIMEOUT, backend_yaml, sha256_hex, wait_until_async};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const TARGET: &str = "/openai/v1/realtime?model=gpt-realtime";
const DEPLOYMENTS: &str = "deployments: { gpt-realtime: up-realtime }";

/// A balancer and the listener of its backend.
struct Stage {
    balancer: Balancer,
    listener: TcpListener,
}

/// Both ends of a session.
struct Session {
    client: TcpStream,
    backend: TcpStream,
    /// The heads that they got.
    client_head: String,
    backend_head: String,
}

impl Stage {
    async fn start(extra_yaml: &str) -> Self {
        Self::start_with_clients(&support::clients_yaml(), extra_yaml).await
    }

    async fn start_with_clients(clients: &str, extra_yaml: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backends = backend_yaml("a", &format!("http://{}", listener.local_addr().unwrap()), DEPLOYMENTS);
        let balancer = Balancer::start_with_clients(&backends, clients, extra_yaml).await;
        Self { balancer, listener }
    }

    async fn open(&self) -> Session {
        self.open_with(&UPGRADE_HEADERS, "").await
    }

    /// Opens a session with these fields of the client, and these of the backend's 101.
    async fn open_with(&self, headers: &[(&str, &str)], answer: &str) -> Session {
        let mut client = TcpStream::connect(self.balancer.address).await.unwrap();
        client.write_all(Client::request_head("GET", TARGET, headers).as_bytes()).await.unwrap();
        let (mut backend, _) = self.listener.accept().await.unwrap();
        let backend_head = read_head(&mut backend).await;
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nx-ms-region: Sweden Central\r\n{answer}\r\n"
        );
        backend.write_all(head.as_bytes()).await.unwrap();
        let client_head = read_head(&mut client).await;
        assert!(client_head.starts_with("http/1.1 101 "), "{client_head}");
        Session { client, backend, client_head, backend_head }
    }

    /// The status of a handshake that no backend sees.
    async fn refused_status(&self, headers: &[(&str, &str)]) -> u16 {
        self.balancer.connect().await.get(TARGET, headers).await.status
    }
}

impl Session {
    /// Sends these bytes as the backend, and checks that the client gets them as they are.
    async fn pass(&mut self, bytes: &[u8]) {
        let mut received = vec![0; bytes.len()];
        let (sent, read) = timeout(TEST_TIMEOUT, async {
            tokio::join!(self.backend.write_all(bytes), self.client.read_exact(&mut received))
        })
        .await
        .unwrap();
        sent.unwrap();
        read.unwrap();
        assert!(received == bytes, "the bytes have changed");
    }

    async fn pass_events(&mut self, events: &[Value]) {
        let frames: Vec<u8> = events.iter().flat_map(|event| text_frame(&event.to_string())).collect();
        self.pass(&frames).await;
    }
}

/// A head, in lower case.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(timeout(TEST_TIMEOUT, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(bytes).unwrap().to_lowercase()
}

/// A text frame of a server.
fn text_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        length @ 0..126 => frame.push(length.try_into().unwrap()),
        length @ 126..65_536 => {
            frame.push(126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(text.bytes());
    frame
}

fn session_created() -> Value {
    json!({"type": "session.created", "event_id": "e0", "session": {
        "type": "realtime", "id": "sess_1", "model": "gpt-realtime-2025-08-28",
        "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}},
    }})
}

fn user_item(text: &str) -> Value {
    json!({"type": "conversation.item.added", "event_id": "e1", "previous_item_id": null, "item": {
        "id": "item_u", "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}],
    }})
}

fn response_created(id: &str) -> Value {
    json!({"type": "response.created", "event_id": "e2", "response": {"id": id, "object": "realtime.response", "status": "in_progress", "output": []}})
}

fn audio_delta(id: &str, bytes: usize) -> Value {
    json!({"type": "response.output_audio.delta", "event_id": "e3", "response_id": id, "item_id": "item_a", "output_index": 0, "content_index": 0, "delta": "A".repeat(bytes)})
}

fn response_done(id: &str, status: &str, details: &Value) -> Value {
    json!({"type": "response.done", "event_id": "e4", "response": {
        "object": "realtime.response", "id": id, "status": status, "status_details": details,
        "output": [{"id": "item_a", "type": "message", "role": "assistant", "status": status, "content": [{"type": "output_audio", "transcript": format!("spoken in {id}")}]}],
        "usage": {
            "total_tokens": 150, "input_tokens": 100, "output_tokens": 50,
            "input_token_details": {"text_tokens": 30, "audio_tokens": 70, "cached_tokens": 64, "cached_tokens_details": {"text_tokens": 4, "audio_tokens": 60}},
            "output_token_details": {"text_tokens": 10, "audio_tokens": 40},
        },
    }})
}

fn done(id: &str) -> Value {
    response_done(id, "completed", &Value::Null)
}

/// The session's own record, after those of its turns.
async fn end_and_split_records(session: Session, stage: &Stage, turns: usize) -> (Value, Vec<Value>) {
    stage.balancer.wait_for_records(turns).await;
    drop(session);
    let records = stage.balancer.wait_for_records(turns + 1).await;
    let (own, turns): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record["status"] == 101);
    (own.into_iter().next().expect("the session has a record"), turns)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_response_of_a_session_has_a_record_with_its_usage() {
    let stage = Stage::start("").await;
    let mut session = stage.open().await;
    session
        .pass_events(&[
            session_created(),
            user_item("first question"),
            response_created("resp_1"),
            audio_delta("resp_1", 30_000),
            done("resp_1"),
            // An event that is told twice is one response.
            done("resp_1"),
            user_item("second question"),
            response_created("resp_2"),
            audio_delta("resp_2", 10),
            response_done("resp_2", "cancelled", &json!({"type": "cancelled", "reason": "turn_detected"})),
            response_created("resp_3"),
            response_done(
                "resp_3",
                "failed",
                &json!({"type": "failed", "error": {"type": "server_error", "code": "server_error"}}),
            ),
        ])
        .await;
    let (own, turns) = end_and_split_records(session, &stage, 3).await;
    assert_eq!(own["outcome"], "answered", "{own:#}");
    assert_eq!(
        (&own["method"], &own["socket_id"], &own["total_tokens"]),
        (&json!("GET"), &Value::Null, &Value::Null)
    );
    let first = &turns[0];
    let expected = json!({
        "method": "WEBSOCKET", "socket_id": own["request_id"], "status": 200, "outcome": "answered",
        "client": "team-a", "operation": "realtime", "path": "/openai/v1/realtime",
        "deployment": "gpt-realtime", "upstream_deployment": "up-realtime", "backend": "a",
        "region": "Sweden Central", "model": "gpt-realtime-2025-08-28", "finish_reason": "completed",
        "input_tokens": 100, "output_tokens": 50, "total_tokens": 150, "cached_tokens": 64,
        "input_audio_tokens": 70, "output_audio_tokens": 40, "cached_audio_tokens": 60,
        "completion": "spoken in resp_1", "client_ip": own["client_ip"], "peer_ip": own["peer_ip"],
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&first[field], value, "{field}: {first:#}");
    }
    assert_ne!(first["request_id"], own["request_id"]);
    assert!(first["first_byte_ms"].as_f64().unwrap() <= first["duration_ms"].as_f64().unwrap(), "{first:#}");
    assert!(first["response_bytes"].as_u64().unwrap() > 30_000, "{first:#}");
    let prompt: Value = serde_json::from_str(first["prompt"].as_str().unwrap()).unwrap();
    assert_eq!(prompt.as_array().unwrap().len(), 1, "{prompt:#}");
    assert_eq!(prompt[0]["content"][0]["text"], "first question");
    let second = &turns[1];
    assert_eq!((&second["outcome"], &second["finish_reason"]), (&json!("answered"), &json!("turn_detected")));
    assert!(second["prompt"].as_str().unwrap().contains("second question"), "{second:#}");
    let third = &turns[2];
    assert_eq!(
        (&third["outcome"], &third["finish_reason"]),
        (&json!("failed"), &json!("failed")),
        "{third:#}"
    );
    assert_eq!((&third["prompt"], &third["first_byte_ms"]), (&Value::Null, &Value::Null), "{third:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transcript_that_is_metered_has_a_record_and_is_part_of_the_next_prompt() {
    let stage = Stage::start("").await;
    let mut session = stage.open().await;
    let transcript = |item: &str, usage: &Value| json!({"type": "conversation.item.input_audio_transcription.completed", "event_id": "e", "item_id": item, "content_index": 0, "transcript": "what was said", "usage": usage});
    let tokens = json!({"type": "tokens", "total_tokens": 22, "input_tokens": 13, "input_token_details": {"text_tokens": 0, "audio_tokens": 13}, "output_tokens": 9});
    session
        .pass_events(&[
            session_created(),
            json!({"type": "input_audio_buffer.committed", "event_id": "e", "item_id": "item_u"}),
            transcript("item_u", &tokens),
            // One that is told twice is one transcript.
            transcript("item_u", &tokens),
            transcript("item_v", &json!({"type": "duration", "seconds": 9})),
            response_created("resp_1"),
            done("resp_1"),
            transcript("item_w", &Value::Null),
        ])
        .await;
    let (_, turns) = end_and_split_records(session, &stage, 3).await;
    let [transcript, by_duration, response] = &turns[..] else { panic!("three records: {turns:#?}") };
    assert_eq!(transcript["input_audio_tokens"], 13, "{transcript:#}");
    assert_eq!((&by_duration["audio_seconds"], &by_duration["total_tokens"]), (&json!(9), &Value::Null));
    assert_eq!(
        (&transcript["input_tokens"], &transcript["output_tokens"]),
        (&json!(13), &json!(9)),
        "{transcript:#}"
    );
    assert_eq!(
        (&transcript["model"], &transcript["completion"]),
        (&json!("gpt-4o-transcribe"), &json!("what was said"))
    );
    assert!(response["prompt"].as_str().unwrap().contains("what was said"), "{response:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_read_however_their_bytes_arrive_and_long_audio_passes() {
    let stage = Stage::start("").await;
    let mut session = stage.open().await;
    for event in [session_created(), response_created("resp_1"), audio_delta("resp_1", 2 << 20)] {
        session.pass(&text_frame(&event.to_string())).await;
    }
    session.pass(b"\x89\x04ping").await;
    let frame = text_frame(&done("resp_1").to_string());
    let (first, rest) = frame.split_at(3);
    session.pass(first).await;
    for piece in rest.chunks(100) {
        session.pass(piece).await;
    }
    // In fragments, with a ping between them.
    let text = done("resp_2").to_string();
    let (first, rest) = text.split_at(20);
    let [mut first, mut rest] = [text_frame(first), text_frame(rest)];
    (first[0], rest[0]) = (0x01, 0x80);
    session.pass(&[&first[..], b"\x89\x00", &rest].concat()).await;
    let (_, turns) = end_and_split_records(session, &stage, 2).await;
    assert!(turns.iter().all(|turn| turn["total_tokens"] == 150), "{turns:#?}");
    assert!(turns[0]["response_bytes"].as_u64().unwrap() > 2 << 20, "{turns:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_comes_with_the_handshake_has_its_record() {
    let stage = Stage::start("").await;
    let mut client = TcpStream::connect(stage.balancer.address).await.unwrap();
    client.write_all(Client::request_head("GET", TARGET, &UPGRADE_HEADERS).as_bytes()).await.unwrap();
    let (mut backend, _) = stage.listener.accept().await.unwrap();
    read_head(&mut backend).await;
    let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let frame = text_frame(&done("resp_1").to_string());
    backend.write_all(&[&head[..], &frame].concat()).await.unwrap();
    let client_head = read_head(&mut client).await;
    let mut received = vec![0; frame.len()];
    timeout(TEST_TIMEOUT, client.read_exact(&mut received)).await.unwrap().unwrap();
    assert!(received == frame, "the bytes have changed");
    let session = Session { client, backend, client_head, backend_head: String::new() };
    let (_, turns) = end_and_split_records(session, &stage, 1).await;
    assert_eq!(turns[0]["total_tokens"], 150, "{turns:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_websocket_or_breaks_off_passes_and_leaves_the_records_of_what_was_complete() {
    let stage = Stage::start("").await;
    let mut session = stage.open().await;
    session.pass_events(&[response_created("resp_1"), done("resp_1"), response_created("resp_2")]).await;
    session.pass(b"\xc1 compressed, or no frame at all").await;
    session.pass_events(&[done("resp_2")]).await;
    stage.balancer.wait_for_records(1).await;
    // The backend dies.
    rustix::net::sockopt::set_socket_linger(&session.backend, Some(std::time::Duration::ZERO)).unwrap();
    let Session { mut client, backend, .. } = session;
    drop(backend);
    let mut rest = Vec::new();
    let _ = timeout(TEST_TIMEOUT, client.read_to_end(&mut rest)).await.expect("the session goes on");
    let records = stage.balancer.wait_for_records(2).await;
    assert_eq!((&records[0]["status"], &records[0]["outcome"]), (&json!(200), &json!("answered")));
    assert_eq!((&records[1]["status"], &records[1]["outcome"]), (&json!(101), &json!("failed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_recorded_as_far_as_the_configuration_says() {
    let yaml = |content: &str| {
        format!(
            "record: {{ content: {content}, redact: ['question-[0-9]+', 'in resp'], jsonl: {{ path: records.jsonl }} }}"
        )
    };
    for (content, has_prompt, has_completion) in
        [("none", false, false), ("prompt", true, false), ("full", true, true)]
    {
        let stage = Stage::start(&yaml(content)).await;
        let mut session = stage.open().await;
        session.pass_events(&[user_item("question-17"), response_created("resp_1"), done("resp_1")]).await;
        let (_, turns) = end_and_split_records(session, &stage, 1).await;
        let turn = &turns[0];
        assert_eq!(turn["total_tokens"], 150, "{turn:#}");
        let text = |field: &str| turn[field].as_str().map(str::to_owned);
        assert_eq!(text("prompt").is_some(), has_prompt, "{turn:#}");
        assert_eq!(text("completion"), has_completion.then(|| "spoken [redacted]_1".to_owned()), "{turn:#}");
        assert!(!turn.to_string().contains("question-17"), "{turn:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_count_in_the_metrics_without_records() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backends = backend_yaml("a", &format!("http://{}", listener.local_addr().unwrap()), DEPLOYMENTS);
    let directory = tempfile::tempdir().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let text = format!(
        "listeners: [ {{ address: '{address}' }} ]\nadmin: {{ address: '{admin}' }}\nserver: {{ drain_delay: 0s }}\nbackends:\n{backends}{}",
        support::clients_yaml()
    );
    let balancer = Balancer::start_from_file(directory, address, admin, &text).await;
    let stage = Stage { balancer, listener };
    let mut session = stage.open().await;
    session.pass_events(&[response_created("resp_1"), done("resp_1")]).await;
    let wanted = [
        r#"aoai_lb_requests_total{client="team-a",deployment="gpt-realtime",operation="realtime",status="200"} 1"#,
        r#"aoai_lb_tokens_total{client="team-a",deployment="gpt-realtime",type="output"} 50"#,
    ];
    wait_until_async("the metrics count the response", async || {
        let mut admin = Client::connect(stage.balancer.admin_address).await;
        let text = admin.get("/metrics", &[("Host", "localhost")]).await.text();
        wanted.iter().all(|sample| text.lines().any(|line| line == *sample))
    })
    .await;
}

/// The fields of a handshake whose key is offered as subprotocol.
fn offer(subprotocols: &str) -> Vec<(&str, &str)> {
    let without_key = UPGRADE_HEADERS.into_iter().filter(|(name, _)| *name != "api-key");
    without_key.chain([("Sec-WebSocket-Protocol", subprotocols)]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_among_the_subprotocols_admits_a_client_and_goes_nowhere() {
    let stage = Stage::start("").await;
    let offered = format!("openai-insecure-api-key.{CLIENT_KEY}, realtime, openai-beta.realtime-v1");
    let mut fields = offer(&offered);
    fields.push(("Sec-WebSocket-Extensions", "permessage-deflate"));
    // The backend selects none.
    let session = stage.open_with(&fields, "").await;
    assert!(session.client_head.contains("sec-websocket-protocol: realtime\r\n"), "{}", session.client_head);
    assert!(
        session.backend_head.contains("sec-websocket-protocol: realtime, openai-beta.realtime-v1\r\n"),
        "{}",
        session.backend_head
    );
    // Frames that are compressed could not be read.
    assert!(!session.backend_head.contains("sec-websocket-extensions"), "{}", session.backend_head);
    assert!(!session.backend_head.contains(CLIENT_KEY));
    // What the backend selects stays.
    let second =
        stage.open_with(&offer(&offered), "Sec-WebSocket-Protocol: openai-beta.realtime-v1\r\n").await;
    assert!(second.client_head.contains("sec-websocket-protocol: openai-beta.realtime-v1\r\n"));
    assert_eq!(second.client_head.matches("sec-websocket-protocol").count(), 1, "{}", second.client_head);
    // Only a key is offered: none is selected.
    let only_key = format!("openai-insecure-api-key.{CLIENT_KEY}");
    let third = stage.open_with(&offer(&only_key), "").await;
    assert!(!third.client_head.contains("sec-websocket-protocol"), "{}", third.client_head);
    assert!(!third.backend_head.contains("sec-websocket-protocol"), "{}", third.backend_head);
    drop((session, second, third));
    let records = stage.balancer.wait_for_records(3).await;
    assert!(records.iter().all(|record| record["client"] == "team-a"), "{records:#?}");
    assert!(!stage.balancer.log().contains(CLIENT_KEY));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_among_the_subprotocols_follow_the_rules_of_all_keys() {
    let clients = format!(
        "clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n  - name: team-b\n    keys: [ {{ sha256: {} }} ]\n",
        sha256_hex(CLIENT_KEY),
        sha256_hex("key-of-team-b"),
    );
    let stage = Stage::start_with_clients(&clients, "").await;
    assert_eq!(stage.refused_status(&offer("realtime, openai-insecure-api-key.wrong")).await, 401);
    assert_eq!(stage.refused_status(&offer("realtime")).await, 401);
    let mut of_two = offer("openai-insecure-api-key.key-of-team-b");
    of_two.push(("api-key", CLIENT_KEY));
    assert_eq!(stage.refused_status(&of_two).await, 401);
    // Without an upgrade it is no key.
    let offered = format!("openai-insecure-api-key.{CLIENT_KEY}");
    assert_eq!(stage.refused_status(&[("Sec-WebSocket-Protocol", &offered)]).await, 401);
    // One that is not valid does no harm.
    let mut with_invalid = offer("openai-insecure-api-key.wrong, realtime");
    with_invalid.push(("api-key", CLIENT_KEY));
    let session = stage.open_with(&with_invalid, "").await;
    assert!(!session.backend_head.contains("wrong"), "{}", session.backend_head);
}
