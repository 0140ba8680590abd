//! `shed`: classes that leave a provisioned deployment to more urgent ones.

use crate::support;

use std::process::Command;
use std::sync::{Arc, Mutex};

use aoai_lb::demo::{DeploymentKind, Simulator};
use serde_json::{Value, json};
use support::responses_upstream::{ResponsesUpstream, create};
use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::websocket::{RESPONSES_TARGET, UPGRADE_HEADERS, WebSocket};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, LISTED_DEPLOYMENTS, Response, answering_backend, backend_yaml,
    instant_resource, sha256_hex, simulated_backend_yaml,
};

const SHED: &str = "shed: { batch: 80%, standard: 95% }\n";
const CLASSES: [&str; 3] = ["interactive", "standard", "batch"];

/// How a scripted resource answers.
#[derive(Clone, Copy)]
enum Answer {
    /// With this utilization, in percent.
    Used(u32),
    /// Without a utilization.
    Plain,
    /// 429 with this `retry-after-ms`.
    Throttled(u32),
    /// 500.
    Broken,
}

/// A resource whose answers the test sets.
struct Resource {
    upstream: ScriptedUpstream,
    answer: Arc<Mutex<Answer>>,
}

impl Resource {
    async fn start(answer: Answer) -> Self {
        let answer = Arc::new(Mutex::new(answer));
        let current = Arc::clone(&answer);
        let upstream =
            ScriptedUpstream::start(move |request| respond(request, *current.lock().unwrap())).await;
        Self { upstream, answer }
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn backend_yaml(&self, name: &str, extra_yaml: &str) -> String {
        let extra_yaml = format!("{LISTED_DEPLOYMENTS}\n{extra_yaml}");
        backend_yaml(name, &format!("http://{}", self.upstream.address), &extra_yaml)
    }
}

fn respond(request: &RawRequest, answer: Answer) -> Vec<Vec<u8>> {
    let ok = |headers: &str| {
        let id = if headers.is_empty() { "resp_of_paid" } else { "resp_of_ptu" };
        let json = "content-type: application/json";
        let body = match request.head.contains("/responses") {
            true => json!({"id": id, "object": "response", "status": "completed", "output": []}),
            false => json!({"choices": []}),
        };
        complete_response(200, &format!("{json}\n{headers}"), &body.to_string())
    };
    let used = |percent: u32| ok(&format!("azure-openai-deployment-utilization: {percent}%"));
    match answer {
        Answer::Used(percent) => used(percent),
        Answer::Plain => ok(""),
        Answer::Throttled(ms) => complete_response(
            429,
            &format!("retry-after-ms: {ms}"),
            r#"{"error":{"code":"429","message":"full"}}"#,
        ),
        Answer::Broken => complete_response(500, "", r#"{"error":{"message":"broken"}}"#),
    }
}

/// A client for each class, whose key is the name of the class.
fn clients() -> String {
    let client = |class: &str| {
        format!("  - {{ name: {class}, class: {class}, keys: [ {{ sha256: {} }} ] }}\n", sha256_hex(class))
    };
    format!("clients:\n{}", CLASSES.map(client).concat())
}

/// Starts a balancer in front of these backends, without waits that these tests are not about.
async fn start(backends: &str) -> Balancer {
    let settings = format!("{SHED}retry: {{ outage: 0s }}\n");
    Balancer::start_with_clients(backends, &clients(), &settings).await
}

/// A provisioned deployment and one for what is left over.
async fn start_two_tiers(ptu: Answer, paid: Answer) -> (Resource, Resource, Balancer) {
    let (ptu, paid) = (Resource::start(ptu).await, Resource::start(paid).await);
    let backends = ptu.backend_yaml("ptu", "") + &paid.backend_yaml("paid", "tier: 2");
    let balancer = start(&backends).await;
    (ptu, paid, balancer)
}

async fn post(balancer: &Balancer, class: &str) -> Response {
    balancer.post(CHAT_TARGET, &[("api-key", class)], CHAT_BODY.as_bytes()).await
}

/// Where a request of each class goes, and with which status: of those that stay, the last tells what comes next.
async fn answers(balancer: &Balancer) -> Vec<(u16, String)> {
    let mut answers = Vec::new();
    for class in CLASSES {
        let response = post(balancer, class).await;
        answers.push((response.status, answering_backend(&response)));
    }
    answers
}

#[tokio::test]
async fn each_class_leaves_above_its_own_threshold() {
    let (ptu, _paid, balancer) = start_two_tiers(Answer::Used(0), Answer::Plain).await;
    for (percent, expected) in [
        (80, ["ptu", "ptu", "ptu"]),
        (85, ["ptu", "ptu", "paid"]),
        (95, ["ptu", "ptu", "paid"]),
        (96, ["ptu", "paid", "paid"]),
        (130, ["ptu", "paid", "paid"]),
        (20, ["ptu", "ptu", "ptu"]),
    ] {
        ptu.answer(Answer::Used(percent));
        // It stays whatever is told, and its response is what the others go by.
        assert_eq!(answering_backend(&post(&balancer, "interactive").await), "ptu");
        let expected = expected.map(|backend| (200, backend.to_owned()));
        assert_eq!(answers(&balancer).await, expected, "{percent} %");
    }
    // A client can lower the class of a request, which then leaves like its class.
    ptu.answer(Answer::Used(85));
    post(&balancer, "interactive").await;
    let headers = [("api-key", "interactive"), ("x-aoai-lb-class", "batch")];
    let lowered = balancer.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes()).await;
    assert_eq!(answering_backend(&lowered), "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_simulated_provisioned_deployment_tells_is_enough() {
    let kind = DeploymentKind::Provisioned { tokens_per_minute: 1_000, output_weight: 4 };
    let spare = DeploymentKind::Standard { tokens_per_minute: 1_000_000, requests_per_minute: None };
    let azure =
        Simulator::start(vec![instant_resource("ptu", kind), instant_resource("paid", spare)]).await.unwrap();
    let backends = simulated_backend_yaml(&azure, "ptu", "provisioned: {}")
        + &simulated_backend_yaml(&azure, "paid", "tier: 2");
    let balancer = start(&backends).await;
    let mut backends = Vec::new();
    for _ in 0..100 {
        let response = post(&balancer, "batch").await;
        assert_eq!(response.header("x-aoai-lb-attempts"), Some("1"), "it left before it was refused");
        backends.push(answering_backend(&response));
        if backends.ends_with(&["paid".to_owned(), "paid".to_owned()]) {
            break;
        }
    }
    assert_eq!(backends[0], "ptu");
    assert_eq!(backends.last().unwrap(), "paid", "{backends:?}");
    assert_eq!(answering_backend(&post(&balancer, "interactive").await), "ptu");
}

#[tokio::test]
async fn nothing_is_left_in_a_single_tier() {
    let ptu = Resource::start(Answer::Used(130)).await;
    let balancer = start(&ptu.backend_yaml("ptu", "provisioned: {}")).await;
    for _ in 0..2 {
        assert_eq!(answers(&balancer).await, vec![(200, "ptu".to_owned()); 3]);
    }
}

/// Sends a batch request to `/responses` with these further fields; returns the backend that answered.
async fn post_response(balancer: &Balancer, fields: &Value) -> String {
    let mut body = json!({"model": "gpt-4o", "input": "hello"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let headers = [("api-key", "batch")];
    answering_backend(&balancer.post("/openai/v1/responses", &headers, body.to_string().as_bytes()).await)
}

#[tokio::test]
async fn a_request_stays_at_the_resource_that_has_what_it_refers_to() {
    let (_ptu, _paid, balancer) = start_two_tiers(Answer::Used(99), Answer::Plain).await;
    assert_eq!(post_response(&balancer, &json!({})).await, "ptu", "nothing has been told yet");
    for _ in 0..3 {
        let refers_to_first = json!({"previous_response_id": "resp_of_ptu"});
        assert_eq!(post_response(&balancer, &refers_to_first).await, "ptu");
        assert_eq!(post_response(&balancer, &json!({})).await, "paid");
    }
}

#[tokio::test]
async fn a_request_stays_in_the_first_tier_of_the_resource_that_has_what_it_refers_to() {
    // Both deployments are on one resource.
    let resource = Resource::start(Answer::Used(99)).await;
    let backends = resource.backend_yaml("ptu", "") + &resource.backend_yaml("paid", "tier: 2");
    let backends = backends.replacen("gpt-4o: gpt-4o", "gpt-4o: gpt-4o-ptu", 1);
    let balancer = start(&backends).await;
    assert_eq!(post_response(&balancer, &json!({})).await, "ptu", "nothing has been told yet");
    for _ in 0..3 {
        assert_eq!(post_response(&balancer, &json!({})).await, "paid");
        let refers_to_first = json!({"previous_response_id": "resp_of_ptu"});
        assert_eq!(post_response(&balancer, &refers_to_first).await, "ptu");
    }
}

#[tokio::test]
async fn a_class_stays_if_the_lower_tier_is_broken() {
    let (_ptu, _paid, balancer) = start_two_tiers(Answer::Used(99), Answer::Broken).await;
    assert_eq!(answering_backend(&post(&balancer, "interactive").await), "ptu");
    // At first each tries the lower tier, later its circuit is open.
    for _ in 0..8 {
        let response = post(&balancer, "batch").await;
        assert_eq!((response.status, answering_backend(&response)), (200, "ptu".to_owned()));
    }
    let states = balancer.backend_states().await;
    assert!(states.contains(&("paid".to_owned(), "breaker_open".to_owned())), "{states:?}");
    let response = post(&balancer, "batch").await;
    assert_eq!(response.header("x-aoai-lb-attempts"), Some("1"));
    assert_eq!((response.status, answering_backend(&response)), (200, "ptu".to_owned()));
}

#[tokio::test]
async fn a_class_is_told_to_come_back_if_the_lower_tier_only_cools_down() {
    let (ptu, _paid, balancer) = start_two_tiers(Answer::Used(99), Answer::Throttled(30_000)).await;
    assert_eq!(answering_backend(&post(&balancer, "interactive").await), "ptu");
    // The first one is refused by the lower tier itself.
    assert_eq!(post(&balancer, "batch").await.status, 429);
    let before = ptu.upstream.requests().len();
    for class in ["batch", "standard"] {
        let refused = post(&balancer, class).await;
        assert_eq!((refused.status, refused.error_code()), (429, "all_throttled".to_owned()));
        let wait: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
        assert!((1..=30_000).contains(&wait) && wait > 20_000, "{wait}");
    }
    assert_eq!(ptu.upstream.requests().len(), before);
    let served = post(&balancer, "interactive").await;
    assert_eq!((served.status, answering_backend(&served)), (200, "ptu".to_owned()));
}

#[tokio::test]
async fn a_429_counts_as_full_until_its_cooldown_ends() {
    // Without `shed` the short cooldown is waited for.
    let (ptu, _paid, balancer) = start_two_tiers(Answer::Used(10), Answer::Plain).await;
    assert_eq!(answers(&balancer).await, vec![(200, "ptu".to_owned()); 3]);
    ptu.answer(Answer::Throttled(200));
    let response = post(&balancer, "batch").await;
    let attempts = response.header("x-aoai-lb-attempts").map(str::to_owned);
    assert_eq!((answering_backend(&response), attempts.as_deref()), ("paid".to_owned(), Some("2")));
    let records = balancer.wait_for_records(4).await;
    assert_eq!(records[3]["waited_ms"], 0, "{}", records[3]);
    ptu.answer(Answer::Used(10));
    let waited = post(&balancer, "interactive").await;
    assert_eq!(answering_backend(&waited), "ptu");
}

#[tokio::test]
async fn a_turn_of_a_websocket_leaves_like_a_request() {
    let (ptu, paid) = (Resource::start(Answer::Used(99)).await, ResponsesUpstream::start("paid").await);
    let backends = ptu.backend_yaml("ptu", "") + &paid.backend_yaml("tier: 2");
    let balancer = start(&backends).await;
    assert_eq!(answering_backend(&post(&balancer, "interactive").await), "ptu");
    let headers =
        UPGRADE_HEADERS.map(|(name, value)| (name, if name == "api-key" { "batch" } else { value }));
    let mut socket = WebSocket::open_with(balancer.address, RESPONSES_TARGET, &headers).await.unwrap();
    socket.complete_turn(&create(&json!({}))).await;
    assert_eq!(paid.message_count(), 1);
    assert_eq!(ptu.upstream.requests().len(), 1);
    // Before the socket ends, which has a record of its own.
    let records = balancer.wait_for_records(2).await;
    assert_eq!((&records[1]["method"], &records[1]["class"]), (&json!("WEBSOCKET"), &json!("batch")));
    drop(socket);
}

#[test]
fn explain_tells_which_backends_a_class_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("aoai-lb.yaml");
    let backend = |name: &str, more: &str| {
        format!(
            "  - {{ name: {name}, endpoint: 'https://{name}.example', credential: {{ api_key: k }}, {more} }}\n"
        )
    };
    let file = format!(
        "listeners: [ {{ address: '127.0.0.1:8080' }} ]\nbackends:\n{}{}{}{}{}",
        backend("ptu", "provisioned: {}, deployments: { gpt-4o: x }"),
        backend("east", "deployments: { gpt-4o: x, o3: y }"),
        backend("west", "tier: 2, deployments: { gpt-4o: x }"),
        clients(),
        SHED
    );
    std::fs::write(&path, file).unwrap();
    let shed_part = |client: &str, model: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        let target = format!("/openai/deployments/{model}/chat/completions?api-version=2024-10-21");
        command.args(["explain", "-c"]).arg(&path).args(["POST", &target, "--client", client]);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let lines = text.lines().skip_while(|line| !line.starts_with("shed ")).collect::<Vec<_>>();
        let end = lines.iter().position(|line| line.starts_with("limits ")).unwrap_or(0);
        lines[..end].iter().map(|line| line[12..].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        shed_part("batch", "gpt-4o"),
        [
            "batch leaves ptu above 80% utilization for the next tier",
            "batch leaves east above 80% utilization for the next tier, if its responses tell a utilization",
        ]
    );
    assert!(shed_part("standard", "gpt-4o")[0].contains("standard leaves ptu above 95% utilization"));
    assert_eq!(shed_part("interactive", "gpt-4o"), Vec::<String>::new());
    assert_eq!(
        shed_part("batch", "o3"),
        ["batch leaves no backend here: no lower tier serves the deployment"]
    );
}
