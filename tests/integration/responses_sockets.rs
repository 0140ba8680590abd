//! The turns of a Responses socket: each is routed, repeated and recorded like a POST of the same content.

use crate::support;

use serde_json::{Value, json};
use support::responses_upstream::{
    HELD_TURN, ResponsesUpstream, Step, TURN, create, error_step, throttled_step,
};
use support::websocket::{CLOSE, Incoming, RESPONSES_TARGET, TEXT, UPGRADE_HEADERS, WebSocket};
use support::{Balancer, CLIENT_KEY, LISTED_DEPLOYMENTS, answering_backend, sha256_hex, wait_until};
use tokio::task::JoinSet;

/// The name of the upstream that sent the events of a turn.
fn answering(events: &[Value]) -> String {
    let delta = events.iter().find(|event| event["type"] == "response.output_text.delta");
    delta.unwrap_or_else(|| panic!("no output: {events:#?}"))["from"].as_str().unwrap().to_owned()
}

fn id_of(event: &Value) -> Value {
    assert_eq!(event["type"], "response.completed", "{event}");
    event["response"]["id"].clone()
}

fn event_types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_of_each_message_chooses_the_pool_and_is_mapped() {
    let (a, b) = (ResponsesUpstream::start("a").await, ResponsesUpstream::start("b").await);
    let backends = a.backend_yaml("deployments: { chat: chat-on-a }")
        + &b.backend_yaml("deployments: { reasoning: reasoning-on-b, chat2: chat2 }");
    let balancer = Balancer::start(&backends, "").await;
    let mut socket = WebSocket::open(&balancer).await;
    for (upstream, sent, received) in [
        (
            &a,
            r#"{ "input" : [ 1.50, "\u00e9" ],  "model":"chat", "x":{"model":"chat"},"type":"response.create"}"#,
            r#"{ "input" : [ 1.50, "\u00e9" ],  "model":"chat-on-a", "x":{"model":"chat"},"type":"response.create"}"#,
        ),
        (
            &b,
            r#"{"type":"response.create","model":"reasoning"}"#,
            r#"{"type":"response.create","model":"reasoning-on-b"}"#,
        ),
        (
            &a,
            r#"{"type":"response.create","model":"chat"}"#,
            r#"{"type":"response.create","model":"chat-on-a"}"#,
        ),
    ] {
        socket.send_text(sent).await;
        let events = socket.rest_of_turn().await;
        assert_eq!(
            event_types(&events),
            ["response.created", "response.output_text.delta", "response.completed"]
        );
        assert_eq!(upstream.last_message().text, received);
    }
    let handshake = a.last_message().handshake;
    assert!(handshake.starts_with("GET /openai/v1/responses HTTP/1.1\r\n"), "{handshake}");
    assert!(handshake.contains("api-key: a-key") && !handshake.contains(CLIENT_KEY), "{handshake}");
    // A socket to a backend is kept for the next turn that goes there.
    assert_eq!((a.opened_sockets(), b.opened_sockets()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_turns_of_one_socket_are_balanced_and_recorded_one_by_one() {
    let ([a, b], balancer) = ResponsesUpstream::start_behind_balancer(["a", "b"], "").await;
    let mut socket = WebSocket::open(&balancer).await;
    let mut answered_by = Vec::new();
    for turn in 0..6 {
        let events = socket.turn(&create(&json!({"input": format!("turn {turn}")}))).await;
        answered_by.push(answering(&events));
        balancer.wait_for_records(turn + 1).await;
    }
    for upstream in ["a", "b"] {
        assert_eq!(answered_by.iter().filter(|by| *by == upstream).count(), 3, "{answered_by:?}");
    }
    assert_eq!((a.opened_sockets(), b.opened_sockets()), (1, 1));
    socket.send_frame(CLOSE, &1000_u16.to_be_bytes()).await;
    assert_eq!(socket.next().await, Incoming::Close(Some((1000, String::new()))));
    let mut records = balancer.wait_for_records(7).await;
    let of_socket = records.pop().unwrap();
    let expected = [
        ("method", json!("GET")),
        ("status", json!(101)),
        ("outcome", json!("answered")),
        ("client", json!("team-a")),
        ("path", json!(RESPONSES_TARGET)),
        ("deployment", json!(null)),
        ("attempts", json!([])),
        ("total_tokens", json!(null)),
        ("usage_source", json!("none")),
        ("socket_id", json!(null)),
    ];
    for (field, value) in expected {
        assert_eq!(of_socket[field], value, "{field}: {of_socket:#}");
    }
    for (turn, (record, by)) in records.iter().zip(&answered_by).enumerate() {
        let expected = [
            ("method", json!("WEBSOCKET")),
            ("socket_id", of_socket["request_id"].clone()),
            ("status", json!(200)),
            ("outcome", json!("answered")),
            ("client", json!("team-a")),
            ("operation", json!("responses")),
            ("stream", json!(true)),
            ("deployment", json!("gpt-4o")),
            ("upstream_deployment", json!("gpt-4o")),
            ("backend", json!(by)),
            ("region", json!("Test Region")),
            ("input_tokens", json!(11)),
            ("cached_tokens", json!(4)),
            ("cache_write_tokens", json!(6)),
            ("service_tier", json!("priority")),
            ("output_tokens", json!(7)),
            ("total_tokens", json!(18)),
            ("usage_source", json!("reported")),
            ("completion", json!("hi")),
        ];
        for (field, value) in expected {
            assert_eq!(record[field], value, "{field}: {record:#}");
        }
        assert!(record["prompt"].to_string().contains(&format!("turn {turn}")), "{record:#}");
        assert_eq!(record["attempts"].as_array().unwrap().len(), 1);
        assert_eq!(record["attempts"][0]["backend"], **by);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_turn_that_a_client_got_completely_has_a_record_after_a_kill() {
    let ([a], mut balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    for round in 0..3 {
        let before = a.message_count();
        let mut clients = JoinSet::new();
        for client in 0..8 {
            let mut socket = WebSocket::open(&balancer).await;
            clients.spawn(async move {
                let mut completed = Vec::new();
                for turn in 0.. {
                    let input = format!("turn {turn} of client {client} in round {round}.");
                    socket
                        .try_send_frame(TEXT, create(&json!({"input": input})).to_string().as_bytes())
                        .await;
                    loop {
                        match socket.next().await {
                            Incoming::Text(text) if text.contains("response.completed") => break,
                            Incoming::Text(_) => {}
                            _ => return completed,
                        }
                    }
                    completed.push(input);
                }
                completed
            });
        }
        wait_until("many turns have begun", || a.message_count() > before + 300).await;
        balancer.send_signal("KILL");
        let completed = clients.join_all().await.concat();
        assert!(completed.len() > 200, "{}", completed.len());
        balancer.start_again().await;
        wait_until("the records are written", || {
            let prompts: Vec<Value> =
                balancer.records().iter().map(|record| record["prompt"].clone()).collect();
            completed.iter().all(|input| prompts.iter().any(|prompt| prompt == input))
        })
        .await;
    }
}

/// Starts `a`, and `b` in the tier behind it.
async fn start_two_tiers() -> (ResponsesUpstream, ResponsesUpstream, Balancer) {
    let (a, b) = (ResponsesUpstream::start("a").await, ResponsesUpstream::start("b").await);
    let backends = a.backend_yaml("tier: 1") + &b.backend_yaml("tier: 2");
    let balancer = Balancer::start(&backends, "retry: { wait: 0s }").await;
    (a, b, balancer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_fails_before_its_content_goes_to_another_backend_unseen() {
    let failed = |code: &str| {
        Step::Event(json!({"type": "response.failed", "response": {"id": "resp_1", "status": "failed",
            "error": {"code": code, "message": "m"}}}))
    };
    for (what, steps, status) in [
        ("a 429 as the first event", vec![throttled_step(60_000)], json!(429)),
        ("a 500 as the first event", vec![error_step(500, "server_error", &json!({}))], json!(500)),
        ("a failed response", vec![Step::Created, failed("server_error")], json!(500)),
        ("a throttled response", vec![Step::Created, failed("rate_limit_exceeded")], json!(429)),
        ("a close frame", vec![Step::Close(1011)], json!(null)),
        ("a reset", vec![Step::Reset], json!(null)),
        ("an end before content", vec![Step::Created, Step::Close(1011)], json!(null)),
    ] {
        let (a, b, balancer) = start_two_tiers().await;
        a.answer(steps);
        let mut socket = WebSocket::open(&balancer).await;
        let message = create(&json!({"input": what}));
        let events = socket.turn(&message).await;
        assert_eq!(answering(&events), "b", "{what}");
        assert_eq!(
            event_types(&events),
            ["response.created", "response.output_text.delta", "response.completed"],
            "{what}"
        );
        assert_eq!((a.last_message().json(), b.last_message().json()), (message.clone(), message), "{what}");
        let record = balancer.wait_for_records(1).await.remove(0);
        let attempts = &record["attempts"];
        assert_eq!(attempts.as_array().unwrap().len(), 2, "{what}: {record:#}");
        assert_eq!((&attempts[0]["backend"], &attempts[0]["status"]), (&json!("a"), &status), "{what}");
        assert_eq!((&attempts[1]["backend"], &attempts[1]["status"]), (&json!("b"), &json!(200)), "{what}");
        assert_eq!((&record["outcome"], &record["total_tokens"]), (&json!("answered"), &json!(18)), "{what}");
        // The failure is one of a turn, not of the socket.
        socket.complete_turn(&create(&json!({}))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_handshake_fails_over_and_the_last_one_reaches_the_client_as_an_event() {
    for (status, headers) in [(429, "retry-after: 60"), (503, ""), (404, ""), (426, "")] {
        let (a, b, balancer) = start_two_tiers().await;
        a.refuse_handshakes(Some((status, headers)));
        let mut socket = WebSocket::open(&balancer).await;
        assert_eq!(answering(&socket.turn(&create(&json!({}))).await), "b");
        let record = balancer.wait_for_records(1).await.remove(0);
        assert_eq!(record["attempts"][0]["status"], status, "{record:#}");
        assert_eq!((a.message_count(), b.message_count()), (0, 1));
    }
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    a.refuse_handshakes(Some((403, "")));
    let mut socket = WebSocket::open(&balancer).await;
    let event = socket.failing_turn(&create(&json!({}))).await;
    assert_eq!((&event["status"], &event["error"]["code"]), (&json!(403), &json!("refused")), "{event}");
    a.refuse_handshakes(None);
    socket.complete_turn(&create(&json!({}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_all_backends_throttle_is_one_429_event_and_the_next_turn_works() {
    let (a, b) = (ResponsesUpstream::start("a").await, ResponsesUpstream::start("b").await);
    let backends = a.backend_yaml(LISTED_DEPLOYMENTS) + &b.backend_yaml(LISTED_DEPLOYMENTS);
    let balancer = Balancer::start(&backends, "").await;
    for (upstream, wait) in [(&a, 60_000), (&b, 30_000)] {
        upstream.script(
            move |create| {
                if create["model"] == "gpt-4o" { vec![throttled_step(wait)] } else { TURN.to_vec() }
            },
        );
    }
    let mut socket = WebSocket::open(&balancer).await;
    // Both are asked by the first turn, and none by the second.
    for _ in 0..2 {
        let event = socket.failing_turn(&create(&json!({}))).await;
        assert_eq!(event["status"], 429, "{event}");
        let wait = event["retry_after_ms"].as_u64().unwrap();
        assert!((25_000..=30_000).contains(&wait), "the first backend is available in 30 s: {event}");
        assert_eq!(a.message_count() + b.message_count(), 2);
    }
    socket.complete_turn(&create(&json!({"model": "other"}))).await;
    let records = balancer.wait_for_records(3).await;
    let statuses: Vec<&Value> = records.iter().map(|record| &record["status"]).collect();
    assert_eq!(statuses, [&json!(429), &json!(429), &json!(200)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_lost_in_mid_turn_ends_the_turn_with_a_502_and_not_the_socket() {
    let extra_yaml = "websocket: { max_frame: 64KiB }\ntimeouts: { idle: 300ms }";
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], extra_yaml).await;
    let mut socket = WebSocket::open(&balancer).await;
    let oversized = Step::Event(json!({"type": "x", "x": "x".repeat(64 * 1024)}));
    for end in [Step::Reset, Step::Close(1011), oversized, Step::Hold] {
        a.answer([Step::Created, Step::Delta, end]);
        let events = socket.turn(&create(&json!({}))).await;
        assert_eq!(event_types(&events), ["response.created", "response.output_text.delta", "error"]);
        assert_eq!(
            (&events[2]["status"], &events[2]["error"]["code"]),
            (&json!(502), &json!("upstream_failed"))
        );
    }
    a.answer(TURN);
    socket.complete_turn(&create(&json!({}))).await;
    let mut records = balancer.wait_for_records(5).await;
    // Tokens that have to be estimated delay a record.
    records.sort_by_key(|record| record["time"].to_string());
    let outcomes: Vec<&Value> = records.iter().map(|record| &record["outcome"]).collect();
    assert_eq!(outcomes, ["failed", "failed", "failed", "failed", "answered"], "{records:#?}");
    assert_eq!(records[0]["attempts"].as_array().unwrap().len(), 1, "{records:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_backend_is_left_for_another_one() {
    let (a, b) = (ResponsesUpstream::start("a").await, ResponsesUpstream::start("b").await);
    let backends = a.backend_yaml("tier: 1") + &b.backend_yaml("tier: 2");
    let balancer = Balancer::start(&backends, "timeouts: { first_byte_stream: 300ms }").await;
    a.answer([Step::Hold]);
    let mut socket = WebSocket::open(&balancer).await;
    assert_eq!(answering(&socket.turn(&create(&json!({}))).await), "b");
    wait_until("the silent socket is closed", || a.open_sockets() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_events_arrive_unchanged_and_in_their_order() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    let events: Vec<Value> =
        (0..3000).map(|n| json!({"type": "x", "n": n, "x": "x".repeat(n * 7 % 1500)})).collect();
    let mut steps = vec![Step::Created];
    steps.extend(events.iter().cloned().map(Step::Event));
    steps.push(Step::Completed);
    a.answer(steps);
    let mut socket = WebSocket::open(&balancer).await;
    let received = socket.turn(&create(&json!({}))).await;
    assert_eq!(received.len(), events.len() + 2);
    assert!(received[1..=events.len()] == events, "events differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_chain_stays_on_its_resource_over_sockets_and_http() {
    let ([a, b], balancer) = ResponsesUpstream::start_behind_balancer(["a", "b"], "").await;
    for _ in 0..2 {
        let mut socket = WebSocket::open(&balancer).await;
        let first = socket.turn(&create(&json!({}))).await;
        let (home, mut previous) = (answering(&first), id_of(&first[2]));
        for _ in 0..3 {
            // One that has no home in between, so that it is not its turn that leads there.
            socket.complete_turn(&create(&json!({}))).await;
            let mut another_socket = WebSocket::open(&balancer).await;
            for socket in [&mut socket, &mut another_socket] {
                let events = socket.turn(&create(&json!({"previous_response_id": previous}))).await;
                assert_eq!(answering(&events), home);
                previous = id_of(&events[2]);
            }
            let body = json!({"model": "gpt-4o", "input": "hi", "previous_response_id": previous});
            let headers = [("api-key", CLIENT_KEY), ("content-type", "application/json")];
            let response = balancer.post(RESPONSES_TARGET, &headers, body.to_string().as_bytes()).await;
            assert_eq!((response.status, answering_backend(&response)), (200, home.clone()));
            assert_eq!(response.header("x-aoai-lb-attempts"), Some("1"));
            previous = response.json()["id"].clone();
        }
    }
    let records = balancer.records();
    let record = records.iter().rfind(|record| record["affinity"].is_object()).unwrap();
    assert_eq!(
        (&record["affinity"]["by"], &record["affinity"]["how"]),
        (&json!("previous_response"), &json!("learned")),
        "{record:#}"
    );
    // What was made past the balancer is looked for.
    for (upstream, name) in [(&a, "a"), (&b, "b")] {
        let previous = upstream.make_stored_response();
        let mut socket = WebSocket::open(&balancer).await;
        let events = socket.turn(&create(&json!({"previous_response_id": previous}))).await;
        assert_eq!(answering(&events), name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unstored_chain_stays_on_its_upstream_socket_until_that_is_gone() {
    let ([a, b], balancer) = ResponsesUpstream::start_behind_balancer(["a", "b"], "").await;
    let mut socket = WebSocket::open(&balancer).await;
    let first = socket.turn(&create(&json!({"store": false}))).await;
    let (home, mut previous) = (answering(&first), id_of(&first[2]));
    let upstream = if home == "a" { &a } else { &b };
    for _ in 0..3 {
        socket.complete_turn(&create(&json!({}))).await;
        let message = create(&json!({"store": false, "previous_response_id": previous}));
        let events = socket.turn(&message).await;
        assert_eq!(answering(&events), home);
        assert_eq!((upstream.last_message().json(), upstream.last_message().socket), (message, 0));
        previous = id_of(&events[2]);
    }
    upstream.answer([Step::Created, Step::Delta, Step::Completed, Step::Hold, Step::Close(1000)]);
    let message = create(&json!({"store": false, "previous_response_id": previous}));
    previous = id_of(&socket.complete_turn(&message).await);
    upstream.release();
    wait_until("the upstream socket is closed", || upstream.open_sockets() == 0).await;
    let counts = (a.message_count(), b.message_count());
    let event =
        socket.failing_turn(&create(&json!({"store": false, "previous_response_id": previous}))).await;
    let code = "websocket_connection_limit_reached";
    assert_eq!((&event["status"], &event["error"]["code"]), (&json!(400), &json!(code)), "{event}");
    assert_eq!(socket.expect_close().await, (1001, code.to_owned()));
    assert_eq!((a.message_count(), b.message_count()), counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unstored_turn_whose_upstream_socket_dies_under_it_is_not_sent_elsewhere() {
    let ([a, b], balancer) = ResponsesUpstream::start_behind_balancer(["a", "b"], "").await;
    for upstream in [&a, &b] {
        upstream.script(|create| {
            if create["previous_response_id"].is_null() { TURN.to_vec() } else { vec![Step::Reset] }
        });
    }
    let mut socket = WebSocket::open(&balancer).await;
    let previous = id_of(&socket.complete_turn(&create(&json!({"store": false}))).await);
    let event = socket.failing_turn(&create(&json!({"previous_response_id": previous}))).await;
    assert_eq!(event["error"]["code"], "websocket_connection_limit_reached", "{event}");
    assert_eq!(socket.expect_close().await.0, 1001);
    assert_eq!(a.message_count() + b.message_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_also_refers_to_another_resource_comes_again_on_a_new_socket() {
    let ([a, b], balancer) = ResponsesUpstream::start_behind_balancer(["a", "b"], "").await;
    let denial = json!({"type": "error", "status": 400, "error": {
        "code": "invalid_encrypted_content", "type": "invalid_request_error", "param": null,
        "message": "The encrypted content gAAA...0g== could not be verified.",
    }});
    // The balancer does not know whose reasoning it is.
    let reasoning =
        json!([{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAABo0g=="}]);
    let mut socket = WebSocket::open(&balancer).await;
    let warmed_up = socket.turn(&create(&json!({"store": false}))).await;
    let (first, other) = if answering(&warmed_up) == "a" { (&a, "b") } else { (&b, "a") };
    first.script(move |create| match create["input"].is_array() {
        true => vec![Step::Event(denial.clone())],
        false => TURN.to_vec(),
    });
    let turn = json!({"store": false, "previous_response_id": id_of(&warmed_up[2]), "input": reasoning});
    let event = socket.failing_turn(&create(&turn)).await;
    assert_eq!(event["error"]["code"], "websocket_connection_limit_reached", "{event}");
    assert_eq!(socket.expect_close().await.0, 1001);
    for _ in 0..2 {
        let mut socket = WebSocket::open(&balancer).await;
        let events = socket.turn(&create(&json!({"store": false, "input": reasoning}))).await;
        assert_eq!(answering(&events), other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_events_and_the_socket_stays_open() {
    let a = ResponsesUpstream::start("a").await;
    let key = sha256_hex(CLIENT_KEY);
    let clients = format!(
        "clients:\n  - name: team-a\n    keys: [ {{ sha256: {key} }} ]\n    deployments: [ gpt-4o, missing ]\n"
    );
    let backend = a.backend_yaml(LISTED_DEPLOYMENTS);
    let balancer = Balancer::start_with_clients(&backend, &clients, "").await;
    let mut socket = WebSocket::open(&balancer).await;
    socket.complete_turn(&create(&json!({}))).await;
    for (message, status, code) in [
        (create(&json!({"model": "other"})), 403, "deployment_not_allowed"),
        (create(&json!({"model": "missing"})), 404, "DeploymentNotFound"),
        (create(&json!({"model": null})), 400, "bad_request"),
        (json!({"type": "response.cancel", "type": 7}), 400, "bad_request"),
        (json!([]), 400, "bad_request"),
    ] {
        let event = socket.failing_turn(&message).await;
        let found = (&event["status"], &event["error"]["code"]);
        assert_eq!(found, (&json!(status), &json!(code)), "{message}: {event}");
        assert!(event["error"]["message"].is_string() && event["error"]["type"].is_string(), "{event}");
    }
    socket.complete_turn(&create(&json!({}))).await;
    let records = balancer.wait_for_records(5).await;
    let refusals: Vec<Value> = records.iter().map(|record| record["refusal"].clone()).collect();
    let no = json!(null);
    assert_eq!(
        refusals,
        [no.clone(), json!("deployment_not_allowed"), json!("DeploymentNotFound"), json!("bad_request"), no]
    );
    assert_eq!(a.message_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_without_a_valid_key_is_refused_and_opens_nothing() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    let wrong_key = [&[("api-key", "wrong")], &UPGRADE_HEADERS[1..]].concat();
    let response = WebSocket::open_with(balancer.address, RESPONSES_TARGET, &wrong_key).await.err().unwrap();
    assert_eq!((response.status, response.error_code().as_str()), (401, "invalid_api_key"));
    let protocols = "responses, openai-insecure-api-key.key-of-team-a";
    let with_protocols = [&UPGRADE_HEADERS[1..], &[("Sec-WebSocket-Protocol", protocols)]].concat();
    let mut socket = WebSocket::open_with(balancer.address, "/v1/responses", &with_protocols).await.unwrap();
    socket.complete_turn(&create(&json!({}))).await;
    let handshake = a.last_message().handshake;
    assert!(handshake.to_lowercase().contains("sec-websocket-protocol: responses\r\n"), "{handshake}");
    assert!(!handshake.contains(CLIENT_KEY), "{handshake}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_without_a_turn_is_not_in_flight() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    a.answer(HELD_TURN);
    let mut socket = WebSocket::open(&balancer).await;
    balancer.wait_for_status("an open socket is not in flight", |status| status["in_flight"] == 0).await;
    for _ in 0..2 {
        socket.send(&create(&json!({}))).await;
        balancer.wait_for_status("a turn is in flight", |status| status["in_flight"] == 1).await;
        a.release();
        socket.rest_of_turn().await;
        balancer.wait_for_status("the turn has ended", |status| status["in_flight"] == 0).await;
    }
}
