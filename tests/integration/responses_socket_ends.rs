//! How a Responses socket ends: after a fault of its client, at its age, at a stop, and when its client leaves.

use crate::support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::responses_upstream::{HELD_TURN, ResponsesUpstream, Step, TURN, create};
use support::websocket::{
    BINARY, CLOSE, FIRST_PART_OF_TEXT, Incoming, LAST_PART, PING, TEXT, WebSocket, frame,
};
use support::{Balancer, CLIENT_KEY, sha256_hex, wait_until};

const SOCKET_LIMIT: &str = "websocket_connection_limit_reached";

/// Reads the event that says that the socket is about to be closed, and the close frame.
async fn expect_socket_limit(socket: &mut WebSocket) {
    let event = socket.next_event().await;
    assert_eq!((&event["type"], &event["status"]), (&json!("error"), &json!(400)), "{event}");
    let error = &event["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("invalid_request_error"), &json!(SOCKET_LIMIT)));
    assert_eq!(socket.expect_close().await, (1001, SOCKET_LIMIT.to_owned()));
}

/// The records of sockets, without those of turns.
fn socket_records(balancer: &Balancer) -> Vec<Value> {
    balancer.records().into_iter().filter(|record| record["method"] == "GET").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_client_closes_its_socket_with_the_right_code() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    let text = |text: &str| frame(TEXT, true, text.as_bytes());
    let valid = create(&json!({})).to_string();
    let large = |bytes: usize| text(&create(&json!({"input": "x".repeat(bytes)})).to_string());
    // What is sent first, the status of the error event, and the close code.
    let cases: [(&str, Vec<u8>, Option<u16>, u16); 13] = [
        ("no JSON", text("hello"), Some(400), 1008),
        ("no object", text("[]"), Some(400), 1008),
        ("another type", text(r#"{"type":"response.cancel"}"#), Some(400), 1008),
        ("no type", text(r#"{"model":"gpt-4o"}"#), Some(400), 1008),
        ("no model", text(r#"{"type":"response.create","input":"hi"}"#), Some(400), 1008),
        (
            "a repeated type",
            text(r#"{"type":"x","type":"response.create","model":"gpt-4o"}"#),
            Some(400),
            1008,
        ),
        ("binary", frame(BINARY, true, valid.as_bytes()), Some(400), 1003),
        ("more than 1 MiB", large(1024 * 1024), None, 1009),
        ("invalid UTF-8", frame(TEXT, true, b"{\"type\":\"\xff\"}"), None, 1007),
        ("unmasked", frame(TEXT, false, valid.as_bytes()), None, 1002),
        ("a reserved bit", frame(TEXT | 0x40, true, valid.as_bytes()), None, 1002),
        ("an unknown type of frame", frame(0x83, true, b""), None, 1002),
        ("a part of nothing", frame(LAST_PART, true, b"x"), None, 1002),
    ];
    let case_count = cases.len();
    for (what, bytes, status, code) in cases {
        let mut socket = WebSocket::open(&balancer).await;
        socket.connection.try_send(&bytes).await;
        if let Some(status) = status {
            let event = socket.next_event().await;
            let found = (&event["type"], &event["status"], &event["error"]["code"]);
            assert_eq!(found, (&json!("error"), &json!(status), &json!("bad_request")), "{what}: {event}");
        }
        assert_eq!(socket.expect_close().await.0, code, "{what}");
    }
    assert_eq!((a.message_count(), a.opened_sockets()), (0, 0));
    for record in balancer.wait_for_records(case_count).await {
        assert_eq!((&record["method"], &record["status"]), (&json!("GET"), &json!(101)), "{record:#}");
        assert!(record["refusal"].is_string(), "{record:#}");
    }
    // All but a little of 1 MiB is a message.
    let mut socket = WebSocket::open(&balancer).await;
    socket.connection.send(&large(1024 * 1024 - 100)).await;
    assert_eq!(socket.rest_of_turn().await.len(), TURN.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_no_first_message_in_time_is_told_so() {
    let ([_a], balancer) =
        ResponsesUpstream::start_behind_balancer(["a"], "websocket: { first_frame: 300ms }").await;
    let opened_at = Instant::now();
    let mut silent = WebSocket::open(&balancer).await;
    let mut slow = WebSocket::open(&balancer).await;
    slow.send_frame(FIRST_PART_OF_TEXT, b"{").await;
    slow.send_frame(PING, b"").await;
    assert_eq!(slow.next().await, Incoming::Pong(Vec::new()));
    let mut quick = WebSocket::open(&balancer).await;
    quick.complete_turn(&create(&json!({}))).await;
    for socket in [&mut silent, &mut slow] {
        let event = socket.next_event().await;
        assert_eq!((&event["status"], &event["error"]["code"]), (&json!(408), &json!("request_timeout")));
        assert_eq!(socket.expect_close().await.0, 1008);
    }
    assert!(opened_at.elapsed() >= Duration::from_millis(300));
    quick.complete_turn(&create(&json!({}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_rest_does_not_arrive_ends_its_socket() {
    let ([_a], balancer) =
        ResponsesUpstream::start_behind_balancer(["a"], "timeouts: { request_body: 300ms }").await;
    let mut socket = WebSocket::open(&balancer).await;
    socket.complete_turn(&create(&json!({}))).await;
    let began_at = Instant::now();
    socket.send_frame(FIRST_PART_OF_TEXT, b"{").await;
    let event = socket.next_event().await;
    assert_eq!((&event["status"], &event["error"]["code"]), (&json!(408), &json!("request_timeout")));
    assert_eq!(socket.expect_close().await.0, 1008);
    assert!(began_at.elapsed() >= Duration::from_millis(300));
    wait_until("the socket has its record", || socket_records(&balancer).len() == 1).await;
    assert_eq!(socket_records(&balancer)[0]["refusal"], "request_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_message_may_be_as_large_as_the_configuration_says() {
    let ([a], balancer) =
        ResponsesUpstream::start_behind_balancer(["a"], "websocket: { max_frame: 2MiB }").await;
    let mut socket = WebSocket::open(&balancer).await;
    for kib in [1, 1900] {
        let message = create(&json!({"input": "x".repeat(kib << 10)}));
        socket.complete_turn(&message).await;
        assert_eq!(a.last_message().json(), message);
    }
    let message = create(&json!({"input": "x".repeat(2 << 20)})).to_string();
    socket.try_send_frame(TEXT, message.as_bytes()).await;
    assert_eq!(socket.expect_close().await.0, 1009);
    assert_eq!(a.message_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_come_in_parts_with_a_ping_between_them() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    let mut socket = WebSocket::open(&balancer).await;
    for _ in 0..2 {
        let message = create(&json!({"input": "a \u{e9} that is cut in two"})).to_string();
        let cut = message.find('\u{e9}').unwrap() + 1;
        let (start, end) = message.as_bytes().split_at(cut);
        socket.send_frame(FIRST_PART_OF_TEXT, start).await;
        socket.send_frame(PING, b"still there?").await;
        assert_eq!(socket.next().await, Incoming::Pong(b"still there?".to_vec()));
        socket.send_frame(0, b"").await;
        socket.send_frame(LAST_PART, end).await;
        assert_eq!(socket.rest_of_turn().await.len(), TURN.len());
        assert_eq!(a.last_message().text, message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_of_both_sides_are_answered_in_a_turn_and_between_two() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    a.answer([Step::Created, Step::Delta, Step::Ping, Step::Hold, Step::Completed, Step::Ping, Step::Hold]);
    let mut socket = WebSocket::open(&balancer).await;
    socket.send(&create(&json!({}))).await;
    socket.next_event_of("response.output_text.delta").await;
    socket.send_frame(PING, b"in a turn").await;
    assert_eq!(socket.next().await, Incoming::Pong(b"in a turn".to_vec()));
    wait_until("the upstream has a pong in its turn", || a.pongs() == 1).await;
    a.release();
    socket.next_event_of("response.completed").await;
    wait_until("the upstream has a pong between two turns", || a.pongs() == 2).await;
    socket.send_frame(PING, b"between").await;
    assert_eq!(socket.next().await, Incoming::Pong(b"between".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_socket_is_closed_between_two_turns() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "websocket: { rotate: 1s }").await;
    a.script(|create| if create["input"] == "long" { HELD_TURN.to_vec() } else { TURN.to_vec() });
    let opened_at = Instant::now();
    // The busy one is the older of the two.
    let mut busy = WebSocket::open(&balancer).await;
    let mut idle = WebSocket::open(&balancer).await;
    idle.complete_turn(&create(&json!({}))).await;
    busy.send(&create(&json!({"input": "long"}))).await;
    busy.next_event_of("response.output_text.delta").await;
    expect_socket_limit(&mut idle).await;
    assert!(opened_at.elapsed() >= Duration::from_secs(1));
    // What the other one sends now has to wait, and is not begun.
    busy.send(&create(&json!({"input": "too late"}))).await;
    busy.send_frame(PING, b"").await;
    assert_eq!(busy.next().await, Incoming::Pong(Vec::new()));
    a.release();
    busy.next_event_of("response.completed").await;
    expect_socket_limit(&mut busy).await;
    assert!(!a.messages().iter().any(|message| message.text.contains("too late")));
    for record in balancer.wait_for_records(4).await {
        assert_eq!((&record["outcome"], &record["refusal"]), (&json!("answered"), &json!(null)));
    }
    wait_until("the upstream sockets are closed", || a.open_sockets() == 0).await;
    assert_eq!(a.close_codes(), [Some(1000), Some(1000)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_closes_an_idle_socket_at_once_and_another_one_after_its_turn() {
    let ([a], mut balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    let mut idle = WebSocket::open(&balancer).await;
    idle.complete_turn(&create(&json!({}))).await;
    let mut unused = WebSocket::open(&balancer).await;
    let stopped_at = Instant::now();
    balancer.send_signal("TERM");
    for socket in [&mut idle, &mut unused] {
        expect_socket_limit(socket).await;
    }
    assert_eq!(balancer.wait_for_exit().await, 0);
    assert!(stopped_at.elapsed() < Duration::from_secs(5), "{:?}", stopped_at.elapsed());
    assert_eq!(socket_records(&balancer).len(), 2);

    balancer.start_again().await;
    a.answer(HELD_TURN);
    let mut busy = WebSocket::open(&balancer).await;
    busy.send(&create(&json!({}))).await;
    busy.next_event_of("response.output_text.delta").await;
    let mut idle = WebSocket::open(&balancer).await;
    balancer.send_signal("TERM");
    expect_socket_limit(&mut idle).await;
    a.release();
    busy.next_event_of("response.completed").await;
    expect_socket_limit(&mut busy).await;
    assert_eq!(balancer.wait_for_exit().await, 0);
    let records = balancer.records();
    let turn = records.iter().rfind(|record| record["method"] == "WEBSOCKET").unwrap();
    assert_eq!((&turn["outcome"], &turn["total_tokens"]), (&json!("answered"), &json!(18)));
    assert_eq!(socket_records(&balancer).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_closes_idle_sockets_and_lets_turns_end() {
    let ([a], mut balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    a.answer(HELD_TURN);
    let mut idle = WebSocket::open(&balancer).await;
    let mut busy = WebSocket::open(&balancer).await;
    busy.send(&create(&json!({}))).await;
    busy.next_event_of("response.output_text.delta").await;
    a.answer(TURN);
    assert!(balancer.run_upgrade_command().await.status.success());
    expect_socket_limit(&mut idle).await;
    // Its client connects again at once, and not to the process that has closed its socket.
    let mut new_sockets = Vec::new();
    for _ in 0..8 {
        let mut socket = WebSocket::open(&balancer).await;
        socket.complete_turn(&create(&json!({}))).await;
        new_sockets.push(socket);
    }
    a.release();
    busy.next_event_of("response.completed").await;
    expect_socket_limit(&mut busy).await;
    balancer.wait_until_single_process().await;
    for socket in &mut new_sockets {
        socket.complete_turn(&create(&json!({}))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_backend_loses_its_sockets_and_a_client_its_own_only_if_it_needs_one_of_them() {
    let ([a, b], balancer) = ResponsesUpstream::start_behind_balancer(["a", "b"], "").await;
    let mut socket = WebSocket::open(&balancer).await;
    for _ in 0..2 {
        socket.complete_turn(&create(&json!({}))).await;
    }
    let mut unstored = WebSocket::open(&balancer).await;
    let last = unstored.complete_turn(&create(&json!({"store": false}))).await;
    let previous = &last["response"]["id"];
    assert_eq!((a.message_count(), b.message_count()), (2, 1));
    balancer.post_admin("/api/backends/a/drain").await;
    for _ in 0..4 {
        socket.complete_turn(&create(&json!({}))).await;
    }
    assert_eq!((a.message_count(), b.message_count()), (2, 5));
    wait_until("the sockets to the drained backend are closed", || a.open_sockets() == 0).await;
    assert_eq!(a.close_codes(), [Some(1000), Some(1000)]);
    socket.complete_turn(&create(&json!({}))).await;
    unstored.send(&create(&json!({"store": false, "previous_response_id": previous}))).await;
    expect_socket_limit(&mut unstored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_removes_the_clients_key_ends_its_socket_at_the_next_turn() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    let mut socket = WebSocket::open(&balancer).await;
    socket.complete_turn(&create(&json!({}))).await;
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    socket.complete_turn(&create(&json!({}))).await;
    balancer.replace_in_config(&sha256_hex(CLIENT_KEY), &sha256_hex("another key"));
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    let event = socket.failing_turn(&create(&json!({}))).await;
    assert_eq!((&event["status"], &event["error"]["code"]), (&json!(401), &json!("invalid_api_key")));
    assert_eq!(socket.expect_close().await.0, 1008);
    assert_eq!(a.message_count(), 2);
    let records = balancer.wait_for_records(4).await;
    assert_eq!((&records[2]["status"], &records[2]["refusal"]), (&json!(401), &json!("invalid_api_key")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_mid_turn_takes_its_upstream_socket_with_it() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    a.answer(HELD_TURN);
    for number in 0..3 {
        let mut socket = WebSocket::open(&balancer).await;
        socket.send(&create(&json!({}))).await;
        socket.next_event_of("response.output_text.delta").await;
        match number {
            0 => socket.reset(),
            1 => drop(socket),
            _ => {
                socket.send_frame(CLOSE, &1001_u16.to_be_bytes()).await;
                assert_eq!(socket.next().await, Incoming::Close(Some((1001, String::new()))));
            }
        }
        wait_until("the upstream socket is closed", || a.open_sockets() == 0).await;
        let records = balancer.wait_for_records(2 * (number + 1)).await;
        let turn = records.iter().rfind(|record| record["method"] == "WEBSOCKET").unwrap();
        assert_eq!((&turn["outcome"], &turn["attempts"][0]["backend"]), (&json!("client_gone"), &json!("a")));
    }
    balancer.wait_for_status("nothing is in flight", |status| status["in_flight"] == 0).await;
    // Its backend is not to blame.
    assert_eq!(balancer.backend_states().await, [("a".to_owned(), "healthy".to_owned())]);
}
