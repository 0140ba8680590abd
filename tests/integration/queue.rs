//! Requests wait in the queue while every backend of their deployment is at its rate limit.

use crate::support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::responses_upstream::{ResponsesUpstream, TURN, create, throttled_step};
use support::stateful_upstream::StatefulUpstream;
use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::websocket::WebSocket;
use support::{
    Balancer, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, Response, clients_yaml, sha256_hex,
    wait_until,
};
use tokio::task::JoinHandle;

/// Two names for one deployment of the backend.
const DEPLOYMENTS: &str = "deployments: { gpt-4o: gpt-4o, another-name: gpt-4o }";

/// The `retry-after-ms` of a throttled backend, which answers 429 until the test opens it.
pub(crate) const REST_MS: u64 = 20;

/// Backends that refuse every request until the test opens them.
struct Fixture {
    upstream: ScriptedUpstream,
    balancer: Balancer,
    is_open: Arc<AtomicBool>,
    /// The `user` of each request that was answered.
    answered: Arc<std::sync::Mutex<Vec<String>>>,
}

/// The `user` of a request.
pub(crate) fn user_of(request: &RawRequest) -> String {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    body["user"].as_str().unwrap_or_default().to_owned()
}

pub(crate) fn throttled(wait_ms: u64) -> Vec<Vec<u8>> {
    let headers = format!("content-type: application/json\nretry-after-ms: {wait_ms}");
    complete_response(429, &headers, r#"{"error":{"code":"429","message":"too many requests"}}"#)
}

pub(crate) fn answer() -> Vec<Vec<u8>> {
    let completion = json!({
        "id": "c", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    });
    complete_response(200, "content-type: application/json", &completion.to_string())
}

/// `clients` with three that differ in their key.
pub(crate) fn three_clients_yaml() -> String {
    let keys = [("team-a", CLIENT_KEY), ("team-b", "key-b"), ("team-c", "key-c")];
    let clients = keys.map(|(name, key)| {
        let key = sha256_hex(key);
        format!("  - {{ name: {name}, class: interactive, keys: [ {{ sha256: {key} }} ] }}\n")
    });
    format!("clients:\n{}", clients.concat())
}

impl Fixture {
    /// The queue has these settings, and there is no other wait.
    async fn start(queue: &str) -> Self {
        Self::start_with(queue, "retry: { wait: 0s }").await
    }

    async fn start_with(queue: &str, extra_yaml: &str) -> Self {
        let (is_open, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (gate, log) = (Arc::clone(&is_open), Arc::clone(&answered));
        let upstream = ScriptedUpstream::start(move |request| {
            if !gate.load(Ordering::Acquire) {
                return throttled(REST_MS);
            }
            let log: &std::sync::Mutex<Vec<String>> = &log;
            log.lock().unwrap().push(user_of(request));
            answer()
        })
        .await;
        let backend = support::backend_yaml("a", &format!("http://{}", upstream.address), DEPLOYMENTS);
        let yaml = format!("queue: {{ {queue} }}\n{extra_yaml}");
        let balancer = Balancer::start_with_clients(&backend, &three_clients_yaml(), &yaml).await;
        Self { upstream, balancer, is_open, answered }
    }

    /// Sends a request that waits, and waits until it does. `user` is how the backend knows it.
    async fn send(&self, key: &'static str, class: &'static str, user: &str) -> JoinHandle<Response> {
        self.send_to(CHAT_TARGET.to_owned(), key, class, user).await
    }

    async fn send_to(
        &self,
        target: String,
        key: &'static str,
        class: &'static str,
        user: &str,
    ) -> JoinHandle<Response> {
        let before = self.in_flight().await;
        let sent = self.post(target, key, class, chat(user, 0));
        self.balancer.wait_for_status("the request waits", |status| status["in_flight"] == before + 1).await;
        sent
    }

    fn send_without_waiting(
        &self,
        key: &'static str,
        class: &'static str,
        user: &str,
        extra_bytes: usize,
    ) -> JoinHandle<Response> {
        self.post(CHAT_TARGET.to_owned(), key, class, chat(user, extra_bytes))
    }

    fn post(
        &self,
        target: String,
        key: &'static str,
        class: &'static str,
        body: String,
    ) -> JoinHandle<Response> {
        let address = self.balancer.address;
        tokio::spawn(async move {
            let headers = [("api-key", key), ("x-aoai-lb-class", class)];
            Client::connect(address).await.post(&target, &headers, body.as_bytes()).await
        })
    }

    async fn in_flight(&self) -> u64 {
        self.balancer.status().await["in_flight"].as_u64().unwrap()
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    fn answered(&self) -> Vec<String> {
        self.answered.lock().unwrap().clone()
    }
}

pub(crate) fn chat(user: &str, extra_bytes: usize) -> String {
    let content = "x".repeat(extra_bytes);
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 20, "user": user}).to_string()
}

async fn start_two_resources(yaml: &str) -> (Vec<StatefulUpstream>, Balancer) {
    let mut resources = Vec::new();
    for name in ["a", "b"] {
        resources.push(StatefulUpstream::start(name).await);
    }
    let backends: String =
        resources.iter().map(|resource| resource.backend_yaml(LISTED_DEPLOYMENTS)).collect();
    let balancer = Balancer::start(&backends, &format!("{yaml}\naffinity: {{ read_lag: 0s }}")).await;
    (resources, balancer)
}

fn respond(balancer: &Balancer, fields: &Value) -> JoinHandle<Response> {
    let mut body = json!({"model": "gpt-4o"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let address = balancer.address;
    tokio::spawn(async move {
        let headers = [("api-key", CLIENT_KEY), ("content-type", "application/json")];
        let body = body.to_string();
        Client::connect(address).await.post("/openai/v1/responses", &headers, body.as_bytes()).await
    })
}

/// Makes a response; returns its id, and the resource that has it.
async fn make_response<'r>(
    resources: &'r [StatefulUpstream],
    balancer: &Balancer,
) -> (String, &'r StatefulUpstream) {
    let response = respond(balancer, &json!({"input": "hi"})).await.unwrap();
    let home = support::answering_backend(&response);
    let home = resources.iter().find(|resource| resource.name == home).unwrap();
    (response.json()["id"].as_str().unwrap().to_owned(), home)
}

fn continue_response(balancer: &Balancer, id: &str) -> JoinHandle<Response> {
    respond(balancer, &json!({"input": "and?", "previous_response_id": id}))
}

#[track_caller]
fn expect_refusal(response: &Response, what: &str) {
    let message = response.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!((response.status, &*response.error_code()), (429, "all_throttled"), "{message}");
    assert!(message.contains(what), "{message}");
    assert!(response.header("retry-after-ms").unwrap().parse::<u64>().unwrap() >= 1000, "{response:?}");
}

#[tokio::test]
async fn a_request_waits_until_a_backend_takes_it_however_often_it_is_refused() {
    let fixture = Fixture::start_with("wait: 60s", "retry: { wait: 0s, attempts: 0 }").await;
    let request = fixture.send(CLIENT_KEY, "interactive", "x").await;
    wait_until("it was refused several times", || fixture.upstream.requests().len() >= 4).await;
    fixture.open();
    let response = request.await.unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    let record = &fixture.balancer.wait_for_records(1).await[0];
    assert!(record["attempts"].as_array().unwrap().len() >= 5, "{record}");
    assert_eq!((&record["outcome"], &record["class"]), (&json!("answered"), &json!("interactive")));
    let overhead = record["balancer_ms"].as_f64().unwrap_or_default();
    assert!(overhead < 50.0, "the wait is no work of the balancer: {record}");
}

#[tokio::test]
async fn the_more_urgent_class_goes_first_and_clients_take_turns() {
    let fixture = Fixture::start("wait: 60s").await;
    let mut requests = Vec::new();
    for (key, class, user) in [
        (CLIENT_KEY, "batch", "a batch 1"),
        (CLIENT_KEY, "batch", "a batch 2"),
        (CLIENT_KEY, "standard", "a standard 1"),
        (CLIENT_KEY, "standard", "a standard 2"),
        (CLIENT_KEY, "standard", "a standard 3"),
        (CLIENT_KEY, "standard", "a standard 4"),
        ("key-b", "standard", "b standard"),
        ("key-c", "interactive", "c interactive"),
    ] {
        requests.push(fixture.send(key, class, user).await);
    }
    fixture.upstream.forget_requests();
    wait_until("the most urgent one tries", || fixture.upstream.requests().len() >= 2).await;
    let tried: Vec<String> = fixture.upstream.requests().iter().map(user_of).collect();
    assert!(tried.iter().all(|user| user == "c interactive"), "{tried:?}");
    fixture.open();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    // One goes first, then two, then four: those that go together may arrive in either order.
    let answered = fixture.answered();
    assert_eq!((answered.len(), &*answered[0]), (8, "c interactive"));
    let place = |user: &str| answered.iter().position(|answered| answered == user).unwrap();
    assert!(place("b standard") <= 3, "it does not wait for all requests of the other client: {answered:?}");
    assert!(place("a standard 1") < place("a batch 1") && place("b standard") < place("a batch 2"));
}

#[tokio::test]
async fn requests_for_two_names_of_one_deployment_wait_in_one_line() {
    let fixture = Fixture::start("wait: 60s").await;
    let mut requests = vec![fixture.send(CLIENT_KEY, "batch", "batch 1").await];
    requests.push(fixture.send(CLIENT_KEY, "batch", "batch 2").await);
    let other_name = CHAT_TARGET.replace("gpt-4o", "another-name");
    assert_ne!(other_name, CHAT_TARGET);
    requests.push(fixture.send_to(other_name, "key-b", "interactive", "interactive").await);
    fixture.upstream.forget_requests();
    wait_until("the most urgent one tries", || fixture.upstream.requests().len() >= 2).await;
    let tried: Vec<String> = fixture.upstream.requests().iter().map(user_of).collect();
    assert!(tried.iter().all(|user| user == "interactive"), "{tried:?}");
    let status = fixture.balancer.status().await;
    assert_eq!(status["queue"]["lines"][0]["deployment"], "another-name, gpt-4o", "{}", status["queue"]);
    fixture.open();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_request_for_a_drained_resource_is_sent_when_its_cooldown_is_over() {
    let (resources, balancer) = start_two_resources("queue: { wait: 1s }\nretry: { wait: 0s }").await;
    let (id, home) = make_response(&resources, &balancer).await;
    home.behave(|behaviour| behaviour.throttled_ms = Some(REST_MS));
    let follow_up = continue_response(&balancer, &id);
    wait_until("it was refused", || home.requests().len() >= 3).await;
    let drained = balancer.post_admin(&format!("/api/backends/{}/drain", home.name)).await;
    assert_eq!(drained.status, 200);
    home.behave(|behaviour| behaviour.throttled_ms = None);
    let response = follow_up.await.unwrap();
    assert_eq!((response.status, support::answering_backend(&response)), (200, home.name.clone()));
}

#[tokio::test]
async fn a_request_does_not_wait_for_a_resource_that_rests_beyond_the_deadline() {
    let yaml = "queue: { wait: 60s }\nretry: { wait: 0s, deadline: 20s }";
    let (resources, balancer) = start_two_resources(yaml).await;
    let (id, home) = make_response(&resources, &balancer).await;
    home.behave(|behaviour| behaviour.throttled_ms = Some(50_000));
    let response = continue_response(&balancer, &id).await.unwrap();
    assert_eq!((response.status, &*response.error_code()), (429, "all_throttled"), "{}", response.text());
    assert!(response.text().contains("The Azure resource"), "{}", response.text());
    let hint: u64 = response.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((40_000..=50_000).contains(&hint), "it did not wait: {hint}");
}

#[tokio::test]
async fn a_wait_ends_in_time() {
    let fixture = Fixture::start("wait: 300ms").await;
    let start = Instant::now();
    let mut client = fixture.balancer.connect().await;
    for _ in 0..2 {
        let headers = [("api-key", CLIENT_KEY)];
        let response = client.post(CHAT_TARGET, &headers, chat("x", 0).as_bytes()).await;
        expect_refusal(&response, "none was free within the 0.");
    }
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
    let record = &fixture.balancer.wait_for_records(2).await[0];
    assert_eq!((&record["refusal"], &record["limited_by"]), (&json!("all_throttled"), &Value::Null));
}

#[tokio::test]
async fn the_timeout_of_the_client_ends_the_wait() {
    let fixture = Fixture::start("wait: 60s").await;
    let headers = [("api-key", CLIENT_KEY), ("x-stainless-read-timeout", "0.4")];
    let response = fixture.balancer.post(CHAT_TARGET, &headers, chat("x", 0).as_bytes()).await;
    expect_refusal(&response, "none was free within the");
}

#[tokio::test]
async fn a_client_that_leaves_no_longer_waits() {
    let fixture = Fixture::start("wait: 60s").await;
    let first = fixture.send(CLIENT_KEY, "interactive", "stays").await;
    let second = fixture.send(CLIENT_KEY, "interactive", "leaves").await;
    second.abort();
    let record = &fixture.balancer.wait_for_records(1).await[0];
    assert_eq!((&record["outcome"], &record["status"]), (&json!("client_gone"), &Value::Null), "{record}");
    fixture.open();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(fixture.answered(), ["stays"]);
}

#[tokio::test]
async fn a_full_queue_refuses_the_newest_of_the_client_that_has_the_most() {
    let fixture = Fixture::start("wait: 60s, requests: 2").await;
    let oldest = fixture.send(CLIENT_KEY, "interactive", "oldest").await;
    let newest = fixture.send(CLIENT_KEY, "interactive", "newest").await;
    let one_too_many = fixture.send_without_waiting(CLIENT_KEY, "interactive", "one too many", 0);
    expect_refusal(&one_too_many.await.unwrap(), "too many requests wait for them");
    // Another client's request takes its place.
    let other = fixture.send_without_waiting("key-b", "batch", "other", 0);
    expect_refusal(&newest.await.unwrap(), "too many requests wait for them");
    fixture.open();
    assert_eq!((oldest.await.unwrap().status, other.await.unwrap().status), (200, 200));
}

#[tokio::test]
async fn bodies_that_wait_have_a_bound() {
    let fixture = Fixture::start("wait: 60s, body_memory: 100KiB").await;
    let small = fixture.send(CLIENT_KEY, "interactive", "small").await;
    let large = fixture.send_without_waiting("key-b", "interactive", "large", 110_000);
    expect_refusal(&large.await.unwrap(), "too many requests wait for them");
    fixture.open();
    assert_eq!(small.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_pool_that_is_broken_does_not_queue() {
    let upstream = ScriptedUpstream::start(|_| complete_response(503, "", "")).await;
    let backend = support::backend_yaml("a", &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS);
    let yaml = "queue: { wait: 60s }\nretry: { outage: 100ms }";
    let balancer = Balancer::start_with_clients(&backend, &clients_yaml(), yaml).await;
    assert_eq!(balancer.post_chat().await.status, 503);
}

#[tokio::test]
async fn a_crowd_gets_through_a_small_door_and_nobody_is_refused() {
    const CROWD: usize = 120;
    /// It takes so many at a time.
    const PLACES: usize = 8;
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&inside), Arc::clone(&most));
    let started = Instant::now();
    let slot = Arc::new(std::sync::Mutex::new((0_u128, 0_usize)));
    let upstream = ScriptedUpstream::start(move |_| {
        // In each tenth of a second it answers so many.
        let (now, mut slot) = (started.elapsed().as_millis() / 100, slot.lock().unwrap());
        if slot.0 != now {
            *slot = (now, 0);
        }
        if slot.1 >= PLACES {
            counters.0.fetch_add(1, Ordering::Relaxed);
            return throttled(30);
        }
        slot.1 += 1;
        counters.1.fetch_max(slot.1, Ordering::Relaxed);
        answer()
    })
    .await;
    let backend = support::backend_yaml("a", &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS);
    let yaml = "queue: { wait: 60s }\nretry: { wait: 0s }";
    let balancer = Balancer::start_with_clients(&backend, &clients_yaml(), yaml).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..CROWD {
        let address = balancer.address;
        requests.spawn(async move {
            let mut client = Client::connect(address).await;
            client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], chat("x", 0).as_bytes()).await.status
        });
    }
    assert_eq!(requests.join_all().await, [200; CROWD]);
    assert_eq!(most.load(Ordering::Relaxed), PLACES);
    // Not all of those that wait come again at each chance.
    let refused = inside.load(Ordering::Relaxed);
    assert!(refused < CROWD + CROWD / PLACES * 12, "{refused}");
}

#[tokio::test]
async fn a_request_waits_for_its_resource_and_holds_up_nobody_else() {
    let (resources, balancer) = start_two_resources("queue: { wait: 1s }\nretry: { wait: 0s }").await;
    let (id, home) = make_response(&resources, &balancer).await;
    home.behave(|behaviour| behaviour.throttled_ms = Some(REST_MS));
    let follow_up = continue_response(&balancer, &id);
    wait_until("it was refused", || home.requests().len() >= 3).await;
    for _ in 0..4 {
        assert_eq!(respond(&balancer, &json!({"input": "hi"})).await.unwrap().status, 200);
    }
    // Longer than others: no other resource can answer it.
    assert!(!follow_up.is_finished());
    home.behave(|behaviour| behaviour.throttled_ms = None);
    let response = follow_up.await.unwrap();
    assert_eq!((response.status, support::answering_backend(&response)), (200, home.name.clone()));
}

#[tokio::test]
async fn a_turn_of_a_socket_waits_like_a_request() {
    let ([upstream], balancer) =
        ResponsesUpstream::start_behind_balancer(["a"], "queue: { wait: 60s }\nretry: { wait: 0s }").await;
    // A deployment that no backend lists is known once one has answered for it.
    let mut socket = WebSocket::open(&balancer).await;
    socket.complete_turn(&create(&json!({}))).await;
    let is_open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&is_open);
    upstream.script(
        move |_| {
            if gate.load(Ordering::Acquire) { TURN.to_vec() } else { vec![throttled_step(REST_MS)] }
        },
    );
    socket.send(&create(&json!({}))).await;
    wait_until("it was refused several times", || upstream.message_count() >= 4).await;
    is_open.store(true, Ordering::Release);
    let events = socket.rest_of_turn().await;
    assert_eq!(events.last().unwrap()["type"], "response.completed", "{events:?}");
}
