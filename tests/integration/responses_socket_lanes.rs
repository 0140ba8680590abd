//! What happens at the same time on a Responses socket: lanes, messages about a turn, and a client that does not read.

use crate::support;

use std::time::Duration;

use serde_json::{Value, json};
use support::responses_upstream::{HELD_TURN, ResponsesUpstream, Step, TURN, create};
use support::websocket::WebSocket;
use support::{
    Balancer, LISTED_DEPLOYMENTS, simulated_backend_yaml, start_simulator, wait_until, wait_until_steady,
};

/// Sends a turn of this lane that is held by its upstream, and reads what comes before.
async fn begin_held_turn(socket: &mut WebSocket, lane: &str) {
    socket.send(&create(&json!({"stream_id": lane}))).await;
    for event_type in ["response.created", "response.output_text.delta"] {
        let event = socket.next_event().await;
        assert_eq!((&event["type"], &event["stream_id"]), (&json!(event_type), &json!(lane)), "{event}");
    }
}

/// The lanes of the messages that an upstream has received.
fn received_lanes(upstream: &ResponsesUpstream) -> Vec<Value> {
    upstream.messages().iter().map(|message| message.json()["stream_id"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lanes_run_at_the_same_time_and_one_lane_in_its_order() {
    for refuses_lanes in [false, true] {
        let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
        a.answer(HELD_TURN);
        if refuses_lanes {
            a.refuse_lanes();
        }
        let mut socket = WebSocket::open(&balancer).await;
        begin_held_turn(&mut socket, "one").await;
        begin_held_turn(&mut socket, "two").await;
        assert_eq!(a.open_sockets(), 2);
        // A second turn of a lane waits for the first one.
        socket.send(&create(&json!({"stream_id": "one", "input": "later"}))).await;
        begin_held_turn(&mut socket, "three").await;
        assert!(!a.messages().iter().any(|message| message.text.contains("later")));
        for _ in 0..4 {
            a.release();
        }
        let mut completed = Vec::new();
        while completed.len() < 4 {
            let event = socket.next_event_of("response.completed").await;
            completed.push(event["stream_id"].as_str().unwrap().to_owned());
        }
        completed.sort();
        assert_eq!(completed, ["one", "one", "three", "two"]);
        if refuses_lanes {
            // Only the first message has told that.
            let expected = [json!("one"), json!(null), json!(null), json!(null), json!(null)];
            assert_eq!(received_lanes(&a), expected);
            let taken_out = a.messages()[1].json();
            assert_eq!(taken_out, create(&json!({})));
        } else {
            assert_eq!(received_lanes(&a), ["one", "two", "three", "one"].map(|lane| json!(lane)));
        }
        assert_eq!(a.open_sockets(), 3);
        let records = balancer.wait_for_records(4).await;
        assert!(records.iter().all(|record| record["status"] == 200), "{records:#?}");
        assert!(records.iter().all(|record| record["attempts"].as_array().unwrap().len() == 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_events_name_their_lane_and_the_lanes_beside_go_on() {
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    a.script(|create| {
        if create["input"] == "dies" {
            vec![Step::Created, Step::Delta, Step::Close(1011)]
        } else {
            HELD_TURN.to_vec()
        }
    });
    let mut socket = WebSocket::open(&balancer).await;
    begin_held_turn(&mut socket, "beside").await;
    let events = socket.turn(&create(&json!({"stream_id": "x", "input": "dies"}))).await;
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["status"], &last["stream_id"]),
        (&json!("error"), &json!(502), &json!("x"))
    );
    let event = socket.failing_turn(&create(&json!({"stream_id": "y", "model": null}))).await;
    assert_eq!((&event["status"], &event["stream_id"]), (&json!(400), &json!("y")));
    a.release();
    assert_eq!(socket.next_event_of("response.completed").await["stream_id"], "beside");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_about_a_turn_reaches_its_upstream_socket() {
    let (a, b) = (ResponsesUpstream::start("a").await, ResponsesUpstream::start("b").await);
    let backends = a.backend_yaml(LISTED_DEPLOYMENTS) + &b.backend_yaml(LISTED_DEPLOYMENTS);
    let balancer = Balancer::start(&backends, "").await;
    let (holding, lanes) = ([&a, &b], ["one", "two"]);
    let mut socket = WebSocket::open(&balancer).await;
    for upstream in holding {
        upstream.answer(HELD_TURN);
    }
    let mut ids = Vec::new();
    for lane in lanes {
        socket.send(&create(&json!({"stream_id": lane}))).await;
        ids.push(socket.next_event_of("response.created").await["response"]["id"].clone());
        socket.next_event_of("response.output_text.delta").await;
    }
    let upstream_of = |id: &Value| if id.as_str().unwrap().contains('a') { &a } else { &b };
    assert!(ids.iter().any(|id| id.as_str().unwrap().starts_with("resp_a")), "{ids:?}");
    let last_text = |upstream: &ResponsesUpstream| upstream.last_message().text;
    for (index, id) in ids.iter().enumerate() {
        let upstream = upstream_of(id);
        for message in [
            json!({"type": "response.cancel", "response_id": id}),
            json!({"type": "response.inject", "stream_id": lanes[index], "items": [ {"n": 1} ]}),
        ] {
            let text = message.to_string();
            socket.send_text(&text).await;
            wait_until("the message arrives", || last_text(upstream) == text).await;
        }
    }
    assert_eq!((a.message_count(), b.message_count()), (3, 3));
    a.release();
    b.release();
    for _ in 0..2 {
        socket.next_event_of("response.completed").await;
    }
    // Between two turns it goes where the response was made, or to the socket of the latest turn.
    for id in &ids {
        let text = json!({"type": "response.cancel", "response_id": id, "n": 2}).to_string();
        socket.send_text(&text).await;
        let upstream = upstream_of(id);
        wait_until("the message arrives", || last_text(upstream) == text).await;
    }
    assert_eq!((a.open_sockets(), b.open_sockets()), (1, 1));

    let mut fresh = WebSocket::open(&balancer).await;
    a.answer(TURN);
    b.answer(TURN);
    fresh.failing_turn(&create(&json!({"model": "missing"}))).await;
    let event = fresh.failing_turn(&json!({"type": "response.cancel"})).await;
    assert_eq!((&event["status"], &event["error"]["code"]), (&json!(400), &json!("bad_request")), "{event}");
    fresh.complete_turn(&create(&json!({}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_about_a_turn_follows_it_to_another_backend() {
    let (a, b) = (ResponsesUpstream::start("a").await, ResponsesUpstream::start("b").await);
    let backends = a.backend_yaml("tier: 1") + &b.backend_yaml("tier: 2");
    let balancer = Balancer::start(&backends, "retry: { hold: { time: 20s } }").await;
    // The first one is lost after it has begun a response, of which the client has seen nothing.
    a.answer([Step::Created, Step::Hold, Step::Close(1011)]);
    b.answer(HELD_TURN);
    let mut socket = WebSocket::open(&balancer).await;
    socket.send(&create(&json!({}))).await;
    wait_until("the turn has begun", || a.message_count() == 1).await;
    let early = json!({"type": "response.inject", "n": 1}).to_string();
    socket.send_text(&early).await;
    wait_until("the message arrives", || a.last_message().text == early).await;
    a.release();
    let created = socket.next_event_of("response.created").await;
    assert!(created["response"]["id"].as_str().unwrap().starts_with("resp_b"), "{created}");
    socket.next_event_of("response.output_text.delta").await;
    wait_until("the message follows", || b.last_message().text == early).await;
    // A second turn runs in a lane, so that the id decides.
    a.answer([Step::Close(1011)]);
    begin_held_turn(&mut socket, "beside").await;
    let late = json!({"type": "response.cancel", "response_id": created["response"]["id"]}).to_string();
    socket.send_text(&late).await;
    wait_until("the message arrives", || b.last_message().text == late).await;
    let messages = b.messages();
    assert_eq!(messages.last().unwrap().socket, messages[0].socket);
}

fn resident_kib(balancer: &Balancer) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", balancer.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_stops_its_upstream_and_nobody_else() {
    const SOCKETS: usize = 8;
    let ([a], balancer) = ResponsesUpstream::start_behind_balancer(["a"], "").await;
    a.script(
        |create| {
            if create["input"] == "flood" { vec![Step::Created, Step::Flood] } else { TURN.to_vec() }
        },
    );
    let mut other = WebSocket::open(&balancer).await;
    other.complete_turn(&create(&json!({}))).await;
    let kib_before = resident_kib(&balancer);
    let mut deaf = Vec::new();
    for _ in 0..SOCKETS {
        let mut socket = WebSocket::open(&balancer).await;
        socket.send(&create(&json!({"input": "flood"}))).await;
        deaf.push(socket);
    }
    let steady = Duration::from_millis(500);
    wait_until_steady("the upstream has to wait", steady, || a.flood_bytes()).await;
    let kib_per_socket = resident_kib(&balancer).saturating_sub(kib_before) / SOCKETS;
    println!("{kib_per_socket} KiB per socket, {} KiB sent", a.flood_bytes() / 1024);
    assert!(kib_per_socket <= 512, "{kib_per_socket} KiB per socket");
    for _ in 0..10 {
        other.complete_turn(&create(&json!({}))).await;
    }
    drop(deaf);
    wait_until("the upstream sockets of lost clients are closed", || a.open_sockets() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unstored_conversations_in_lanes_do_not_displace_each_other() {
    // A backend keeps only the latest unstored response of a socket.
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let mut socket = WebSocket::open(&balancer).await;
    let mut latest = json!({"one": null, "two": null});
    for _ in 0..3 {
        for lane in ["one", "two"] {
            let continued = json!({"stream_id": lane, "store": false, "previous_response_id": latest[lane]});
            let events = socket.turn(&create(&continued)).await;
            let last = events.last().unwrap();
            assert_eq!(
                (&last["type"], &last["stream_id"]),
                (&json!("response.completed"), &json!(lane)),
                "{last}"
            );
            latest[lane] = last["response"]["id"].clone();
        }
    }
}
